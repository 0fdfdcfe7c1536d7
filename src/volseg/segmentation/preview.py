"""A picture of a mask on its scan: one axial, one coronal and one sagittal plane, as a radiologist looks at them.

The caller picks planes from counts summed over ranks and gathers those three planes only, so drawing never needs
the volume. Planes come in canonical order (RAS+: D to superior, H to anterior, W to right).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from volseg.files import replacing
from volseg.geometry import Triple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PlaneName = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[PlaneName, PlaneName, PlaneName] = ("axial", "coronal", "sagittal")  # cut across D, H, W

SOFT_TISSUE = (-160.0, 240.0)  # HU: the usual abdominal window, level 40, width 400
BACKGROUND = "#101216"
TEXT = "#e8eaed"
FAINT = "#9aa0a6"
# Bright on grey, told apart by those who see red and green alike (after Okabe and Ito, and Tol's "light").
COLOURS = ("#ff6f61", "#4fc3f7", "#ffd54f", "#81e6a0", "#ce93d8", "#ffa94d", "#f48fb1", "#4dd0c4", "#c5e063", "#9fa8ff")

# What lies at the left, right, top and bottom of each plane once both its axes are flipped for display.
SIDES: dict[PlaneName, tuple[str, str, str, str]] = {
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "S", "I"),
    "sagittal": ("A", "P", "S", "I"),
}


@dataclass(frozen=True)
class PreviewPlane:
    """One plane cut from the canonical volume.

    image     [rows, columns] intensities: H x W for axial, D x W for coronal, D x H for sagittal
    mask      the same shape, labels
    spacing   (row, column) distance in mm
    index     which plane it is, counted from 0 along the axis it cuts
    count     how many planes that axis has
    """

    image: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float]
    index: int
    count: int


def plane_counts(mask: np.ndarray, labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels of each foreground label on each plane of a (block of a) mask.

    Returns int64 arrays [labels - 1, D], [labels - 1, H], [labels - 1, W]. A rank adds its block's counts at the
    block's place in arrays of the whole volume's sides; the sum over ranks goes to `pick_planes`.
    """
    per_axis = tuple(np.zeros((labels - 1, n), dtype=np.int64) for n in mask.shape)
    for label in range(1, labels):
        found = mask == label
        per_axis[0][label - 1] = found.sum(axis=(1, 2))
        per_axis[1][label - 1] = found.sum(axis=(0, 2))
        per_axis[2][label - 1] = found.sum(axis=(0, 1))
    return per_axis[0], per_axis[1], per_axis[2]


def pick_planes(counts: Sequence[np.ndarray]) -> Triple:
    """The plane of each axis that shows the labels best: index along D, H and W.

    Each label counts by its share of its own largest section, so a small organ weighs as much as a large one; equal
    planes go to the middle one, and so does an empty mask.
    """
    d, h, w = (_best_plane(np.asarray(c, dtype=np.float64)) for c in counts)
    return d, h, w


def _best_plane(counts: np.ndarray) -> int:
    largest = counts.max(axis=1, keepdims=True) if len(counts) else np.zeros((0, 1))
    score = (counts / np.maximum(largest, 1.0)).sum(axis=0)
    middle = (counts.shape[1] - 1) / 2
    return int(min(np.flatnonzero(score >= score.max() - 1e-9), key=lambda i: abs(i - middle)))


def choose_window(images: Sequence[np.ndarray]) -> tuple[float, float]:
    """The grey window (low, high): soft tissue where the values look like HU of a body in air, else percentiles."""
    values = np.concatenate([image[np.isfinite(image)].ravel().astype(np.float64) for image in images])
    if not values.size:
        return 0.0, 1.0
    low, median, high = np.percentile(values, [1.0, 50.0, 99.0])
    if low < -500 and -1100 < median < 1000 and 20 < high < 4000:
        return SOFT_TISSUE
    low, high = np.percentile(values, [0.5, 99.5])
    return float(low), float(high if high > low else low + 1.0)


def draw_preview(
    path: str | Path,
    planes: Mapping[PlaneName, PreviewPlane],
    label_names: Mapping[str, int],
    title: str,
    window: tuple[float, float] | None = None,
) -> None:
    """Write a PNG of the three planes with the mask over them, whole or not at all.

    Radiological display: the patient's right at the left of the picture, sides marked, true proportions from the
    spacing. `label_names` maps name -> value; the legend shows the labels that these planes hold. `window` is the
    grey range; without one, `choose_window` picks it. Raises VolsegError where the file cannot be written.
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
    figure = Figure(figsize=(figure_width, figure_height), dpi=110, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    bottom, top = 0.62 / figure_height, 1 - 0.88 / figure_height
    grid = figure.add_gridspec(
        1, len(names), width_ratios=widths, left=0.03, right=0.97, bottom=bottom, top=top, wspace=0.08
    )
    for column, name in enumerate(names):
        _draw_plane(figure.add_subplot(grid[0, column]), name, planes[name], low, high)
    figure.text(0.03, 1 - 0.3 / figure_height, title, color=TEXT, fontsize=14, fontweight="bold", va="center")
    figure.text(0.97, 1 - 0.3 / figure_height, f"window {low:.4g} to {high:.4g}", color=FAINT, fontsize=9.5,
                va="center", ha="right")  # fmt: skip
    present = set().union(*(np.unique(plane.mask).tolist() for plane in planes.values())) - {0}
    _draw_legend(figure, {name: value for name, value in label_names.items() if value in present})
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png", facecolor=BACKGROUND)


def label_colour(label: int) -> str:
    """The colour of a foreground label, as ``#rrggbb``; they repeat after ten."""
    return COLOURS[(label - 1) % len(COLOURS)]


def _size_mm(plane: PreviewPlane) -> tuple[float, float]:
    rows, columns = plane.image.shape
    return rows * plane.spacing[0], columns * plane.spacing[1]


def _draw_plane(axes: Axes, name: PlaneName, plane: PreviewPlane, low: float, high: float) -> None:
    from matplotlib.patheffects import withStroke

    image, mask = plane.image[::-1, ::-1], plane.mask[::-1, ::-1]
    height, width = _size_mm(plane)
    extent = (0.0, width, height, 0.0)
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
    axes.imshow(_overlay(mask), extent=extent, interpolation="nearest")
    for label in np.unique(mask):
        if label:
            outline = np.pad((mask == label).astype(np.float32), 1)  # padded, so that lines close at the border
            dy, dx = plane.spacing
            x = (np.arange(outline.shape[1]) - 0.5) * dx
            y = (np.arange(outline.shape[0]) - 0.5) * dy
            axes.contour(x, y, outline, levels=[0.5], colors=[label_colour(int(label))], linewidths=1.3)
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


def _overlay(mask: np.ndarray) -> np.ndarray:
    """RGBA float32 [rows, columns, 4]: each label's colour, see-through; background fully so."""
    from matplotlib.colors import to_rgba

    overlay = np.zeros((*mask.shape, 4), dtype=np.float32)
    for label in np.unique(mask):
        if label:
            overlay[mask == label] = to_rgba(label_colour(int(label)), 0.33)
    return overlay


def _draw_legend(figure: object, labels: Mapping[str, int]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    assert isinstance(figure, Figure)
    if not labels:
        figure.text(0.5, 0.28 / figure.get_figheight(), "the mask is empty on these planes", color=FAINT, ha="center",
                    va="center", fontsize=10.5)  # fmt: skip
        return
    handles = [Patch(color=label_colour(value), label=name) for name, value in labels.items()]
    figure.legend(
        handles=handles, loc="lower center", ncol=min(len(handles), 10), frameon=False, labelcolor=TEXT, fontsize=10.5,
        bbox_to_anchor=(0.5, 0.05 / figure.get_figheight()), handlelength=1.1, handleheight=1.1, columnspacing=1.8,
    )  # fmt: skip
