"""Where a scan has voxels other than zero, with the zeros that lie within them.

nnU-Net's mask for normalisation (`create_nonzero_mask`): voxels of which one channel at least is not zero, and of the
zeros those from which no path over faces of zeros leads out of the volume, as `scipy.ndimage.binary_fill_holes` has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.geometry import Box
from volseg.volumes.checks import check_finite
from volseg.volumes.components import connected_components
from volseg.volumes.volume import Volume

_PLANES = 8


def any_nonzero(channels: Iterable[np.ndarray]) -> np.ndarray:
    """Where one of the channels, [d, h, w] each, is other than zero."""
    there: np.ndarray = np.logical_or.reduce([values != 0 for values in channels])
    return there


class FilledMask(Volume):
    """1 at a scan's voxels other than zero and at zeros that lie within them, else 0; uint8, in the file's order.

    To make one is collective: the ranks share the planes, of which each holds its own then, and every rank gets to know
    the runs of zeros that lie within, 16 bytes for each. Raises VolumeError, on all ranks, where a channel cannot be
    read.
    """

    def __init__(self, files: Sequence[Volume], communicator: Communicator) -> None:
        """files: the channels, on one grid."""
        first = files[0]
        self.path, self.format, self.dtype, self.space = first.path, first.format, np.dtype(np.uint8), first.space
        self.whole_slices, self.rising_slices = first.whole_slices, first.rising_slices
        self._files = files
        depth, h, w = self.shape
        cuts = [depth * rank // communicator.size for rank in range(communicator.size + 1)]
        boxes = [Box((low, 0, 0), (high, h, w)) for low, high in pairwise(cuts)]
        zeros = np.zeros(boxes[communicator.rank].shape, np.uint8)
        with communicator.together():
            for start in range(0, len(zeros), _PLANES):
                part = zeros[start : start + _PLANES]
                plane = cuts[communicator.rank] + start
                part[...] = ~any_nonzero(self._read(Box((plane, 0, 0), (plane + len(part), h, w))))
        runs = _runs_within(zeros, boxes, communicator)
        self._runs = np.concatenate(communicator.gather_all(runs))  # rising, as the ranks' planes do

    def close(self) -> None:
        for file in self._files:
            file.close()

    def read(self, box: Box) -> np.ndarray:
        inside = any_nonzero(self._read(box))
        low, high = np.searchsorted(self._runs[:, 0], (box.start[0], box.stop[0]))
        for d, h, start, stop in self._runs[low:high].tolist():
            if box.start[1] <= h < box.stop[1]:
                row = inside[d - box.start[0], h - box.start[1]]
                row[max(0, start - box.start[2]) : max(0, stop - box.start[2])] = True
        return inside.astype(np.uint8)

    def _read(self, box: Box) -> Iterable[np.ndarray]:
        for file in self._files:
            values = file.read(box)
            check_finite(values, box, file.path)
            yield values


def _runs_within(zeros: np.ndarray, boxes: Sequence[Box], communicator: Communicator) -> np.ndarray:
    """Runs of this rank's zeros that no path of zeros joins to a face of the volume. Collective.

    zeros  [d, h, w] uint8, 1 at zeros
    boxes  by rank: planes of the volume
    out    [runs, 4] int32: plane and row in the volume, first column, and the one behind the last; rising
    """
    box, depth = boxes[communicator.rank], boxes[-1].stop[0]
    components = connected_components(zeros, boxes, communicator, 6)
    labels = components.labels
    faces = [labels[:, :1], labels[:, -1:], labels[:, :, :1], labels[:, :, -1:]]
    faces += [labels[:1]] * (box.start[0] == 0) + [labels[-1:]] * (box.stop[0] == depth)
    out_here = np.zeros(len(components.value), np.int64)
    for face in faces:
        out_here[np.unique(face)] = 1
    within = components.totals(out_here) == 0
    within[0] = False
    found = []
    for plane, some in enumerate(labels):
        padded = np.zeros((some.shape[0], some.shape[1] + 2), np.int8)
        padded[:, 1:-1] = within[some]
        steps = np.diff(padded, axis=1)
        rows, starts = np.nonzero(steps == 1)
        _, stops = np.nonzero(steps == -1)
        found.append(np.stack([np.full(len(rows), plane + box.start[0]), rows, starts, stops], 1).astype(np.int32))
    return np.concatenate(found) if found else np.zeros((0, 4), np.int32)
