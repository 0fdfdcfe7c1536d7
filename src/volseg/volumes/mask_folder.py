"""A folder of masks, one a structure, as one volume of labels: ``segmentations/liver.nii.gz``, ``spleen.nii.gz``, ...

TotalSegmentator writes its results so, and its data set is laid out so. Each file is a class by its name; values follow
the sorted names, so that folders with the same files mean the same by the same values. Nothing is held but what a box
needs of one mask after the other; where masks overlap, those are counted whole once, to tell the smallest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError, first_few
from volseg.geometry import Box
from volseg.volumes.audit import Audit, Dropped
from volseg.volumes.file_names import FILE_ENDINGS, ending_of
from volseg.volumes.formats.zarr import is_zarr_store
from volseg.volumes.label_table import LabelTable
from volseg.volumes.mask_values import Remark, no_remark, tidied
from volseg.volumes.overlap import Overlap, overlap_warning
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Volume

INSIDE = (1, 255)
BACKGROUND = "background"
Fit = Callable[[Volume], Volume]


def is_mask_folder(path: Path) -> bool:
    """Whether volumes lie in a folder, which is no zarr itself."""
    return (
        path.is_dir()
        and not is_zarr_store(path)
        and any(ending_of(file.name) and not file.name.startswith(".") for file in path.iterdir())
    )


def mask_files(folder: Path) -> tuple[dict[str, Path], list[Dropped]]:
    """The masks by their names, sorted, and what else lies there. Raises VolumeError where two have one name."""
    files: dict[str, Path] = {}
    others = []
    for file in sorted(folder.iterdir()):
        ending = ending_of(file.name)
        name = file.name[: len(file.name) - len(ending)]
        if file.name.startswith("."):
            others.append(Dropped(file.name, "a hidden file"))
        elif not ending:
            others.append(Dropped(file.name, "no mask of a format that is read"))
        elif name == BACKGROUND:
            others.append(Dropped(file.name, "the background is what no other mask has"))
        elif name in files:
            raise VolumeError(f"{folder}: {files[name].name} and {file.name} are both mask {name}; keep one of them")
        else:
            files[name] = file
    if not files:
        raise VolumeError(f"{folder}: no mask in it ({', '.join(FILE_ENDINGS)})")
    return dict(sorted(files.items())), others


def table_of_folder(folder: Path) -> LabelTable:
    """The names of a folder's masks; values are 1, 2, ... in their order. Raises VolumeError as `mask_files` does."""
    return LabelTable({name: value for value, name in enumerate(mask_files(folder)[0], 1)})


def open_mask_folder(
    folder: Path, overlap: Overlap = "smallest", remark: Remark = no_remark, fit: Fit | None = None
) -> Volume:  # fmt: skip
    """The masks in `folder` as one volume of labels. Only headers are read.

    overlap  which mask has a voxel of several; such masks are told to `remark`
    fit      brings each mask onto one grid, or refuses it; without it they must agree with the first

    Raises VolumeError where masks lie on different grids, and, when they are read, where one holds anything but 0 and 1
    (or 255), or where masks overlap that must not.
    """
    files, others = mask_files(folder)
    masks: list[Volume] = []
    for file in files.values():
        mask = open_volume(file)
        masks.append(fit(mask) if fit is not None else _like(mask, masks[0] if masks else None))
    warnings = Counter(text for mask in masks for text in mask.audit.warnings)
    strange = [item.name for item in others if not item.name.startswith(".")]
    audit = Audit(
        used=tuple(file.name for file in files.values()),
        inputs=tuple(path for mask in masks for path in mask.audit.inputs),
        dropped=tuple(others),
        fixes=tuple(dict.fromkeys(fix for mask in masks for fix in mask.audit.fixes)),
        warnings=(
            *(
                text if len(masks) == 1 else f"{text} ({count} of {len(masks)} masks)"
                for text, count in warnings.items()
            ),
            *([f"left out, for they are no masks: {first_few(strange)}"] if strange else []),
        ),
        facts=(("labels from", f"a folder of {len(masks)} masks"),),
    )
    return FolderOfMasks(folder, dict(enumerate(zip(files, masks, strict=True), 1)), overlap, remark, audit)


class FolderOfMasks(Volume):
    """Masks on one grid, by value with their names; a voxel of several goes to one by the rule."""

    format = "folder of masks"

    def __init__(
        self, path: Path, masks: dict[int, tuple[str, Volume]], overlap: Overlap, remark: Remark, audit: Audit
    ) -> None:  # fmt: skip
        volumes = [mask for _, mask in masks.values()]
        self.path, self.space, self.audit = path, volumes[0].space, audit
        self.dtype = np.dtype(np.uint8 if len(masks) <= 255 else np.uint16)
        self.whole_slices = any(mask.whole_slices for mask in volumes)
        self.rising_slices = all(mask.rising_slices for mask in volumes)
        self._masks, self._overlap, self._remark = masks, overlap, remark
        self._sizes: dict[int, int] = {}

    def read(self, box: Box) -> np.ndarray:
        out = np.zeros(box.shape, self.dtype)
        for value, (_, mask) in self._masks.items():
            inside = self._inside(mask, box)
            both = inside & (out != 0)
            for other in np.unique(out[both]).tolist():
                if not self._is_over(value, other):
                    inside &= out != other
            out[inside] = value
        return out

    def close(self) -> None:
        for _, mask in self._masks.values():
            mask.close()

    def _inside(self, mask: Volume, box: Box) -> np.ndarray:
        return _marked(tidied(mask.read(box), self._remark), mask.path)

    def _is_over(self, value: int, other: int) -> bool:
        """Whether mask `value` has the voxels that it shares with the mask `other` before it."""
        over = self._overlap == "last" or self._size(value) <= self._size(other)
        pair = (value, other) if over else (other, value)
        for line in overlap_warning(
            self.path, [(self._masks[pair[0]][0], self._masks[pair[1]][0])], self._overlap, "masks"
        ):
            self._remark(line)
        return over

    def _size(self, value: int) -> int:
        """The voxels of a mask, counted once, beside what is being read of it."""
        if value not in self._sizes and self._overlap == "smallest":
            mask = self._masks[value][1]
            again = open_volume(mask.path)
            self._sizes[value] = sum(int(_marked(tidied(values), mask.path).sum()) for _, values in again.slabs())
            again.close()
        return self._sizes.get(value, 0)


def _marked(values: np.ndarray, path: Path) -> np.ndarray:
    inside: np.ndarray = values != 0
    if inside.any():
        marked = values[inside]
        low, high = float(marked.min()), float(marked.max())
        if low != high or low not in INSIDE:
            what = f"{low:g}" if low == high else f"{low:g} and {high:g}"
            raise VolumeError(
                f"{path}: holds {what}; in a folder of masks each file holds one structure, 1 (or 255) inside and 0 "
                "outside: give a file of several labels by itself, or move it out of the folder"
            )
    return inside


def _like(mask: Volume, first: Volume | None) -> Volume:
    from volseg.volumes.canonical import in_order_of
    from volseg.volumes.checks import check_same_grid

    if first is None:
        return mask
    mask = in_order_of(mask, first.space)
    check_same_grid(first, mask, "a mask", "masks of one folder must lie on one grid")
    return mask
