"""A picture of a mask on its scan: one axial, one coronal and one sagittal plane.

The caller gathers those three planes only (`gathering.py`), so drawing never needs the volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from volseg.drawing.planes import PLANES, Plane, PlaneName, choose_window
from volseg.files import replacing
from volseg.volumes.label_table import LabelTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BACKGROUND = "#101216"
TEXT = "#e8eaed"
FAINT = "#9aa0a6"

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
    dpi: int = 110,
) -> None:
    """Write a PNG of the three planes with the mask over them, whole or not at all.

    Radiological display: the patient's right at the left of the picture, sides marked, true proportions from the
    spacing. The mask is a see-through colour with an outline; where planes have a reference, the outline is that of
    the reference. The legend shows the labels that these planes hold. `window` is the grey range; without one,
    `choose_window` picks it. Raises VolsegError where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    low, high = window or choose_window([plane.image for plane in planes.values()])
    names = [name for name in PLANES if name in planes]
    sizes = [_size_mm(planes[name]) for name in names]
    widths = [max(w, 0.35 * h) for h, w in sizes]  # a thin plane still leaves room for its heading
    height = max(h for h, _ in sizes)
    figure_width = 13.0
    figure_height = min(max(figure_width * 0.89 * height / sum(widths), 2.6), 9.0) + 1.55
    figure = Figure(figsize=(figure_width, figure_height), dpi=dpi, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    bottom, top = 0.62 / figure_height, 1 - 0.88 / figure_height
    grid = figure.add_gridspec(
        1, len(names), width_ratios=widths, left=0.03, right=0.97, bottom=bottom, top=top, wspace=0.08
    )
    for column, name in enumerate(names):
        _draw_plane(figure.add_subplot(grid[0, column]), name, planes[name], labels, low, high)
    figure.text(0.03, 1 - 0.3 / figure_height, title, color=TEXT, fontsize=14, fontweight="bold", va="center")
    figure.text(0.97, 1 - 0.3 / figure_height, f"window {low:.4g} to {high:.4g}", color=FAINT, fontsize=9.5,
                va="center", ha="right")  # fmt: skip
    _draw_legend(figure, list(planes.values()), labels)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png", facecolor=BACKGROUND)


def _size_mm(plane: Plane) -> tuple[float, float]:
    rows, columns = plane.image.shape
    return rows * plane.spacing[0], columns * plane.spacing[1]


def _draw_plane(axes: Axes, name: PlaneName, plane: Plane, labels: LabelTable, low: float, high: float) -> None:
    from matplotlib.patheffects import withStroke

    image, mask = plane.image[::-1, ::-1], plane.mask[::-1, ::-1]
    outlined = mask if plane.reference is None else plane.reference[::-1, ::-1]
    height, width = _size_mm(plane)
    extent = (0.0, width, height, 0.0)
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
    axes.imshow(_overlay(mask, labels), extent=extent, interpolation="nearest")
    for label in np.unique(outlined):
        if label:
            outline = np.pad((outlined == label).astype(np.float32), 1)  # padded, so that lines close at the border
            dy, dx = plane.spacing
            x = (np.arange(outline.shape[1]) - 0.5) * dx
            y = (np.arange(outline.shape[0]) - 0.5) * dy
            axes.contour(x, y, outline, levels=[0.5], colors=[_colour(labels, label)], linewidths=1.3)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")
    axes.set_facecolor(BACKGROUND)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#3c4043")
    axes.set_title(f"{name}   {plane.index + 1} / {plane.count}", color=FAINT, fontsize=10.5, pad=6)
    edge = [withStroke(linewidth=2.5, foreground=BACKGROUND)]  # readable on bone as well
    left, right, above, below = SIDES[name]
    for text, x_at, y_at, ha, va in (
        (left, 0.015, 0.5, "left", "center"),
        (right, 0.985, 0.5, "right", "center"),
        (above, 0.5, 0.985, "center", "top"),
        (below, 0.5, 0.015, "center", "bottom"),
    ):
        style: dict[str, Any] = {"color": TEXT, "fontsize": 11, "fontweight": "bold", "path_effects": edge}
        axes.text(x_at, y_at, text, transform=axes.transAxes, ha=ha, va=va, **style)


def _overlay(mask: np.ndarray, labels: LabelTable) -> np.ndarray:
    """RGBA float32 [rows, columns, 4]: each label's colour, see-through; background fully so."""
    overlay = np.zeros((*mask.shape, 4), dtype=np.float32)
    for label in np.unique(mask):
        if label:
            overlay[mask == label] = (*_colour(labels, label), 0.33)
    return overlay


def _colour(labels: LabelTable, label: int) -> tuple[float, float, float]:
    red, green, blue = labels.colour(int(label))
    return red / 255, green / 255, blue / 255


def _draw_legend(figure: Any, planes: Sequence[Plane], labels: LabelTable) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    compared = any(plane.reference is not None for plane in planes)
    seen = [array for plane in planes for array in (plane.mask, plane.reference) if array is not None]
    present = set().union(*(np.unique(array).tolist() for array in seen))
    shown = [(value, name) for value, name in labels.foreground if value in present]
    if not shown:
        empty = "mask and reference are" if compared else "the mask is"
        figure.text(0.5, 0.28 / figure.get_figheight(), f"{empty} empty on these planes", color=FAINT, ha="center",
                    va="center", fontsize=10.5)  # fmt: skip
        return
    handles: list[Any] = [Patch(color=_colour(labels, value), label=name) for value, name in shown]
    if compared:
        handles += [
            Patch(color=FAINT, alpha=0.5, label="filled: predicted"),
            Line2D([], [], color=FAINT, label="lines: reference"),
        ]
    figure.legend(
        handles=handles, loc="lower center", ncol=min(len(handles), 10), frameon=False, labelcolor=TEXT, fontsize=10.5,
        bbox_to_anchor=(0.5, 0.05 / figure.get_figheight()), handlelength=1.1, handleheight=1.1, columnspacing=1.8,
    )  # fmt: skip
