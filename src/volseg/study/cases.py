"""What a study runs: each case one run of the program, and the cases of each part of the study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from volseg.config import ModelConfig, TrainingConfig
from volseg.geometry import Triple, format_triple

TRAIN, SEGMENT = "train", "segment"
VARIANTS = {TRAIN: ("plain", "checkpoint"), SEGMENT: ("in-place", "recompute")}
"""Ways to run a task: the fastest, and one that needs less memory."""

PARTS = ("memory", "channels", "scaling")
CLASSES = 3
"""Background and two kinds of ellipsoids, as `volseg generate` makes them."""

STEPS, FEW_STEPS, LONG_STEP = 5, 3, 4.0
"""Training steps of a case, and of one whose step takes longer than so many seconds. The first step compiles kernels;
the time that is reported is the median."""

AGAIN = 3
"""A segmenting case runs so often besides the first time, in which kernels are compiled; once where it takes long."""


@dataclass(frozen=True, order=True)
class Case:
    """One run of the program, on one volume, with one thread a rank.

    task     "train" or "segment"
    shape    (D, H, W) voxels
    variant  of `VARIANTS`
    """

    task: str
    shape: Triple
    base_channels: int
    levels: int
    ranks: int
    variant: str

    @property
    def name(self) -> str:
        """Fit for a file."""
        network = f"c{self.base_channels}-l{self.levels}"
        return f"{self.task}-{format_triple(self.shape)}-{network}-r{self.ranks}-{self.variant}"

    @property
    def fastest(self) -> bool:
        """Whether it is run the fastest way."""
        return self.variant == VARIANTS[self.task][0]

    @property
    def cube(self) -> bool:
        """Whether all sides are the same."""
        return len(set(self.shape)) == 1

    @property
    def model(self) -> ModelConfig:
        """Its network."""
        return ModelConfig(in_channels=1, classes=CLASSES, base_channels=self.base_channels, levels=self.levels)

    @property
    def training(self) -> TrainingConfig:
        """How it is trained: "checkpoint" computes again from level 1 on, since level 0 saves nothing."""
        again = tuple(range(1, self.levels + 1)) if self.variant == "checkpoint" else ()
        return TrainingConfig(validation=0, checkpoint_levels=again)


@dataclass(frozen=True)
class Ranges:
    """What a study varies.

    sides          of cubes, in voxels, ascending
    channels       at full resolution, ascending; the last is what scaling is studied with
    more_channels  for memory against channels
    ranks          in the matrix of the memory study
    more_ranks     for scaling
    levels         of the U-Net
    """

    sides: tuple[int, ...]
    channels: tuple[int, ...] = (8, 16)
    more_channels: tuple[int, ...] = (4, 8, 16, 32)
    ranks: tuple[int, ...] = (1, 2, 4)
    more_ranks: tuple[int, ...] = (1, 2, 4, 8)
    levels: int = 3

    @property
    def block(self) -> int:
        """Side of the block that each rank has in weak scaling: half the largest volume's."""
        multiple = int(2**self.levels)
        return max(multiple, self.sides[-1] // 2 // multiple * multiple)


def cases_of(parts: Iterable[str], ranges: Ranges) -> list[Case]:
    """The cases of these parts, each once."""
    makers = {"memory": memory_cases, "channels": channel_cases, "scaling": scaling_cases}
    return list(dict.fromkeys(case for part in parts for case in makers[part](ranges)))


def memory_cases(ranges: Ranges) -> Iterator[Case]:
    """Tasks x variants x sides x channels x ranks; and on one rank, the fastest way, larger sides besides."""
    for side, channels, ranks in product(ranges.sides, ranges.channels, ranges.ranks):
        yield from _both(cube(side), channels, ranges.levels, ranks, all_variants=True)
    if 1 in ranges.ranks:
        for side in beyond(ranges):
            yield from _both(cube(side), ranges.channels[-1], ranges.levels, 1)


def beyond(ranges: Ranges) -> tuple[int, ...]:
    """Sides a half larger and twice as large as the largest: what a study takes if there is time."""
    multiple, top = int(2**ranges.levels), ranges.sides[-1]
    return (top * 3 // 2 // multiple * multiple, 2 * top) if len(ranges.sides) > 2 else ()


def rank_of_need(case: Case, ranges: Ranges) -> int:
    """0 for what curves are drawn through, 1 for the rest of the matrix, 2 for what goes beyond it: so they are run."""
    if max(case.shape) > ranges.sides[-1] and case.cube:
        return 2
    return 0 if case.fastest and (case.base_channels == ranges.channels[-1] or case.ranks == 1) else 1


def channel_cases(ranges: Ranges) -> Iterator[Case]:
    """Tasks x channels, on one rank and a volume of middle size."""
    middle = ranges.sides[len(ranges.sides) // 2]
    for channels in ranges.more_channels:
        yield from _both(cube(middle), channels, ranges.levels, 1)


def scaling_cases(ranges: Ranges) -> Iterator[Case]:
    """Strong scaling: the largest volume on more and more ranks. Weak scaling: volumes that grow with the ranks."""
    for ranks in ranges.more_ranks:
        yield from _both(cube(ranges.sides[-1]), ranges.channels[-1], ranges.levels, ranks)
        yield from _both(weak_shape(ranges.block, ranks), ranges.channels[-1], ranges.levels, ranks)


def _both(shape: Triple, channels: int, levels: int, ranks: int, all_variants: bool = False) -> Iterator[Case]:
    for task, variants in VARIANTS.items():
        for variant in variants if all_variants else variants[:1]:
            yield Case(task=task, shape=shape, base_channels=channels, levels=levels, ranks=ranks, variant=variant)


def cube(side: int) -> Triple:
    """(side, side, side)."""
    return side, side, side


def weak_shape(block: int, ranks: int) -> Triple:
    """The volume of so many blocks of one size: its factors of 2 on D, H, W by turns, any other factor on D."""
    counts, axis, left = [1, 1, 1], 0, ranks
    while left % 2 == 0:
        counts[axis] *= 2
        axis, left = (axis + 1) % 3, left // 2
    return block * counts[0] * left, block * counts[1], block * counts[2]


def voxels(case: Case) -> int:
    """Of the volume."""
    return prod(case.shape)
