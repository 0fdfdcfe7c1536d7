"""Open labels, whatever carries them, on the grid of the image that they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box, format_triple
from volseg.volumes.audit import Audit
from volseg.volumes.canonical import in_order_of
from volseg.volumes.checks import check_same_grid
from volseg.volumes.formats.dicom import DICOM
from volseg.volumes.formats.registry import file_of
from volseg.volumes.label_files import label_table_of
from volseg.volumes.label_table import LabelTable
from volseg.volumes.mask_folder import is_mask_folder, open_mask_folder, table_of_folder
from volseg.volumes.mask_values import Remark, Tidied, check_bounded, no_remark, tidied
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.overlap import Overlap
from volseg.volumes.placing import Size
from volseg.volumes.reading import format_of, open_volume
from volseg.volumes.volume import Volume

LARGEST_OF_FLOATS = 32767
REMEDY = "--resample-labels brings them there, by the nearest voxel"


def open_labels(
    path: str | Path, image: Volume, *, resample: bool = False, overlap: Overlap = "smallest",
    remark: Remark = no_remark,
) -> tuple[Volume, LabelTable | None]:  # fmt: skip
    """The labels at `path` on the grid and in the voxel order of `image`, and their names where the file has them.

    path      a mask (a volume), a folder of one mask a structure, or a DICOM SEG or RTSTRUCT: the file, or a folder
              with one such file
    resample  bring a mask that lies on another grid onto the image's, by the nearest voxel; ``audit.fixes`` says so
    overlap   which structure has a voxel of several
    remark    takes what only reading brings up: that labels were rounded, NaN taken as background, masks overlap

    The volume is of integers, 0 is background; floats are accepted where they are whole (see `mask_values`). Contours
    have no grid of their own, so `resample` means nothing to an RTSTRUCT.

    Raises VolumeError where there are no labels, or they lie on another grid and `resample` is not asked for; and, when
    they are read, where they are negative or not whole.
    """
    path = Path(path)
    if not file_of(path).exists():
        raise VolumeError(f"{path}: no such file or folder")
    if is_mask_folder(path):
        fit = partial(_fitted, image=image, resample=resample)
        return open_mask_folder(path, overlap, remark, fit), table_of_folder(path)
    if format_of(path) is DICOM:
        return _open_dicom(path, image, resample, overlap)
    options = OpenOptions(size_if_unsaid=image.space.spacing, overlap=overlap, remark=remark)
    mask = open_volume(path, options)
    return _fitted(WholeNumbers(mask, remark), image, resample), label_table_of(path)


def open_mask(path: str | Path, remark: Remark = no_remark, size: Size | None = None) -> Volume:
    """The mask, or folder of one mask a structure, at `path` on its own grid, its values as `mask_values` has them.

    size  sides of a voxel, mm along D, H, W, of a file that does not say

    What is no label is left in it, for a reader that lists all that is wrong. Raises VolumeError as `open_volume` does.
    """
    path = Path(path)
    if not is_mask_folder(path):
        mask = open_volume(path, OpenOptions(size_if_unsaid=size, remark=remark))
        return mask if mask.dtype.kind in "iu" else Tidied(mask, remark)
    masks = open_mask_folder(path, remark=remark)
    for warning in masks.audit.warnings:
        remark(warning)
    return masks


def _fitted(mask: Volume, image: Volume, resample: bool) -> Volume:
    return _on_grid(in_order_of(mask, image.space), image, resample)


def _on_grid(mask: Volume, image: Volume, resample: bool) -> Volume:
    if not resample or image.space.matches(mask.space):
        check_same_grid(image, mask, "labels", REMEDY)
        return mask
    from volseg.volumes.resampling import resampled

    fix = f"labels resampled by nearest voxel from {_grid(mask)} to {_grid(image)}"
    audit = replace(mask.audit, fixes=(*mask.audit.fixes, fix))
    return WholeNumbers(resampled(mask, image.space, "nearest"), audit=audit)


def _grid(volume: Volume) -> str:
    sides = format_triple(tuple(f"{side:.4g}" for side in volume.space.spacing))
    return f"{format_triple(volume.shape)} voxels of {sides} mm"


def _open_dicom(path: Path, image: Volume, resample: bool, overlap: Overlap) -> tuple[Volume, LabelTable]:
    from volseg.volumes.dicom.labels.objects import STRUCTURES, find_label_object

    file, kind = find_label_object(path)
    if kind == STRUCTURES:
        from volseg.volumes.dicom.labels.structures import open_structures

        return open_structures(file, image, overlap)
    from volseg.volumes.dicom.labels.segmentation import open_segmentation

    try:
        return open_segmentation(file, kind, image, overlap=overlap)
    except VolumeError:
        if not resample:
            raise
    mask, table = open_segmentation(file, kind, image, own_grid=True, overlap=overlap)
    return _on_grid(mask, image, resample), table


class WholeNumbers(Volume):
    """A mask as integers: some tools store them as floats. Refused when read: fractions, infinity, negative values."""

    def __init__(self, mask: Volume, remark: Remark = no_remark, audit: Audit | None = None) -> None:
        self.path, self.space, self.format, self.whole_slices = mask.path, mask.space, mask.format, mask.whole_slices
        self.dtype = mask.dtype if mask.dtype.kind in "iu" else np.dtype(np.int16)
        self.audit = audit or mask.audit
        self._mask, self._remark = mask, remark

    def read(self, box: Box) -> np.ndarray:
        return self._checked(self._mask.read(box))

    def slabs(self, depth: int = 16) -> Iterator[tuple[Box, np.ndarray]]:
        """As the mask's own, in the order of its file."""
        for box, values in self._mask.slabs(depth):
            yield box, self._checked(values)

    def close(self) -> None:
        self._mask.close()

    def _checked(self, values: np.ndarray) -> np.ndarray:
        values = tidied(values, self._remark)
        check_bounded(values, self.path)
        low, high = values.min(initial=0), values.max(initial=0)
        if low < 0:
            raise VolumeError(f"{self.path}: holds {low:g}; labels are 0 (background) and above. Is this an image?")
        if values.dtype == self.dtype:
            return values
        whole = values.astype(self.dtype) if high <= LARGEST_OF_FLOATS else None
        if whole is None or (whole != values).any():
            fraction = values[values != np.floor(values)]
            found = fraction[0] if fraction.size else high
            raise VolumeError(
                f"{self.path}: labels must be whole numbers up to {LARGEST_OF_FLOATS}; it holds {found:g}; store them "
                "again as integers without a scale factor, and a probability by the threshold that you choose"
            )
        return whole
