"""The slices of a TIFF volume: the files of a folder in the natural order of their names, or the pages of one file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError, first_few
from volseg.geometry import format_triple
from volseg.volumes.audit import Dropped
from volseg.volumes.formats.tiff import SUFFIXES
from volseg.volumes.header_text import pick_channel
from volseg.volumes.tiff.library import opened
from volseg.volumes.tiff.segments import check_page


@dataclass(frozen=True)
class Page:
    """One slice: the file that holds it, and its number among the pages of that file's image."""

    path: Path
    number: int


def natural_key(name: str) -> tuple[list[int | str], str]:
    """A key that sorts slice2 before slice10, in any case of letters."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if n % 2 else part for n, part in enumerate(parts)], name


def slice_files(folder: Path) -> tuple[list[Path], list[Dropped]]:
    """The TIFF files in a folder in natural order, and what else lies there."""
    files, others = [], []
    for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if path.name.startswith("."):
            others.append(Dropped(path.name, "a hidden file"))
        elif path.is_file() and path.name.lower().endswith(SUFFIXES):
            files.append(path)
        else:
            others.append(Dropped(path.name, "no TIFF file"))
    return files, others


def gaps(names: Sequence[str]) -> list[str]:
    """Warnings of numbers that lack between those of names in natural order: of the one part in which names differ."""
    split = [re.split(r"(\d+)", name.lower()) for name in names]
    if len(names) < 3 or len({len(parts) for parts in split}) > 1:
        return []
    differing = [n for n in range(len(split[0])) if len({parts[n] for parts in split}) > 1]
    if len(differing) != 1 or differing[0] % 2 == 0:
        return []
    there = [int(parts[differing[0]]) for parts in split]
    steps = np.diff(there)
    usual = int(np.median(steps))
    if usual < 1 or (steps == usual).all():
        return []
    wide = [(there[n], there[n + 1]) for n in np.flatnonzero(steps != usual)]
    between = [f"{first} and {second}" for first, second in wide]
    return [f"the numbers in the names go on by {usual}, but not between {first_few(between)}: are slices missing?"]


def check_alike(files: Sequence[Path]) -> None:
    """Raise VolumeError, by name, unless each file holds one page, all of one size and type."""
    first: tuple[int, int, Any] | None = None
    for path in files:
        with opened(path) as file:
            if len(file.pages) != 1:
                raise VolumeError(
                    f"{path}: {len(file.pages)} pages, in a folder of {len(files)} TIFF files; a folder holds one "
                    "slice a file: give such a file by itself"
                )
            page = file.pages[0]
            check_page(page, path)
            here = int(page.imagelength), int(page.imagewidth), np.dtype(page.dtype)
        first = first or here
        if here != first:
            raise VolumeError(f"{path}: {_text(here)}, but {files[0].name} is {_text(first)}; move it away, or mend it")


def _text(kind: tuple[int, int, Any]) -> str:
    return f"{kind[0]}x{kind[1]} pixels of {kind[2].name}"


@dataclass(frozen=True)
class Pages:
    """The image in a file: its pages, and how they are one volume.

    numbers  of the pages of one channel, by slice
    warnings  what is taken for what
    """

    numbers: tuple[int, ...]
    channels: int
    warnings: tuple[str, ...]


def pages_of(file: Any, path: Path, channel: int | None) -> Pages:
    """The pages of `channel` in tifffile's `file`. Raises VolumeError where its axes are no volume's."""
    if len(file.series) != 1:
        sizes = first_few([format_triple(tuple(series.shape)) for series in file.series])
        raise VolumeError(f"{path}: {len(file.series)} images of different sizes ({sizes}); give a file of one volume")
    promised = (file.imagej_metadata or {}).get("images", 1) if file.is_imagej else 1
    series = file.series[0]
    if not isinstance(promised, int) or len(series) < promised:
        raise VolumeError(f"{path}: truncated: {len(series)} of {promised} images are there; copy it again")
    axes, shape = series.axes, tuple(int(side) for side in series.shape)
    if axes[-2:] != "YX" or len(axes) != len(shape):
        raise VolumeError(
            f"{path}: axes {axes} of {format_triple(shape)}; volseg reads grey slices of rows and columns"
        )
    lead = dict(zip(axes[:-2], shape[:-2], strict=True))
    long = [axis for axis, side in lead.items() if side > 1]
    depth = "Z" if "Z" in lead else next((axis for axis in long if axis != "C"), "")
    if channel is None and not depth and long:
        depth = "C"  # a stack that its writer numbered by channels, as tifffile does where nobody names the axes
    if [axis for axis in long if axis not in (depth, "C")]:
        raise VolumeError(f"{path}: axes {axes} of {format_triple(shape)}; give a file of one volume, not of several")
    channels = lead.get("C", 1) if depth != "C" else 1
    part = pick_channel(path, (lead.get(depth, 1), *shape[-2:]), channels, channel)
    numbers = np.arange(int(np.prod(list(lead.values()), dtype=object))).reshape(tuple(lead.values()) or (1,))
    if "C" in lead and depth != "C":
        numbers = numbers.take(part, axis=list(lead).index("C"))
    warnings = (f"its axis {depth} ({lead[depth]}) is taken for the slices",) if depth in ("T", "C") else ()
    return Pages(tuple(int(number) for number in numbers.ravel()), channels, warnings)
