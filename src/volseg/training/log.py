"""log.csv: one row for each step of a run."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volseg.files import replacing, utf8

LOG = "log.csv"
COLUMNS = (
    "step", "epoch", "loss", "dice", "learning_rate", "seconds", "voxels_per_second", "memory_bytes", "case",
    "validation_dice", "level",
)  # fmt: skip
CLASS = "validation_dice_"
"""What the column of a class begins with; its label's name follows."""

RETRY_SECONDS = 30.0
"""After which a log that could not be written is tried again."""

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
        self._torn = 0.0  # when a row could not be appended, of `time.monotonic`; 0: all rows are in the file
        self._write_all()

    def add(self, figures: Mapping[str, Any]) -> None:
        """Append one row at once, so that a killed run keeps its log; the names are those of `columns`.

        Raises OSError or VolsegError where it cannot be written. The rows are kept, and after a while all are written
        anew: there is no use in trying again at every step.
        """
        row = {name: _format(name).format(v) for name, v in figures.items() if v is not None}
        self.rows.append(row)
        if self._torn:
            if time.monotonic() - self._torn > RETRY_SECONDS:
                self.mend()
            return
        try:
            with self.path.open("ab") as file:
                file.write(self._text([row]))
        except OSError:
            self._torn = time.monotonic()
            raise

    def mend(self) -> None:
        """Write all rows, where some are missing in the file. Raises as `add` does."""
        if self._torn:
            self._torn = time.monotonic()
            self._write_all()
            self._torn = 0.0

    def _write_all(self) -> None:
        with replacing(self.path) as temporary:
            temporary.write_bytes(self._text(self.rows, header=True))

    def _text(self, rows: Rows, header: bool = False) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n", restval="")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return utf8(text.getvalue())


def read_log(run: Path) -> Rows:
    """The rows of a run's log, without a last line that a kill tore; none where there is no log."""
    if not (run / LOG).is_file():
        return []
    whole = (run / LOG).read_text(encoding="utf-8", errors="replace").rpartition("\n")[0]
    rows = [{name: text or "" for name, text in row.items() if name} for row in csv.DictReader(io.StringIO(whole))]
    return [row for row in rows if row.get("step", "").isdecimal()]


def dice_of_last_epoch(rows: Rows) -> float | None:
    """The mean soft Dice of its steps; None where none of them has one. One step says as much as its cases alone."""
    steps = [float(row["dice"]) for row in rows if row["epoch"] == rows[-1]["epoch"] and row.get("dice")]
    return sum(steps) / len(steps) if steps else None


def finest(rows: Rows) -> Rows:
    """Those of steps at the finest resolution; a validation Dice of a coarser one is another measure."""
    return [row for row in rows if not int(row.get("level") or 0)]


def _format(name: str) -> str:
    return FORMATS["validation_dice"] if name.startswith(CLASS) else FORMATS.get(name, "{}")
