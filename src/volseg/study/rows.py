"""What became of each case, as rows of a CSV file that is always whole: an interrupted study goes on from it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError
from volseg.files import write_text
from volseg.geometry import Triple, format_triple
from volseg.program.kinds import Kind
from volseg.study.cases import VARIANTS, Case
from volseg.study.extrapolation import Foretold

FILE = "measurements.csv"
WAITING = "waiting for slower ranks"
KINDS = (*(str(kind) for kind in Kind), WAITING)
"""Of work, as columns have them."""


@dataclass(frozen=True)
class Row:
    """A case and what became of it.

    done              False where it failed, and then `error` says why
    timed             each rank had a core of its own; else the row says nothing of time
    dims              the process grid
    peak              largest measured peak of a rank, in bytes; `planned_peak` what the program had planned
    seconds           measured median of a training step, or of the network's part of segmenting, kernels compiled
    planned_seconds   by the profile of the study
    kinds             measured seconds of a rank on average, by kind of work, of a training step; imbalance apart
    planned_kinds     the same as planned
    load_balance      mean over ranks of the time computed / the largest
    wall              seconds that it all took, for the program's start, files and data besides
    """

    case: Case
    done: bool = False
    timed: bool = False
    dims: Triple | None = None
    peak: int | None = None
    planned_peak: int | None = None
    seconds: float | None = None
    planned_seconds: float | None = None
    kinds: Mapping[str, float] = field(default_factory=dict)
    planned_kinds: Mapping[str, float] = field(default_factory=dict)
    load_balance: float | None = None
    wall: float = 0.0
    error: str = ""

    @property
    def memory_ratio(self) -> float | None:
        """Planned over measured peak."""
        return _ratio(self.planned_peak, self.peak) if self.done else None

    @property
    def time_ratio(self) -> float | None:
        """Planned over measured seconds; None where ranks shared cores."""
        return _ratio(self.planned_seconds, self.seconds) if self.done and self.timed else None


def planned(row: Row, model: Foretold) -> Row:
    """The row with the model's times."""
    kinds = model.by_kind() | {WAITING: model.imbalance}
    return replace(row, planned_seconds=model.time.seconds, planned_kinds=kinds)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """All rows as CSV, whole or not at all."""
    text = io.StringIO()
    records = [record(row) for row in rows]
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(records)
    write_text(path, text.getvalue())


def record(row: Row) -> dict[str, Any]:
    """A row by column; empty where there is nothing to say."""
    case = row.case
    values: dict[str, Any] = {
        "task": case.task,
        "shape": format_triple(case.shape),
        "base_channels": case.base_channels,
        "levels": case.levels,
        "ranks": case.ranks,
        "variant": case.variant,
        "state": "done" if row.done else "failed",
        "timed": int(row.timed),
        "grid": "" if row.dims is None else format_triple(row.dims),
        "planned_peak_bytes": row.planned_peak,
        "peak_bytes": row.peak,
        "planned_over_measured_memory": _text(row.memory_ratio),
        "planned_seconds": _text(row.planned_seconds),
        "seconds": _text(row.seconds),
        "planned_over_measured_seconds": _text(row.time_ratio),
        "load_balance": _text(row.load_balance),
        "wall_seconds": _text(row.wall),
    }
    values |= {_column("seconds", kind): _text(seconds) for kind, seconds in row.kinds.items()}
    values |= {_column("planned_seconds", kind): _text(seconds) for kind, seconds in row.planned_kinds.items()}
    return {name: "" if value is None else value for name, value in values.items()} | {"error": row.error}


def _text(value: float | None) -> str | None:
    return None if value is None else f"{value:.5g}"


def _column(prefix: str, kind: str) -> str:
    return f"{prefix}_{kind.replace(' ', '_').replace('-', '_')}"


_FACTS = (
    "task", "shape", "base_channels", "levels", "ranks", "variant", "state", "timed", "grid", "planned_peak_bytes",
    "peak_bytes", "planned_over_measured_memory", "planned_seconds", "seconds", "planned_over_measured_seconds",
    "load_balance", "wall_seconds",
)  # fmt: skip
COLUMNS = (*_FACTS, *(_column(p, kind) for p in ("seconds", "planned_seconds") for kind in KINDS), "error")


def is_table(path: Path) -> bool:
    """Whether a file begins as `write_rows` writes it, whatever follows."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().startswith(",".join(_FACTS[:3]))
    except (OSError, UnicodeDecodeError):
        return False


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote; nothing where there is no file. Raises ConfigError for another file."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_parse(record) for record in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: is no table of volseg study ({error!r}); start anew with --overwrite") from None


def _parse(record: Mapping[str, str]) -> Row:
    case = Case(
        task=record["task"], shape=_triple(record["shape"]), base_channels=int(record["base_channels"]),
        levels=int(record["levels"]), ranks=int(record["ranks"]), variant=record["variant"],
    )  # fmt: skip
    if case.variant not in VARIANTS[case.task]:
        raise ValueError(f"variant {case.variant}")
    return Row(
        case=case,
        done=record["state"] == "done",
        timed=record["timed"] == "1",
        dims=_triple(record["grid"]) if record["grid"] else None,
        peak=int(record["peak_bytes"]) if record["peak_bytes"] else None,
        planned_peak=int(record["planned_peak_bytes"]) if record["planned_peak_bytes"] else None,
        seconds=_number(record["seconds"]),
        planned_seconds=_number(record["planned_seconds"]),
        kinds=_by_kind(record, "seconds"),
        planned_kinds=_by_kind(record, "planned_seconds"),
        load_balance=_number(record["load_balance"]),
        wall=_number(record["wall_seconds"]) or 0.0,
        error=record["error"],
    )


def _by_kind(record: Mapping[str, str], prefix: str) -> dict[str, float]:
    return {kind: float(text) for kind in KINDS if (text := record.get(_column(prefix, kind)))}


def _number(text: str) -> float | None:
    return float(text) if text else None


def _triple(text: str) -> Triple:
    d, h, w = (int(n) for n in text.split("x"))
    return d, h, w
