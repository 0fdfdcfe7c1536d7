"""log.csv: one row for each step of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volseg.files import write_text

LOG = "log.csv"
COLUMNS = (
    "step", "epoch", "loss", "dice", "learning_rate", "seconds", "voxels_per_second", "memory_bytes", "case",
    "validation_dice", "level",
)  # fmt: skip
CLASS = "validation_dice_"
"""What the column of a class begins with; its label's name follows."""

FORMATS = {
    "loss": "{:.9g}", "dice": "{:.6f}", "learning_rate": "{:.6g}", "seconds": "{:.3f}", "voxels_per_second": "{:.0f}",
    "validation_dice": "{:.6f}",
}  # fmt: skip

Rows = list[dict[str, str]]


class TrainingLog:
    """One row a step, on the root rank; rows after `step` of an earlier run are dropped when training goes on.

    columns  names, those of the earlier run included, in the order of the file
    """

    def __init__(self, run: Path, step: int, more: Sequence[str] = ()) -> None:
        """more: columns besides `COLUMNS`."""
        self.path = run / LOG
        self.rows = [row for row in read_log(run) if int(row["step"]) <= step] if step else []
        before = [name for row in self.rows[:1] for name in row]
        self.columns = tuple(dict.fromkeys((*COLUMNS, *more, *before)))
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def add(self, figures: Mapping[str, Any]) -> None:
        """Append one row at once, so that a killed run keeps its log; the names are those of `columns`."""
        row = {name: _format(name).format(v) for name, v in figures.items() if v is not None}
        self.rows.append(row)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n", restval="").writerow(row)


def read_log(run: Path) -> Rows:
    """The rows of a run's log, without a last line that a kill tore; none where there is no log."""
    if not (run / LOG).is_file():
        return []
    whole = (run / LOG).read_text(encoding="utf-8", errors="replace").rpartition("\n")[0]
    rows = [{name: text or "" for name, text in row.items() if name} for row in csv.DictReader(io.StringIO(whole))]
    return [row for row in rows if row.get("step", "").isdecimal()]


def finest(rows: Rows) -> Rows:
    """Those of steps at the finest resolution; a validation Dice of a coarser one is another measure."""
    return [row for row in rows if not int(row.get("level") or 0)]


def _format(name: str) -> str:
    return FORMATS["validation_dice"] if name.startswith(CLASS) else FORMATS.get(name, "{}")
