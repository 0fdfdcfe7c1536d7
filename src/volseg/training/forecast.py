"""How long steps are expected to take."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from volseg.geometry import Triple
from volseg.models.forecast import Machine
from volseg.partition.layout import padded_shape
from volseg.planning.time_model import TimePlan, step_seconds, training_time
from volseg.training.optimization import batch_of
from volseg.training.resolution import Resolution
from volseg.training.setup import Setup
from volseg.volumes.crops import crop_shape
from volseg.volumes.dataset import Case


@dataclass
class StepForecast:
    """Times of the steps of a run on a machine, from the shapes of their cases."""

    setup: Setup
    machine: Machine
    _known: dict[tuple[int, Triple], TimePlan] = field(default_factory=dict)

    def median(self, first: int, last: int) -> TimePlan:
        """Of a case in the median of the steps from `first` on, up to `last`; its seconds are those of the step."""
        plans = [self._step(step) for step in range(first, last)]
        middle = statistics.median_low(seconds for seconds, _ in plans)
        seconds, plan = next(one for one in plans if one[0] == middle)
        return plan.scaled(seconds / plan.seconds)

    def _step(self, step: int) -> tuple[float, TimePlan]:
        """Seconds of the replica with most, and its first case."""
        setup, resolution = self.setup, self.setup.resolution(step)
        batch = batch_of(setup.cases, step, setup.card.batch, setup.config.training.seed)
        count = resolution.replicas.count
        shares = [batch[number::count] for number in range(min(count, len(batch)))]
        plans = [[self._case(resolution, case) for case in share] for share in shares]
        longest = max(plans, key=lambda one: sum(plan.seconds for plan in one))
        return step_seconds(longest), longest[0]

    def _case(self, resolution: Resolution, case: Case) -> TimePlan:
        shape = crop_shape(resolution.blocks.scan(case).space.shape, resolution.samples.crop)
        known = resolution.level, shape
        if known not in self._known:
            network = self.setup.model.network
            layout = resolution.grid.layout(padded_shape(shape, network.multiple), network.multiple)
            layouts = resolution.twin.grids.agglomeration.layouts(layout, network.factors)
            self._known[known] = training_time(
                network, self.setup.config.training, layouts, self.machine.profile, self.machine.placing,
                resolution.replicas.count,
            )  # fmt: skip
        return self._known[known]
