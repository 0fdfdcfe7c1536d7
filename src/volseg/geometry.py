"""Boxes of voxels: the only way volseg names a part of a volume.

Axes are D, H, W everywhere: the order of a C-contiguous numpy array, slices x rows x columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

Triple = tuple[int, int, int]

PerAxis = int | Triple
"""A number for each of the axes, or one for all of them."""


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box of voxels, ``start <= index < stop`` on each of the axes D, H, W."""

    start: Triple
    stop: Triple

    @classmethod
    def whole(cls, shape: Triple) -> Box:
        """The box that covers a volume of `shape`."""
        return cls((0, 0, 0), shape)

    @property
    def shape(self) -> Triple:
        """Sides in voxels; 0 on an axis where the box is empty."""
        d, h, w = (max(0, b - a) for a, b in zip(self.start, self.stop, strict=True))
        return d, h, w

    @property
    def size(self) -> int:
        """Number of voxels."""
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The index that cuts this box from an array of the whole volume."""
        d, h, w = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return d, h, w

    def intersect(self, other: Box) -> Box:
        """The common part; its size is 0 where the two do not meet."""
        start = _triple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = _triple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, _triple(max(a, b) for a, b in zip(start, stop, strict=True)))

    def shift(self, offset: Triple) -> Box:
        """The box moved by `offset` voxels."""
        return Box(
            _triple(a + o for a, o in zip(self.start, offset, strict=True)),
            _triple(b + o for b, o in zip(self.stop, offset, strict=True)),
        )

    def relative_to(self, other: Box) -> Box:
        """The same voxels, counted from `other`'s first one."""
        d, h, w = other.start
        return self.shift((-d, -h, -w))

    def contains(self, other: Box) -> bool:
        """Whether every voxel of `other` lies in this box."""
        return self.intersect(other).size == other.size

    def __str__(self) -> str:
        return "x".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))


def _triple(values: Iterable[int]) -> Triple:
    d, h, w = values
    return d, h, w


def per_axis(value: PerAxis) -> Triple:
    """The number of each axis."""
    return (value, value, value) if isinstance(value, int) else value


def quotient(values: Triple, divisors: Triple) -> Triple:
    """Axis by axis, rounded down."""
    return _triple(a // b for a, b in zip(values, divisors, strict=True))


def format_per_axis(value: PerAxis) -> str:
    """``(4, 4, 4)`` as ``4``, ``(1, 4, 4)`` as ``1x4x4``."""
    sides = per_axis(value)
    return str(sides[0]) if len(set(sides)) == 1 else format_triple(sides)


def format_triple(values: tuple[object, ...]) -> str:
    """``(64, 48, 32)`` as ``64x48x32``."""
    return "x".join(str(v) for v in values)


def format_triples(values: Iterable[tuple[object, ...]]) -> str:
    """``(1, 3, 3), (3, 3, 3)`` as ``1x3x3, 3x3x3``."""
    return ", ".join(format_triple(each) for each in values)


def halved(shape: Triple, times: int = 1) -> Triple:
    """(D, H, W) of a volume of `shape` halved `times` times, each time rounded up."""
    for _ in range(times):
        shape = _triple(-(-n // 2) for n in shape)
    return shape


def halved_on(shape: Triple, strides: Triple) -> Triple:
    """(D, H, W) of a volume divided by 1 or 2 on each axis, rounded up."""
    return _triple(-(-n // stride) for n, stride in zip(shape, strides, strict=True))
