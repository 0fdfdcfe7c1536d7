"""How a volume is cut into blocks: the one place where boundaries are computed and sizes are rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product

from volseg.errors import PartitionError
from volseg.geometry import Box, PerAxis, Triple, format_per_axis, format_triple, per_axis

AXES = ("D", "H", "W")


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


def padded_shape(shape: Triple, multiple: PerAxis) -> Triple:
    """`shape` with every side rounded up to a multiple of `multiple` (for a U-Net the product of its strides)."""
    d, h, w = (round_up(n, m) for n, m in zip(shape, per_axis(multiple), strict=True))
    return d, h, w


def split(length: int, parts: int, multiple: int = 1) -> tuple[int, ...]:
    """Boundaries ``0 = b[0] < b[1] < ... < b[parts] = length`` of an even split.

    Inner boundaries lie on multiples of `multiple`, so blocks differ by at most one such multiple (the last block
    may also lack what `length` lacks to a whole multiple).

    Raises PartitionError where `length` has fewer than `parts` pieces of that size.
    """
    pieces = -(-length // multiple)
    if parts < 1 or pieces < parts:
        unit = "voxel" if multiple == 1 else f"piece of {multiple} voxels"
        raise PartitionError(
            f"{length} voxels cannot be cut into {parts} blocks of at least one {unit}: at most {pieces}"
        )
    return tuple(min(length, multiple * (i * pieces // parts)) for i in range(parts + 1))


@dataclass(frozen=True)
class Layout:
    """The blocks of one tensor: for each of the axes D, H, W the boundaries of its split.

    boundaries  three tuples; ``boundaries[a][i] : boundaries[a][i + 1]`` is the range of grid coordinate i on axis a
    """

    boundaries: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    def __post_init__(self) -> None:
        for axis, cuts in zip(AXES, self.boundaries, strict=True):
            if any(b <= a for a, b in pairwise(cuts)):
                raise PartitionError(
                    f"a block would be empty on axis {axis}: boundaries {list(cuts)}; use fewer ranks there"
                )

    @classmethod
    def even(cls, shape: Triple, dims: Triple, multiple: PerAxis = 1) -> Layout:
        """The even split of `shape` over a grid of `dims`, inner boundaries on multiples of `multiple`.

        Raises PartitionError, naming the largest grid that works, where a rank would be left without voxels.
        """
        multiples = per_axis(multiple)
        largest = tuple(-(-n // m) for n, m in zip(shape, multiples, strict=True))
        if any(p > m for p, m in zip(dims, largest, strict=True)):
            raise PartitionError(
                f"grid {format_triple(dims)} is too fine for {format_triple(shape)} voxels in blocks of multiples of "
                f"{format_per_axis(multiple)}: the largest grid is {format_triple(largest)}"
            )
        d, h, w = (split(n, p, m) for n, p, m in zip(shape, dims, multiples, strict=True))
        return cls((d, h, w))

    @cached_property
    def shape(self) -> Triple:
        """Global (D, H, W)."""
        d, h, w = (cuts[-1] for cuts in self.boundaries)
        return d, h, w

    @cached_property
    def dims(self) -> Triple:
        """The process grid, (Pz, Py, Px)."""
        d, h, w = (len(cuts) - 1 for cuts in self.boundaries)
        return d, h, w

    def block(self, coords: Triple) -> Box:
        """The box of the rank at `coords`."""
        start = tuple(cuts[c] for cuts, c in zip(self.boundaries, coords, strict=True))
        stop = tuple(cuts[c + 1] for cuts, c in zip(self.boundaries, coords, strict=True))
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def blocks(self) -> Iterator[Box]:
        """All blocks in rank order (C order of the grid coordinates)."""
        for d, h, w in product(*(range(p) for p in self.dims)):
            yield self.block((d, h, w))

    @cached_property
    def largest_block(self) -> Triple:
        """The longest side on each axis: the shape of the largest block."""
        d, h, w = (max(b - a for a, b in pairwise(cuts)) for cuts in self.boundaries)
        return d, h, w

    def map_axes(self, mapping: Callable[[int, tuple[int, ...]], Sequence[int]]) -> Layout:
        """A layout whose axis a has the boundaries ``mapping(a, self.boundaries[a])``."""
        d, h, w = (tuple(mapping(a, cuts)) for a, cuts in enumerate(self.boundaries))
        return Layout((d, h, w))

    def coarser(self, factor: PerAxis) -> Layout:
        """The layout of a tensor that is so many times smaller on each axis.

        Raises PartitionError where a boundary is no multiple of `factor`.
        """
        factors = per_axis(factor)

        def shrink(axis: int, cuts: tuple[int, ...]) -> tuple[int, ...]:
            n = factors[axis]
            if any(b % n for b in cuts):
                raise PartitionError(f"boundaries {list(cuts)} on axis {AXES[axis]} are not multiples of {n}")
            return tuple(b // n for b in cuts)

        return self.map_axes(shrink)
