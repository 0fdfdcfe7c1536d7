"""The resolutions of a training run as they are planned: how the ranks share each, its memory, its time, its steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from volseg.config import Config
from volseg.errors import ConfigError
from volseg.geometry import format_triple, halved
from volseg.planning.hierarchy import fastest_sharing, is_too_small
from volseg.planning.multigrid import level_shares, steps_by_level, steps_per_epoch
from volseg.planning.search import Candidate, Question, candidate, fits
from volseg.planning.time_model import step_seconds


@dataclass(frozen=True, kw_only=True)
class ResolutionPlan:
    """The steps on volumes that are halved `level` times.

    level  0: as the network will see volumes in the end
    cases  that the busiest replica takes in a step, one after the other
    run    how the ranks share it; its time is that of one case of each replica
    share  of the run's steps that are made at it, 0 to 1
    steps  their number; None where that of the cases is not known
    """

    level: int
    cases: int
    run: Candidate
    share: float
    steps: int | None = None

    @property
    def step_seconds(self) -> float:
        """Of a step on a whole batch."""
        return step_seconds([self.run.time] * self.cases)


@dataclass(frozen=True)
class RunPlan:
    """A training run.

    resolutions  that it is made at, the finest first
    in_epoch     steps of an epoch; None where the number of cases is not known
    """

    resolutions: tuple[ResolutionPlan, ...]
    in_epoch: int | None = None

    @property
    def largest(self) -> Candidate:
        """The run at the resolution whose ranks hold most, which is what the whole run needs; of equals the finest."""
        return max((each.run for each in self.resolutions), key=lambda run: run.plan.memory.peak)

    @property
    def relative(self) -> float:
        """The run's time over that of as many steps at the finest resolution."""
        return sum(each.share * each.step_seconds for each in self.resolutions) / self.resolutions[0].step_seconds

    @property
    def seconds(self) -> float | None:
        """All steps; None where the number of cases is not known."""
        if self.in_epoch is None:
            return None
        return sum(each.step_seconds * (each.steps or 0) for each in self.resolutions)

    def fits(self, question: Question) -> bool:
        """Whether every resolution keeps to the limit of the question."""
        return all(fits(question, each.run) for each in self.resolutions)


def plan_run(question: Question, finest: Candidate, settings: Config, cases: int | None = None) -> RunPlan:
    """How a training run uses the ranks at each of its resolutions: as `training.resolution` shares them.

    question  that `finest` answers
    settings  of the run
    cases     to train on; None where their number is not known

    Raises ConfigError where a volume becomes too small, PartitionError where not even one rank a replica has a block.
    """
    levels, batch = settings.multigrid.levels, finest.replicas * question.training.accumulate
    runs = [finest, *(_coarse(question, finest, batch, level) for level in range(1, levels))]
    shares, counts, in_epoch = level_shares(settings.multigrid), None, None
    if cases is not None:
        in_epoch = steps_per_epoch(cases, batch)
        steps = settings.training.epochs * in_epoch
        counts = steps_by_level(settings.multigrid, steps)
        shares = [count / steps for count in counts]
    resolutions = tuple(
        ResolutionPlan(
            level=level, cases=-(-batch // run.replicas), run=run, share=shares[level],
            steps=None if counts is None else counts[level],
        )
        for level, run in enumerate(runs)
    )  # fmt: skip
    return RunPlan(resolutions, in_epoch)


def _coarse(question: Question, finest: Candidate, batch: int, level: int) -> Candidate:
    """The run at a coarser resolution, shared as is fastest with no more memory than the finest needs."""
    network = question.network
    coarse = replace(
        question,
        shape=halved(question.shape, level),
        sampling=question.sampling.halved(level),
        training=replace(question.training, checkpoint_levels=finest.checkpoint_levels),
        limit=finest.plan.memory.peak,
        dims=None,
        agglomerate="none",
    )
    seen = coarse.seen
    if is_too_small(network, seen):
        raise ConfigError(
            f"--multigrid {level + 1}: {format_triple(seen)} voxels after {level} halvings are one voxel after "
            f"{network.deepest} halvings of the network; use fewer --multigrid levels or fewer --levels"
        )
    replicas, dims = fastest_sharing(seen, network, finest.ranks, batch, seen, coarse if question.timed else None)
    return candidate(coarse, dims, replicas)
