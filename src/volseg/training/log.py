"""log.csv and progress.png: what a run says about itself while it goes on."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from volseg.files import replacing, write_text

LOG = "log.csv"
PICTURE = "progress.png"
COLUMNS = (
    "step",
    "epoch",
    "loss",
    "dice",
    "learning_rate",
    "seconds",
    "voxels_per_second",
    "case",
    "validation_dice",
    "validation_dice_by_class",
    "level",
)

FORMATS = {
    "loss": "{:.9g}", "dice": "{:.6f}", "learning_rate": "{:.6g}", "seconds": "{:.3f}", "voxels_per_second": "{:.0f}",
    "validation_dice": "{:.6f}",
}  # fmt: skip


class TrainingLog:
    """One row a step, on the root rank; rows after `step` of an earlier run are dropped when training goes on."""

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / LOG
        self.rows: list[dict[str, Any]] = []
        if step and self.path.is_file():
            whole = self.path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0]  # not a torn last line
            self.rows = [row for row in csv.DictReader(io.StringIO(whole)) if (row.get("step") or "").isdecimal()]
            self.rows = [row for row in self.rows if int(row["step"]) <= step]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def add(self, **figures: Any) -> None:
        """Append one row at once, so that a killed run keeps its log; the names are those of `COLUMNS`."""
        row = {name: FORMATS.get(name, "{}").format(v) for name, v in figures.items() if v is not None}
        self.rows.append(row)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="").writerow(row)

    def draw(self, run: Path) -> None:
        """progress.png: loss and Dice over the steps."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4.2), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        loss_axes, dice_axes = figure.subplots(1, 2)
        steps = [int(row["step"]) for row in self.rows]
        _curve(loss_axes, steps, [float(row["loss"]) for row in self.rows], "#c0392b", "training")
        loss_axes.set_title("loss: cross-entropy + 1 - soft Dice", fontsize=10, loc="left")
        loss_axes.set_ylim(bottom=0)
        _curve(dice_axes, steps, [float(row["dice"]) for row in self.rows], "#2e86c1", "training, soft")
        held_out = [
            (int(row["step"]), float(row["validation_dice"])) for row in self.rows if row.get("validation_dice")
        ]
        if held_out:
            dice_axes.plot(
                *zip(*held_out, strict=True), color="#1e8449", marker="o", markersize=3, lw=1.4, label="held out"
            )
        dice_axes.set_title("mean foreground Dice", fontsize=10, loc="left")
        dice_axes.set_ylim(0, 1)
        for axes in (loss_axes, dice_axes):
            axes.set_xlabel("step")
            axes.grid(color="#e5e7e9")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=9)
        with replacing(run / PICTURE) as temporary:
            figure.savefig(temporary, format="png")


def _curve(axes: Any, steps: list[int], values: list[float], colour: str, label: str) -> None:
    """The values, faint where they are many, and their running mean over a twentieth of the run."""
    width = max(1, len(values) // 20)
    if width > 1:
        axes.plot(steps, values, color=colour, alpha=0.3, lw=0.8)
        values = [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]
    axes.plot(steps, values, color=colour, lw=1.6, label=label, marker="." if len(values) < 3 else None)
