"""Copies weights into the order of right factors, and sums of a weight's gradient out of that of tiles.

Where a number comes from is the sum of two offsets, which tables hold: that of its row or term, and that of its column.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod
from operator import mul

import numpy as np
import torch
from torch import Tensor

from volseg.nn.kernels.direct.weights import TapGroup
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer
from volseg.nn.kernels.jit.tiles import INNER, ROWS
from volseg.partition.tiling import LANES

_Taps = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""A group's taps of the kernel on D, H, W."""

_NOTHING = -1
"""The offset of a term that only fills a tile."""


@compiled_once
def _library(columns: int) -> Library:
    """columns  of a right factor"""
    module = Module(LANES, rounds_at_once=True)
    _define_pack(module, columns)
    _define_unpack(module, columns)
    return Library(module)


def _define_pack(module: Module, columns: int) -> None:
    @module.entry
    def pack(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        source: Pointer, results: Pointer, terms: Pointer, tiles: Int, apart: Int, beside: Int, out: Pointer,
    ) -> None:  # fmt: skip
        """Columns first ... last, `columns` together, as right factors: [.. / beside][tiles][beside][16][columns, 2].

        results, terms  64-bit offsets of the columns' numbers, and, of all tiles, of their rows'
        apart           tiles of a tap, whose channels lie together in the source: tiles are made in turns of so many
        """
        size = INNER * columns
        with f.loop(last, start=first) as (number, _):
            factor = out.bfloat16() + (number // beside * tiles * beside + number % beside) * size
            places = [source + (results + (number * columns + n) * 2).integer() for n in range(columns)]
            with f.loop(apart) as (begin, _), f.loop(tiles // apart) as (turn, _):
                tile = turn * apart + begin
                with f.loop(INNER) as (row, _):
                    term = (terms + (tile * INNER + row) * 2).integer()
                    target = factor + (tile * beside * size + row // 2 * (2 * columns) + row % 2)
                    with f.when(term >= 0):
                        for n, place in enumerate(places):
                            (target + 2 * n).copy_one(place + term)


def _define_unpack(module: Module, columns: int) -> None:
    size = ROWS * columns

    @module.entry
    def unpack(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        source: Pointer, terms: Int, taps: Int, places: Pointer, channels: Int, stored: Pointer, voxels: Int,
        out: Pointer, apart: Int, channel: Int,
    ) -> None:  # fmt: skip
        """Sums [blocks][terms][16][columns] of a group to `out`, for the windows' channels first ... last / columns.

        taps             that the group has, which are so many terms one after another
        places           [taps] 64-bit offsets in `out`
        stored           [channels] 64-bit numbers of the tile's channels as they are stored
        voxels           channels of the windows that `out` has, `apart` numbers from one to the next
        channel          numbers from a channel of the tile to the next
        """
        with f.loop(last, start=first) as (number, _):
            begin = number * columns
            count = f.smaller(voxels - begin, columns)
            with f.loop(channels) as (c, _):
                row = (stored + c * 2).integer()
                tile = row // ROWS * terms + number * taps
                factor = source + (tile * size + row % ROWS * columns)
                target = out + (begin * apart + c * channel)
                with f.loop(taps) as (tap, _):
                    place, numbers = target + (places + tap * 2).integer(), factor + tap * size
                    with f.loop(count) as (n, _):
                        (place + n * apart).copy_one(numbers + n)


def pack(by_tap: Tensor, inner: int, groups: Sequence[TapGroup], width: int, columns: int, out: Tensor) -> None:
    """A weight as right factors: [channels / width][terms / INNER][width / columns][16 pairs][columns, 2].

    by_tap  [kd, kh, kw, channels of the results .., channels of the windows ..] float32, of any strides
    inner   dimensions of the windows' channels
    groups  of products, whose terms follow one another; those of a tap on D and H are filled up to whole tiles
    out     bfloat16
    """
    taps = tuple(_taps(group) for group in groups)
    results, terms, partly = _tables(tuple(by_tap.shape), by_tap.stride(), inner, taps)
    if partly:
        out.zero_()
    channels = prod(by_tap.shape[by_tap.dim() - inner :])
    job = _library(columns)["pack"].bind(
        source=by_tap, results=results, terms=terms, tiles=len(terms) // INNER,
        apart=1 if channels % INNER else channels // INNER, beside=width // columns, out=out,
    )  # fmt: skip
    workers.run(job, len(results) // columns)


@lru_cache(maxsize=256)
def _tables(
    shape: tuple[int, ...], strides: tuple[int, ...], inner: int, groups: tuple[_Taps, ...]
) -> tuple[Tensor, Tensor, bool]:
    """Offsets of results and of terms, and whether there are terms that only fill tiles; as `pack` has them."""
    last, (z, y, x) = len(shape) - inner, strides[:3]
    results, channels = (_offsets(shape[part], strides[part]) for part in (slice(3, last), slice(last, None)))
    rows = [np.empty(0, np.int64)]
    for deep, high, wide in groups:
        for d, h in product(deep, high) if wide else ():
            row = np.add.outer([d * z + h * y + w * x for w in wide], channels).ravel()
            rows.append(np.pad(row, (0, -len(row) % INNER), constant_values=_NOTHING))
    terms = np.concatenate(rows)
    return torch.from_numpy(results), torch.from_numpy(terms), bool((terms == _NOTHING).any())


def unpack(
    sums: Tensor, group: TapGroup, terms: int, columns: int, stored: Sequence[int], out: Tensor
) -> None:  # fmt: skip
    """A group's taps of a weight's gradient.

    sums    [blocks of the tile's channels][terms][16][columns] float32; terms are the taps of some channels of the
            windows after those of others
    stored  the numbers of the tile's channels that are wanted
    out     [windows' channels, tile's channels, kd, kh, kw] float32, of any strides
    """
    places = _places(out.stride(), _taps(group))
    job = _library(columns)["unpack"].bind(
        source=sums, terms=terms, taps=len(places), places=places, channels=len(stored), stored=torch.tensor(stored),
        voxels=out.shape[0], out=out, apart=out.stride(0), channel=out.stride(1),
    )  # fmt: skip
    workers.run(job, -(-out.shape[0] // columns))


@lru_cache(maxsize=256)
def _places(strides: tuple[int, ...], taps: _Taps) -> Tensor:
    """Offsets of a group's taps in a weight of such strides, [.., .., kd, kh, kw]."""
    return torch.tensor([sum(map(mul, tap, strides[2:])) for tap in product(*taps)])


def _taps(group: TapGroup) -> _Taps:
    d, h, w = (tuple(group.taps(axis)) for axis in range(3))
    return d, h, w


def _offsets(shape: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """Of all elements, in their order, from the first one."""
    offsets = np.zeros(1, np.int64)
    for side, stride in zip(shape, strides, strict=True):
        offsets = np.add.outer(offsets, np.arange(side) * stride).ravel()
    return offsets
