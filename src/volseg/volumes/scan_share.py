"""What has to be read of a whole scan before a network sees any of it, shared out over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.errors import VolumeError
from volseg.geometry import Box, Triple
from volseg.volumes.canonical import Orientation
from volseg.volumes.checks import check_finite
from volseg.volumes.cubic import Range
from volseg.volumes.intensity import ChannelScheme, Normalization, measure_by
from volseg.volumes.nonzero import FilledMask, any_nonzero
from volseg.volumes.volume import Volume

_PLANES = 8


def _shared(box: Box, communicator: Communicator) -> Iterator[Box]:
    """This rank's part of a box, some planes at a time."""
    size, rank = communicator.size, communicator.rank
    first, last = (box.start[0] + box.shape[0] * n // size for n in (rank, rank + 1))
    for start in range(first, last, _PLANES):
        yield Box((start, *box.start[1:]), (min(start + _PLANES, last), *box.stop[1:]))


def bounds_of(inside: Callable[[Box], np.ndarray], shape: Triple, communicator: Communicator) -> Box:
    """The smallest box around the voxels that are `inside`; the whole of `shape` where none is. Collective.

    inside  of the voxels of a box, [d, h, w]
    """
    ends = np.array([[*shape], [0, 0, 0]], dtype=np.float64)
    with communicator.together():
        for box in _shared(Box.whole(shape), communicator):
            there = inside(box)
            for axis in range(3):
                others = tuple(n for n in range(3) if n != axis)
                (hits,) = np.nonzero(there.any(axis=others))
                if hits.size:
                    ends[0, axis] = min(ends[0, axis], box.start[axis] + hits[0])
                    ends[1, axis] = max(ends[1, axis], box.start[axis] + hits[-1] + 1)
    low, high = communicator.reduce_all(ends[0], "min"), communicator.reduce_all(ends[1], "max")
    if (high <= low).any():
        return Box.whole(shape)
    (d, h, w), (e, f, g) = ([int(n) for n in side] for side in (low, high))
    return Box((d, h, w), (e, f, g))


class ScanShare:
    """The file's own slices that this rank looks at, so that all ranks together look at each voxel once."""

    def __init__(self, files: Sequence[Volume], communicator: Communicator) -> None:
        self.files, self._communicator = files, communicator

    @cached_property
    def inside(self) -> Volume:
        """Where the scan is other than zero, or within that. Collective the first time."""
        return FilledMask(self.files, self._communicator)

    def nonzero_box(self) -> Box:
        """The smallest box, in the file's order, that holds all voxels other than zero; the whole where all are zero.

        Collective, as the others.
        """

        def nonzero(box: Box) -> np.ndarray:
            return any_nonzero(self._read(file, box) for file in self.files)

        return bounds_of(nonzero, self.files[0].shape, self._communicator)

    def measure(self, number: int, crop: Box, scheme: ChannelScheme) -> Normalization:
        """How channel `number` is normalised by its own voxels in `crop`."""
        masked = scheme.method == "zscore_nonzero"
        if masked:
            assert self.inside  # made here, on all ranks at once
        errors: list[Exception] = []

        def pieces() -> Iterator[np.ndarray]:
            try:
                for values, inside, _ in self._pieces(number, crop, masked):
                    yield values[inside] if masked else values
            except Exception as error:  # raised below, so that no rank waits for this one
                errors.append(error)

        try:
            rule = measure_by("zscore" if masked else scheme.method, pieces, self._communicator, scheme.span)
        except VolumeError as error:  # on all ranks: nothing was read on any
            errors.append(error)
        self._communicator.raise_together(errors[0] if errors else None)
        return rule

    def limits(
        self, number: int, crop: Box, rule: Normalization, order: Orientation, axis: int | None, masked: bool
    ) -> Range:
        """Range of the normalised voxels of a channel: of the whole crop, or of each slice across the network's `axis`.

        masked  voxels that are zero in all channels are 0, not normalised
        """
        own = 0 if axis is None else order.axes[axis]
        low, high = (np.full(crop.shape[own], end, np.float64) for end in (np.inf, -np.inf))
        with self._communicator.together():
            for values, inside, box in self._pieces(number, crop, masked):
                normal = rule.apply(values) * inside if masked else rule.apply(values)
                others = tuple(n for n in range(3) if n != own)
                planes = box.relative_to(crop).slices[own]
                low[planes] = np.minimum(low[planes], normal.min(axis=others))
                high[planes] = np.maximum(high[planes], normal.max(axis=others))
        low = self._communicator.reduce_all(low, "min").astype(np.float32)
        high = self._communicator.reduce_all(high, "max").astype(np.float32)
        if axis is None:
            return Range(low.min(keepdims=True), high.max(keepdims=True))
        return Range(low[::-1], high[::-1], axis) if order.flips[axis] else Range(low, high, axis)

    def _pieces(self, number: int, crop: Box, masked: bool) -> Iterator[tuple[np.ndarray, np.ndarray, Box]]:
        """Voxels of a channel, where they are normalised if not all are, and their box."""
        for box in _shared(crop, self._communicator):
            values = self._read(self.files[number], box)
            inside = self.inside.read(box) != 0 if masked else values
            yield values, inside, box

    def _read(self, file: Volume, box: Box) -> np.ndarray:
        values = file.read(box)
        check_finite(values, box, file.path)
        return values
