"""How figures look: one look for all, colours that the colour-blind can tell apart."""

from __future__ import annotations

from typing import Any

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


def percent(share: float) -> str:
    """As words have it."""
    return f"{share * 100:.0f} %"
