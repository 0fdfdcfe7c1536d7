"""A picture of a mask on its scan: one axial, one coronal and one sagittal plane.

The caller gathers those three planes only (`gathering.py`), so drawing never needs the volume. Pillow draws: training
does it while it holds all else, and matplotlib keeps hundreds of MiB of such figures until they are collected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from volseg.drawing.planes import PLANES, Plane, PlaneName, choose_window
from volseg.files import replacing
from volseg.volumes.label_table import Colour, LabelTable

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

BACKGROUND: Colour = (16, 18, 22)
TEXT: Colour = (232, 234, 237)
FAINT: Colour = (154, 160, 166)
FRAME: Colour = (60, 64, 67)
TINT = 0.33
"""How much of its colour a label has over the image."""

WIDTH = 1430
NARROWEST = 0.35  # of its height: a thin plane still leaves room for its heading

# What lies at the left, right, top and bottom of each plane once both its axes are flipped for display.
SIDES: dict[PlaneName, tuple[str, str, str, str]] = {
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "S", "I"),
    "sagittal": ("A", "P", "S", "I"),
}


def draw_preview(
    path: str | Path,
    planes: Mapping[PlaneName, Plane],
    labels: LabelTable,
    title: str,
    window: tuple[float, float] | None = None,
    width: int = WIDTH,
) -> None:
    """Write a PNG of the three planes with the mask over them, whole or not at all.

    Radiological display: the patient's right at the left of the picture, sides marked, true proportions from the
    spacing. The mask is a see-through colour with an outline; where planes have a reference, the outline is that of
    the reference. The legend shows the labels that these planes hold. `window` is the grey range; without one,
    `choose_window` picks it. `width` is the picture's, in pixels. Raises VolsegError where the file cannot be written.
    """
    from PIL import Image, ImageDraw

    low, high = window or choose_window([plane.image for plane in planes.values()])
    shown = [(name, planes[name]) for name in PLANES if name in planes]
    unit = width / WIDTH
    margin, gap = round(43 * unit), round(28 * unit)
    sizes = [_size_mm(plane) for _, plane in shown]
    columns = [max(w, NARROWEST * h) for h, w in sizes]
    scale = (width - 2 * margin - gap * (len(shown) - 1)) / sum(columns)
    height = max(h for h, _ in sizes)
    scale = min(scale, 0.55 * width / height)
    top, bottom, middle = round(97 * unit), round(66 * unit), max(round(scale * height), round(110 * unit))
    picture = Image.new("RGB", (width, top + middle + bottom), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    left = (width - sum(columns) * scale - gap * (len(shown) - 1)) / 2
    for (name, plane), (h, w), column in zip(shown, sizes, columns, strict=True):
        size = max(1, round(h * scale)), max(1, round(w * scale))
        at = round(left + (column * scale - size[1]) / 2), top + (middle - size[0]) // 2
        picture.paste(Image.fromarray(_painted(plane, labels, low, high, size)), at)
        _frame(draw, name, plane, at, size, unit)
        left += column * scale + gap
    draw.text((margin, 33 * unit), title, TEXT, _font(20 * unit, bold=True), "lm")
    draw.text((width - margin, 33 * unit), f"window {low:.4g} to {high:.4g}", FAINT, _font(14 * unit), "rm")
    _legend(draw, (width / 2, top + middle + bottom / 2), [plane for _, plane in shown], labels, unit)
    with replacing(Path(path)) as temporary:
        picture.save(temporary, format="png", compress_level=2)  # more takes several times as long


def _size_mm(plane: Plane) -> tuple[float, float]:
    rows, columns = plane.image.shape
    return rows * plane.spacing[0], columns * plane.spacing[1]


def _painted(plane: Plane, labels: LabelTable, low: float, high: float, size: tuple[int, int]) -> np.ndarray:
    """The plane as it is looked at, [*size, 3] uint8: the first voxel at the lower right."""
    grey = np.clip((np.nan_to_num(plane.image.astype(np.float32), nan=low) - low) / (high - low), 0, 1)
    image = _resized((grey * 255).astype(np.uint8), size, smooth=True)
    mask = _resized(plane.mask, size)
    outlined = mask if plane.reference is None else _resized(plane.reference, size)
    colours = np.array([labels.colour(label) for label in range(256)], dtype=np.float32)
    tint = np.where(mask > 0, TINT, 0.0).astype(np.float32)[..., None]
    painted: np.ndarray = image[..., None] * (1 - tint) + colours[mask] * tint
    edge = _edges(outlined)
    painted[edge] = colours[outlined[edge]]
    return painted.round().astype(np.uint8)


def _resized(plane: np.ndarray, size: tuple[int, int], smooth: bool = False) -> np.ndarray:
    from PIL import Image

    flipped = Image.fromarray(np.ascontiguousarray(plane[::-1, ::-1].astype(np.uint8)))
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    resized: np.ndarray = np.asarray(flipped.resize((size[1], size[0]), how))
    return resized


def _edges(labels: np.ndarray) -> np.ndarray:
    """The pixels of each label that are next to another, or at the border."""
    around = np.pad(labels, 1)
    inner = around[1:-1, 1:-1]
    beside = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    found: np.ndarray = (inner > 0) & np.any([other != inner for other in beside], axis=0)
    return found


def _frame(
    draw: Any, name: PlaneName, plane: Plane, at: tuple[int, int], size: tuple[int, int], unit: float
) -> None:  # fmt: skip
    """What is written around and on a plane: which it is, and what lies at its sides."""
    (x, y), (h, w) = at, size
    draw.rectangle((x - 1, y - 1, x + w, y + h), outline=FRAME)
    heading = f"{name}   {plane.index + 1} / {plane.count}"
    draw.text((x + w / 2, y - 14 * unit), heading, FAINT, _font(15 * unit), "mm")
    left, right, above, below = SIDES[name]
    inset, font = 6 * unit, _font(16 * unit, bold=True)
    for text, place, anchor in (
        (left, (x + inset, y + h / 2), "lm"),
        (right, (x + w - inset, y + h / 2), "rm"),
        (above, (x + w / 2, y + inset), "mt"),
        (below, (x + w / 2, y + h - inset), "mb"),
    ):  # the stroke lets them be read on bone as well
        draw.text(place, text, TEXT, font, anchor, stroke_width=max(1, round(2 * unit)), stroke_fill=BACKGROUND)


def _legend(
    draw: Any, centre: tuple[float, float], planes: Sequence[Plane], labels: LabelTable, unit: float
) -> None:  # fmt: skip
    compared = any(plane.reference is not None for plane in planes)
    seen = [array for plane in planes for array in (plane.mask, plane.reference) if array is not None]
    present = set().union(*(np.unique(array).tolist() for array in seen))
    named: list[tuple[Colour | None, str]] = [
        (labels.colour(value), name) for value, name in labels.foreground if value in present
    ]
    if not named:
        empty = "mask and reference are" if compared else "the mask is"
        named = [(None, f"{empty} empty on these planes")]
    elif compared:
        named.append((None, "filled: predicted, lines: reference"))
    font, box, gap = _font(15 * unit), 15 * unit, 26 * unit
    lengths = [(box * 1.5 if colour else 0) + draw.textlength(text, font) for colour, text in named]
    x, y = centre[0] - (sum(lengths) + gap * (len(named) - 1)) / 2, centre[1]
    x = max(x, gap)  # many labels begin at the left, and go on beyond the right
    for (colour, text), length in zip(named, lengths, strict=True):
        if colour is not None:
            draw.rectangle((x, y - box / 2, x + box, y + box / 2), fill=colour)
        draw.text((x + length, y), text, TEXT if colour else FAINT, font, "rm")
        x += length + gap


@cache
def _font(size: float, bold: bool = False) -> FreeTypeFont | ImageFont:
    """DejaVu Sans as matplotlib brings it, whose letters are those of most languages; Pillow's own without it."""
    from PIL import ImageFont

    found = find_spec("matplotlib")
    places = [] if found is None else list(found.submodule_search_locations or [])
    for place in places:
        file = Path(place) / "mpl-data" / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)
