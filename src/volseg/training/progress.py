"""progress.png: a run at a glance, from its log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from volseg.drawing.style import FAINT, figure, title
from volseg.files import replacing
from volseg.training.log import CLASS, Rows, finest
from volseg.volumes.label_table import default_colour

PICTURE = "progress.png"
MOST_CLASSES = 10  # more curves than that cannot be told apart

TRAINING, HELD_OUT, RATE = "#C2410C", "#0369A1", "#0F766E"


def draw_progress(run: Path, rows: Rows) -> None:
    """Loss, Dice, Dice of each class where cases are held out, and learning rate over the steps.

    Raises VolsegError where the file cannot be written.
    """
    panels: list[Callable[[Any, Rows], None]] = [_loss, _dice, _rate]
    classes = class_columns(rows)
    if 1 < len(classes) <= MOST_CLASSES:
        panels.insert(2, _classes)
    columns = 2 if len(panels) == 4 else 3
    made, axes = figure(4.4 * columns, 3.3 * (len(panels) // columns), columns, len(panels) // columns)
    for draw, one in zip(panels, axes.flat, strict=True):
        draw(one, rows)
        _shade_coarse(one, rows)
        one.set_xlabel("step")
        if len(rows) > 1:
            one.set_xlim(int(rows[0]["step"]), int(rows[-1]["step"]))
    with replacing(run / PICTURE) as temporary:
        made.savefig(temporary, format="png", dpi=110)


def class_columns(rows: Rows) -> list[str]:
    """The columns of the classes that have a validation Dice somewhere."""
    names = dict.fromkeys(name for row in rows for name, text in row.items() if name.startswith(CLASS) and text)
    return list(names)


def best_at_finest(rows: Rows) -> tuple[int, float]:
    """The first step with the best validation Dice at the finest resolution, and that; step 0 where there is none."""
    steps, values = _column(finest(rows), "validation_dice")
    best = max(values, default=0.0)
    return (steps[values.index(best)], best) if values else (0, 0.0)


def label_values(rows: Rows) -> dict[str, int]:
    """Of the columns of classes: they stand in the order of the labels, from 1 on."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(CLASS))
    return {name: value for value, name in enumerate(names, start=1)}


def _shade_coarse(axes: Any, rows: Rows) -> None:
    """The steps made at coarser resolutions of a multigrid run: the coarser, the darker."""
    for level, some in groupby(rows, key=lambda row: int(row.get("level") or 0)):
        steps = [int(row["step"]) for row in some]
        if level:
            axes.axvspan(steps[0] - 0.5, steps[-1] + 0.5, color=FAINT, alpha=min(0.5, 0.12 * level), lw=0, zorder=0)


def _loss(axes: Any, rows: Rows) -> None:
    steps, values = _column(rows, "loss")
    _curve(axes, steps, values, TRAINING, "training")
    title(axes, "loss: cross-entropy + 1 - soft Dice")
    axes.set_ylim(bottom=min(0.0, *values, 0.0))
    if values:
        axes.text(0.98, 0.95, f"now {values[-1]:.3g}", transform=axes.transAxes, ha="right", va="top", color=FAINT)


def _dice(axes: Any, rows: Rows) -> None:
    _curve(axes, *_column(rows, "dice"), TRAINING, "training (soft)")
    steps, values = _column(rows, "validation_dice")
    if values:
        where, best = best_at_finest(rows)
        level = next(int(row.get("level") or 0) for row in reversed(rows) if row.get("validation_dice"))
        at = f" at level {level}" if level else ""
        more = f", best {best:.3f}" if best > values[-1] else ""
        label = f"held out (hard){at}: {values[-1]:.3f}{more}"
        axes.plot(steps, values, color=HELD_OUT, lw=1.6, label=label, **_marked(values))
        if where:
            axes.plot(where, best, color=HELD_OUT, marker="*", markersize=11, mec="white", zorder=5, clip_on=False)
    title(axes, "foreground Dice: soft, hard")
    _zero_to_one(axes)


def _classes(axes: Any, rows: Rows) -> None:
    values_of = label_values(rows)
    for name in class_columns(rows):
        steps, values = _column(rows, name)
        colour = [part / 255 for part in default_colour(values_of[name])]
        label = f"{name.removeprefix(CLASS)}: {values[-1]:.3f}"
        axes.plot(steps, values, color=colour, lw=1.6, label=label, **_marked(values))
    title(axes, "hard Dice of each class, held out")
    _zero_to_one(axes)


def _rate(axes: Any, rows: Rows) -> None:
    steps, values = _column(rows, "learning_rate")
    axes.plot(steps, values, color=RATE, lw=1.6, **_marked(values))
    title(axes, "learning rate")
    axes.set_ylim(bottom=0)


def _zero_to_one(axes: Any) -> None:
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    # Below the axes, where it covers no curve.
    axes.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _column(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have one."""
    found = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return [step for step, _ in found], [value for _, value in found]


def _marked(values: Sequence[float]) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3} if len(values) < 40 else {}


def _curve(axes: Any, steps: list[int], values: list[float], colour: str, label: str) -> None:
    """The values, faint where they are many, and their running mean over a twentieth of the run."""
    width = max(1, len(values) // 20)
    if width > 1:
        axes.plot(steps, values, color=colour, alpha=0.3, lw=0.8)
        values = [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]
    axes.plot(steps, values, color=colour, lw=1.6, label=label, marker="." if len(values) < 3 else None)
