"""Which resolution each step of a run is made at.

Nested iteration, the first half of full multigrid (Brandt, "Multi-level adaptive solutions to boundary-value
problems", Math. Comp. 1977): train on the coarsest volumes, where a step costs an eighth of one a level finer, and
begin on each finer level with the weights that the coarser one left; a U-Net's convolutions fit any resolution.
V-cycles go down to the coarsest and up again, several times. In the training of networks: progressive resizing (Karras
et al., ICLR 2018), multigrid batches of video (Wu et al., CVPR 2020), multilevel training (Haber et al.,
arXiv:1703.02009).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from volseg.config import MultigridConfig


@dataclass(frozen=True)
class Stage:
    """Steps `first` to before `last` of a run, made at resolution `level`; 0 is the finest."""

    level: int
    first: int
    last: int


def stages(config: MultigridConfig, steps: int, finest_from: int | None = None) -> tuple[Stage, ...]:
    """The stages of a run of `steps` steps, in order; one that would have no step is left out.

    finest_from  the step from which all are made at the finest resolution, whatever their stage; None: as it comes

    Each visit of a level has an equal part of that level's share of the steps. The last stage is always the finest.
    """
    order = visits(config)
    shares = level_shares(config)
    found: list[Stage] = []
    first, until = 0, 0.0
    for number, level in enumerate(order):
        until += shares[level] / order.count(level)
        last = steps if number + 1 == len(order) else min(round(until * steps), steps - 1)
        if last > first:
            found.append(Stage(level, first, last))
            first = last
    if finest_from is not None and finest_from < steps:
        found = [replace(stage, last=min(stage.last, finest_from)) for stage in found if stage.first < finest_from]
        found.append(Stage(0, finest_from, steps))
    return tuple(found)


def steps_by_level(config: MultigridConfig, steps: int) -> list[int]:
    """How many of a run's `steps` steps are made at each level, finest first."""
    made = stages(config, steps)
    return [sum(one.last - one.first for one in made if one.level == level) for level in range(config.levels)]


def steps_per_epoch(cases: int, batch: int) -> int:
    """Batches of an epoch of so many cases; the last may be an incomplete one."""
    return -(-cases // batch)


def finest_for_good(config: MultigridConfig, steps: int, done: int) -> int | None:
    """The step from which a run of `steps` steps, of which `done` are made, stays at the finest resolution.

    None where it has made no such step yet, and where there is only one resolution. V-cycles come back to coarser ones
    until the run is complete.
    """
    if config.levels == 1:
        return None
    first = stages(config, steps)[-1].first if config.cycle == "fmg" else steps - 1
    return first if done > first else None


def visits(config: MultigridConfig) -> list[int]:
    """Levels in the order in which they are visited."""
    coarsest = config.levels - 1
    if config.cycle == "fmg":
        return list(reversed(range(config.levels)))
    down, up = list(range(coarsest)), list(reversed(range(config.levels)))
    return [*down, *up] + [*down[1:], *up] * (config.cycles - 1) if coarsest else [0]


def level_shares(config: MultigridConfig) -> list[float]:
    """Share of the steps by level, finest first; they add up to 1."""
    given = config.shares or tuple(1.0 for _ in range(config.levels))
    return [share / sum(given) for share in given]
