"""How long steps are expected to take."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from volseg.geometry import Triple
from volseg.models.forecast import Machine
from volseg.partition.layout import padded_shape
from volseg.partition.memory import parameter_count
from volseg.partition.time_model import TimePlan, training_time
from volseg.training.optimization import batch_of
from volseg.training.setup import Setup


@dataclass
class StepForecast:
    """Times of the steps of a run on a machine, from the shapes of their cases."""

    setup: Setup
    machine: Machine
    _known: dict[Triple, TimePlan] = field(default_factory=dict)

    def median(self, first: int, last: int) -> TimePlan:
        """Of a case in the median of the steps from `first` on, up to `last`; its seconds are those of the step."""
        plans = [self._step(step) for step in range(first, last)]
        middle = statistics.median_low(seconds for seconds, _ in plans)
        seconds, plan = next(one for one in plans if one[0] == middle)
        return plan.scaled(seconds / plan.seconds)

    def _step(self, step: int) -> tuple[float, TimePlan]:
        """Seconds of the replica with most, and its first case."""
        setup = self.setup
        batch = batch_of(setup.cases, step, setup.card.batch, setup.config.training.seed)
        shares = [batch[number :: setup.replicas.count] for number in range(min(setup.replicas.count, len(batch)))]
        plans = [[self._case(setup.blocks.scan(case).space.shape) for case in share] for share in shares]
        longest = max(plans, key=lambda one: sum(plan.seconds for plan in one))
        # The optimizer's step, and the sum of the gradients, come once.
        return sum(plan.seconds - plan.once for plan in longest) + longest[0].once, longest[0]

    def _case(self, shape: Triple) -> TimePlan:
        if shape not in self._known:
            setup, model = self.setup, self.setup.config.model
            layout = setup.grid.layout(padded_shape(shape, model.multiple), model.multiple)
            layouts = setup.twin.grids.agglomeration.layouts(layout, model.levels)
            self._known[shape] = training_time(
                model, setup.config.training, layouts, parameter_count(model, setup.config.training),
                self.machine.profile, self.machine.placing, setup.replicas.count,
            )  # fmt: skip
        return self._known[shape]
