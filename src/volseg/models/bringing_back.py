"""Classes back on the scanner's grid: logits interpolated slab by slab, with a running arg-max over the classes.

The logits of a voxel of the mask are interpolated linearly between the eight network voxels around it, D, then H, then
W, and the class with the largest wins; of equals the smaller. Overlapping regions have a voxel where their logit is
above zero (`volumes.regions`). Logits exist for a slab of planes and a few classes at a
time, so memory does not grow with the number of classes. (nnU-Net resamples all classes of the whole volume.)

Every value is computed alone, by separate differences, products and sums in one fixed order: no bit depends on the
ranks or the slabs. Planes are turned to [W, H] on the way, so that each interpolation picks whole rows of memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.grid import ProcessGrid
from volseg.distributed.halo import exchange_window
from volseg.geometry import Box, Triple
from volseg.nn.kernels.convolution import convolve
from volseg.partition.layout import Layout
from volseg.partition.window import Range, plan_window
from volseg.volumes.interpolation import AxisMap, between
from volseg.volumes.regions import Decision, Region

_ONE = (1, 1, 1)
_CLASSES_AT_ONCE = 8  # fixed, so that a class's logits come from one and the same product whatever the slab
_SLAB_VALUES = 2**20
_CACHE_VALUES = 2**16


def with_far_ghosts(features: Tensor, layout: Layout, grid: ProcessGrid) -> Tensor:
    """This rank's features with one more plane at the far end of each axis where there is one. Collective.

    features  [1, C, d, h, w]     of this rank's block
    out       [1, C, d', h', w']  with d' = d + 1, but d at the end of the volume; h', w' alike
    """

    def needs(axis: int, own: Range) -> Range:
        return own[0], min(own[1] + 1, layout.shape[axis])

    return exchange_window(features, plan_window(layout, grid.coords, needs, layout), grid)


def maps_of_box(back: Sequence[AxisMap], box: Box, block: Box, sides: Triple) -> list[AxisMap]:
    """`back` for the voxels of `box` alone, counted from the first voxel of `block`, where features of `sides` lie."""
    cut = zip(back, box.slices, block.start, sides, strict=True)
    return [axis[own].relative_to(first, side) for axis, own, first, side in cut]


def bring_back(
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    maps: Sequence[AxisMap],
    mask: np.ndarray,
    logits: np.ndarray | None = None,
    slab_values: int = _SLAB_VALUES,
    regions: Sequence[Region] = (),
) -> None:
    """Fill `mask` with the labels that the logits interpolated at `maps` stand for. Local.

    features  [1, C, d', h', w']  what the head reads
    weight    [K, C, 1, 1, 1]     of the head; None: `features` are the logits
    bias      [K]
    maps      of each axis of the mask: where its voxels lie in `features`
    mask      [d, h, w]           filled
    logits    [K, d, h, w]        float32, filled too where given
    slab_values  of the mask, and of one class's logits, that are worked on at a time, about
    regions   what each logit is of; empty: classes
    """
    if not mask.size:
        return
    on_d, on_h, on_w = maps
    # The padding behind the last voxel that the mask needs is left out.
    features = features[:, :, :, : int(on_h.high[-1]) + 1, : int(on_w.high[-1]) + 1]
    plane, decision = _PlaneInterpolation(on_h, on_w), Decision(regions, mask.dtype)
    for planes in _slabs(on_d, mask.shape[1:], features.shape[3:], slab_values):
        own = on_d[planes]
        slab = features[:, :, int(own.low[0]) : int(own.high[-1]) + 1]
        own = own.relative_to(int(own.low[0]), slab.shape[2])
        kept = None if logits is None else logits[:, planes]
        _fill_slab(_logits_by_class(slab, weight, bias), own, plane, decision, mask[planes], kept)


def _slabs(on_d: AxisMap, plane: Sequence[int], below: Sequence[int], values: int) -> Iterator[slice]:
    """Runs of planes of the mask, one at least, of about `values` in the mask and in the features below them."""
    start, count = 0, len(on_d.low)
    while start < count:
        stop = start + 1
        while stop < count:
            span = int(on_d.high[stop] - on_d.low[start]) + 1
            if max((stop + 1 - start) * plane[0] * plane[1], span * below[0] * below[1]) > values:
                break
            stop += 1
        yield slice(start, stop)
        start = stop


def _logits_by_class(slab: Tensor, weight: Tensor | None, bias: Tensor | None) -> Iterator[np.ndarray]:
    """[d', h', w'] of one class after another."""
    if weight is None:
        yield from slab[0].numpy()
        return
    for first in range(0, weight.shape[0], _CLASSES_AT_ONCE):
        some = slice(first, first + _CLASSES_AT_ONCE)
        added = None if bias is None else bias[some]
        yield from convolve(slab, weight[some], added, _ONE, _ONE, 1)[0].contiguous().numpy()


def _fill_slab(
    classes: Iterable[np.ndarray], on_d: AxisMap, plane: _PlaneInterpolation, decision: Decision, mask: np.ndarray,
    kept: np.ndarray | None,
) -> None:  # fmt: skip
    """The labels: `mask` [n, h, w] and, where given, `kept` [K, n, h, w] from [d', h', w'] of each class."""
    bar, winner = decision.begin((len(mask), mask.shape[2], mask.shape[1]))  # planes lie as [W, H]
    for number, values in enumerate(classes):
        for n in range(len(mask)):
            for columns, found in plane.of(values[on_d.low[n]], values[on_d.high[n]], on_d.weight[n]):
                if kept is not None:
                    kept[number, n, :, columns] = found.T
                decision.take(number, found, bar[n, columns], winner[n, columns])
    mask[...] = decision.labels(winner).transpose(0, 2, 1)


class _PlaneInterpolation:
    """From two planes of a class's logits to one plane of the mask, its buffers made once.

    on_h, on_w  where the mask's rows and columns lie
    run_shape   the largest array [w, h] that `of` yields
    """

    def __init__(self, on_h: AxisMap, on_w: AxisMap) -> None:
        self._on_h, self._on_w = on_h, on_w
        h, w, rows = len(on_h.low), len(on_w.low), int(on_w.high[-1]) + 1
        self._weight_h, self._weight_w = on_h.weight[:, None], on_w.weight[:, None]
        self._tall, self._tall_step = np.empty((h, rows), np.float32), np.empty((h, rows), np.float32)
        self._turned = np.empty((rows, h), np.float32)
        self.run_shape = max(1, min(w, _CACHE_VALUES // h)), h
        self._found, self._step = np.empty(self.run_shape, np.float32), np.empty(self.run_shape, np.float32)

    def of(self, lower: np.ndarray, upper: np.ndarray, weight: np.float32) -> Iterator[tuple[slice, np.ndarray]]:
        """Columns of the mask's plane, and their values [w, h], good until the next are asked for."""
        thick = between(lower, upper.copy(), weight)
        _pick(thick, _steps(thick), self._on_h.low, self._weight_h, self._tall, self._tall_step)
        torch.from_numpy(self._turned).copy_(torch.from_numpy(self._tall).T)  # tiled, as numpy's is not
        steps = _steps(self._turned)
        for start in range(0, len(self._on_w.low), self.run_shape[0]):
            columns = slice(start, min(start + self.run_shape[0], len(self._on_w.low)))
            count = columns.stop - start
            found = self._found[:count]
            _pick(self._turned, steps, self._on_w.low[columns], self._weight_w[columns], found, self._step[:count])
            yield columns, found


def _steps(rows: np.ndarray) -> np.ndarray:
    """From each row to the next; the last stands for itself, for nothing is ever weighed beyond it."""
    steps = np.empty_like(rows)
    np.subtract(rows[1:], rows[:-1], out=steps[:-1])
    steps[-1] = 0
    return steps


def _pick(
    rows: np.ndarray, steps: np.ndarray, low: np.ndarray, weight: np.ndarray, out: np.ndarray, spare: np.ndarray
) -> None:
    """``rows[low] + steps[low] * weight`` into `out`."""
    np.take(rows, low, axis=0, out=out, mode="clip")  # "raise" would go through a buffer of its own
    np.take(steps, low, axis=0, out=spare, mode="clip")
    spare *= weight
    out += spare
