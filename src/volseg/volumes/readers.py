"""Masks of several readers of one scan, and what a voxel of them is taken for.

The label that most readers give a voxel is the usual reference (LIDC-IDRI's at half of its four readers, Armato et al.,
Medical Physics 2011). A reader drawn at random each step keeps the readers' disagreement in what a network learns
(Jensen et al., "Improving uncertainty estimation in convolutional neural networks using inter-rater agreement", MICCAI
2019).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from volseg.geometry import Box
from volseg.volumes.canonical import in_order_of
from volseg.volumes.checks import check_same_grid
from volseg.volumes.volume import Volume

READER_END = re.compile(
    r"[_-](?:reader|rater|annotator|observer|expert|seg|label|gt)(?:[_-]?\d+|[_-][a-z])$", re.IGNORECASE
)
"""What the name of a reader's mask has behind the name of the scan."""


def by_scan(masks: Iterable[str], scans: Collection[str]) -> dict[str, list[str]]:
    """Names of masks by the name of their scan: ``case_reader1`` and ``case_reader2`` are of ``case``.

    scans  names of scans; a mask whose whole name is that of one is that one's

    Masks of a scan are in the order of their names, one with the scan's own name first.
    """
    grouped: dict[str, list[str]] = {}
    for name in sorted(masks):
        scan = READER_END.sub("", name)
        home = scan if name not in scans and scan in scans else name
        grouped.setdefault(home, []).append(name)
    return {scan: sorted(names, key=lambda name: (name != scan, name)) for scan, names in grouped.items()}


class MajorityLabels(Volume):
    """The label that most masks of one scan give a voxel; of equals that of the mask that comes first.

    A mask that says of a voxel that nobody has labelled it does not count there, unless all say so.
    """

    def __init__(self, masks: Sequence[Volume], labels: Mapping[str, int], ignore: int | None) -> None:
        """masks: of two readers or more, the first of which says in which voxel order this is read.

        Raises VolumeError where they do not lie on one grid; a read raises it where one holds what is none of `labels`.
        """
        first = masks[0]
        self._masks = [in_order_of(mask, first.space) for mask in masks]
        for mask in self._masks[1:]:
            check_same_grid(first, mask, "labels of another reader")
        self.path, self.space, self.format, self.audit = first.path, first.space, first.format, first.audit
        self.dtype = np.result_type(*(mask.dtype for mask in masks))
        self.whole_slices = any(mask.whole_slices for mask in self._masks)
        self.rising_slices = all(mask.rising_slices for mask in self._masks)
        self._labels, self._ignore = labels, ignore

    def close(self) -> None:
        for mask in self._masks:
            mask.close()

    def read(self, box: Box) -> np.ndarray:
        from volseg.volumes.dataset.description import check_labels

        several = []
        for mask in self._masks:
            values = mask.read(box)
            check_labels(values, self._labels, mask.path, self._ignore)
            several.append(values.astype(self.dtype, copy=False))
        return majority(several, self._ignore)


def majority(masks: Sequence[np.ndarray], ignore: int | None = None) -> np.ndarray:
    """The value that most of `masks` [...] have, voxel by voxel; of equals that of the earlier mask.

    ignore  a value that counts only where all have it
    """
    winner, most = masks[0].copy(), np.full(masks[0].shape, -1, np.int16)
    for mask in masks:
        votes = np.zeros(mask.shape, np.int16)
        for other in masks:
            votes += mask == other
        if ignore is not None:
            votes[mask == ignore] = 0
        better = votes > most
        most[better], winner[better] = votes[better], mask[better]
    return winner
