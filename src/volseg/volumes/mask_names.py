"""Names of the files that go with a mask, and of the files a mask is split into, one a label."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from volseg.volumes.label_table import LabelTable
from volseg.volumes.writing import volume_suffix
from volseg.volumes.zarr.label_image import store_of

MOST_NAME_BYTES = 80  # of a label, in a file name that may have 255


def beside(mask: Path, ending: str) -> Path:
    """Where a file that goes with `mask` lies: ``scan_mask.nii.gz`` to ``scan_mask_statistics.csv``.

    What goes with a label inside a store lies beside the store: ``scan.zarr/labels/liver`` to
    ``scan_liver_statistics.csv``. ``ending`` has its leading underscore. Raises VolumeError where `mask` is no mask's
    name (see `writing.volume_suffix`).
    """
    suffix = volume_suffix(mask, mask=True)
    store = store_of(mask) if suffix == "" else None
    if store is not None:
        return store.with_name(f"{store.stem}_{mask.name}{ending}")
    return mask.with_name(mask.name[: len(mask.name) - len(suffix)] + ending)


def split_paths(mask: Path, labels: LabelTable) -> dict[int, Path]:
    """Value -> file for each label but the background: ``scan_mask.nii.gz`` to ``scan_mask_liver.nii.gz``.

    A name is made safe: letters and digits of any script stay, all else becomes ``_``; names that then agree (upper
    and lower case too) or that are empty get their value added. The files are of the mask's format, in its folder;
    a label in a store becomes several there. Raises VolumeError as `beside` does.
    """
    suffix = volume_suffix(mask, mask=True)
    base = mask.name[: len(mask.name) - len(suffix)]
    plain = {value: _safe(name) for value, name in labels.foreground}
    folded = [name.casefold() for name in plain.values()]
    taken = {name for name in folded if name and folded.count(name) == 1}
    paths = {}
    for value, name in plain.items():
        if not name or folded.count(name.casefold()) > 1:
            name = f"{name}_{value}".strip("_") if name else f"label_{value}"
            while name.casefold() in taken:
                name += f"_{value}"
            taken.add(name.casefold())
        paths[value] = mask.with_name(f"{base}_{name}{suffix}")
    return paths


def alone(labels: LabelTable, value: int) -> LabelTable:
    """The table of a mask of one label, 1 inside and 0 outside: its name and its colour."""
    name = next((name for name, number in labels.names.items() if number == value), f"label {value}")
    return LabelTable({name: 1}, {1: labels.colour(value)})


def _safe(name: str) -> str:
    text = unicodedata.normalize("NFC", name)
    kept = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in text)
    while "__" in kept:
        kept = kept.replace("__", "_")
    return kept.encode()[:MOST_NAME_BYTES].decode(errors="ignore").strip("_")
