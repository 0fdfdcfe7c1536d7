"""How the study's figures look: one look for all, colours that the colour-blind can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Any

from volseg.study.cases import SEGMENT, TRAIN

COLOURS = {TRAIN: "#C2410C", SEGMENT: "#0369A1"}
"""By task: a vermilion and a blue that differ in lightness too."""

SIZES = ("#7E22CE", "#0369A1", "#0F766E", "#B45309", "#BE123C")
"""For volumes of several sizes, with a marker each."""

MARKERS = ("o", "s", "^", "D", "v")
INK, FAINT, GRID, SHADE = "#1F2937", "#6B7280", "#E5E7EB", "#F3F4F6"

KINDS = {
    "convolution": "#0369A1", "up-convolution": "#7DD3FC", "norm": "#0F766E", "pooling": "#86EFAC",
    "head and loss": "#7E22CE", "halo": "#C2410C", "reduction": "#F59E0B", "waiting for slower ranks": "#BE123C",
    "input and output": "#78716C", "augmentation": "#4D7C0F", "optimizer": "#A8A29E", "other": "#D6D3D1",
}  # fmt: skip
"""Of work; communication is warm, computing cool, what is left grey."""


def figure(width: float, height: float, columns: int = 1, rows: int = 1, **more: Any) -> tuple[Any, Any]:
    """A figure, and its axes: one, a row of them, or an array."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(SETTINGS):
        made = Figure(figsize=(width, height), dpi=160, layout="constrained")
        FigureCanvasAgg(made)
        axes = made.subplots(rows, columns, **more)
    for one in axes.flat if columns * rows > 1 else [axes]:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color=GRID, lw=0.7)
        one.set_axisbelow(True)
    return made, axes


SETTINGS = {
    "font.size": 9.5,
    "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK, "xtick.color": FAINT, "ytick.color": FAINT,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK,
}  # fmt: skip


def title(axes: Any, text: str) -> None:
    """Above the axes, to the left."""
    axes.set_title(text, fontsize=11, fontweight="bold", loc="left", color=INK, pad=9)


def powers(axes: Any, which: str, low: float, high: float, *, step: int = 1, suffix: str = "") -> None:
    """A logarithmic axis from `low` to `high` with ticks at powers of two, each `step`-th, written in full."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    getattr(axes, f"set_{which}scale")("log", base=2)
    getattr(axes, f"set_{which}lim")(low, high)
    first, last = -(-log2(low) // 1), log2(high) // 1
    ticks = [2.0**n for n in range(int(first), int(last) + 1) if (n - int(first)) % step == 0]
    _set_ticks(axis, ticks, [f"{tick:,.0f}{suffix}".replace(",", " ") for tick in ticks])


def _set_ticks(axis: Any, ticks: Sequence[float], labels: Sequence[str]) -> None:
    from matplotlib.ticker import NullLocator

    axis.set_ticks(list(ticks), list(labels))
    axis.set_minor_locator(NullLocator())


def log_axis(axes: Any, which: str, low: float, high: float) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5 times powers of ten, or at those alone where they are many."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    ticks = [m * 10.0**n for n in range(-6, 7) for m in steps if low <= m * 10.0**n <= high]
    _set_ticks(axis, ticks, [f"{tick:,.10g}".replace(",", " ") for tick in ticks])


def percent(share: float) -> str:
    """As words have it."""
    return f"{share * 100:.0f} %"


def predicted_from(axes: Any, x: float, end: float, high: bool = False) -> None:
    """Shade what lies beyond everything measured."""
    if x >= end:
        return
    axes.axvspan(x, end, color=SHADE, zorder=0, lw=0)
    axes.text(
        0.99, 0.98 if high else 0.015, "predicted →", transform=axes.transAxes, ha="right",
        va="top" if high else "bottom", color=FAINT, style="italic", fontsize=9,
    )  # fmt: skip


def curve(axes: Any, xs: Sequence[float], ys: Sequence[float], colour: str, known: float, **more: Any) -> None:
    """The model: solid as far as was measured, dashed beyond."""
    style: dict[str, Any] = {"color": colour, "lw": 1.6, "zorder": 3} | more
    inside = [(x, y) for x, y in zip(xs, ys, strict=True) if x <= known]
    beyond = [(x, y) for x, y in zip(xs, ys, strict=True) if x >= (inside[-1][0] if inside else 0)]
    if inside:
        axes.plot(*zip(*inside, strict=True), **style)
    if len(beyond) > 1:
        axes.plot(*zip(*beyond, strict=True), **(style | {"ls": (0, (4, 2.2))}))


def points(axes: Any, xs: Sequence[float], ys: Sequence[float], colour: str, **more: Any) -> None:
    """What was measured."""
    style: dict[str, Any] = {
        "color": colour, "marker": "o", "markersize": 6, "ls": "", "markeredgecolor": "white", "markeredgewidth": 0.8,
        "zorder": 5,
    }  # fmt: skip
    axes.plot(xs, ys, **(style | more))


def beside(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    """Words above and to the right of a point, where falling curves are not."""
    label(axes, x, y, text, colour, fontsize=8.5, xytext=(8, 8))


def label(axes: Any, x: float, y: float, text: str, colour: str = INK, **more: Any) -> None:
    """Words beside a point, on a ground that lets them be read over lines."""
    from matplotlib.patheffects import withStroke

    style: dict[str, Any] = {
        "xytext": (5, 0), "textcoords": "offset points", "va": "center", "color": colour, "fontsize": 9, "zorder": 6,
        "path_effects": [withStroke(linewidth=2.5, foreground="white")],
    }  # fmt: skip
    axes.annotate(text, (x, y), **(style | more))
