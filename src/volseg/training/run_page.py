"""report.html: a training run on one page, from what its folder holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from volseg.drawing import html
from volseg.geometry import format_triple
from volseg.machine import gibibytes, size_text
from volseg.training.log import CLASS, Rows, finest, read_log
from volseg.training.previews import FOLDER as PREVIEWS
from volseg.training.progress import PICTURE

MOST_RANKS = 64
MOST_INPUTS = 400


def run_page(run: Path, report: Mapping[str, Any]) -> str:
    """The page, complete in itself: summary, curves, Dice by class and case, pictures, plan, time, ranks, inputs.

    report  the content of report.json
    """
    rows = read_log(run)
    return html.page(f"volseg: {run.name}", [part for part in _parts(run, report, rows) if part])


def _parts(run: Path, report: Mapping[str, Any], rows: Rows) -> Iterator[str]:
    yield f"<h1>Training run {html.text(run.name)}</h1>"
    yield '<p class="lead">A 3D U-Net trained by volseg on whole volumes, each split over the ranks of a job.</p>'
    yield html.facts(_summary(report))
    if (run / PICTURE).is_file():
        yield "<h2>Curves</h2>"
        yield html.picture(
            (run / PICTURE).read_bytes(), "Loss, Dice and learning rate against steps",
            "Thin: each step; thick: their mean over a twentieth of the run. The star is the best epoch. "
            "Soft Dice is of the network's probabilities, before each step; hard Dice of the masks.",
        )  # fmt: skip
    if report["validation"] is not None:
        yield "<h2>Held-out cases</h2>"
        level = report["validation"]["level"]
        at = f" Measured at level {level}, coarser than the volumes; the best is of the finest level." if level else ""
        yield f"<p>Dice of whole-volume masks: by class with the best of all epochs, and by case.{at}</p>"
        yield _classes(report["validation"]["by_class"], rows)
        by_case = [(name, f"{dice:.4f}") for name, dice in report["validation"]["by_case"].items()]
        yield html.table(("case", "Dice"), by_case, words=("case",))
    yield from _pictures(run)
    yield "<h2>Plan and measurement</h2>"
    yield _plan(report)
    yield _parts_of_memory(report["memory"])
    yield "<h2>Where the time went</h2>"
    yield _time(report["time"])
    yield "<h2>Ranks</h2>"
    yield _ranks(report)
    yield "<h2>Configuration</h2>"
    for table, values in report["config"].items():
        yield f"<h3>[{html.text(table)}]</h3>" + html.facts({name: _value(value) for name, value in values.items()})
    yield "<h2>Made with</h2>"
    yield html.facts(_versions(report))
    yield "<h2>Inputs</h2>"
    yield _inputs(report["inputs"])


def _summary(report: Mapping[str, Any]) -> dict[str, str]:
    ranks, replicas = report["ranks"], report["replicas"]
    of = f"{replicas} replicas of " if replicas > 1 else ""
    job = f"{_count(ranks, 'rank')}, {of}grid {format_triple(tuple(report['grid']))}"
    found = {
        "data set": report["dataset"],
        "steps": f"{report['steps']} of {report['all_steps']}, {_count(report['batch'], 'case')} each",
        "time": f"{_duration(report['seconds'])} in this session",
        "job": f"{job}, {_count(report['threads_per_rank'], 'thread')} a rank",
        "loss": f"{report['loss']:.4f} in the last step",
        "soft Dice": "none in the last epoch" if report["dice"] is None else f"{report['dice']:.4f} in the last epoch",
    }
    if report["validation_dice"] is not None:
        level = report["validation"]["level"]
        found["held-out Dice"] = f"{report['validation_dice']:.4f}" + (f", at level {level}" if level else "")
    if report.get("network", {}).get("reason"):
        found["network"] = report["network"]["reason"]
    if report["stopped"]:
        found["stopped"] = f"before its end, by {report['stopped']}"
    if report.get("ended"):
        found["ended"] = f"before its last step, by {report['ended']}: validations did not improve"
    if report["command_line"]:
        found["command"] = report["command_line"]
    return found


def _classes(by_class: Mapping[str, float], rows: Rows) -> str:
    cells = []
    for name, dice in by_class.items():
        column = CLASS + name
        found = [(float(row[column]), row["epoch"]) for row in finest(rows) if row.get(column)]
        best, epoch = max(found, key=lambda one: one[0], default=(None, ""))
        cells.append((name, f"{dice:.4f}", "" if best is None else f"{best:.4f}", epoch))
    return html.table(("class", "Dice", "best", "in epoch"), cells, words=("class",))


def _pictures(run: Path) -> Iterator[str]:
    """Of the last epoch that has any."""
    files = sorted((run / PREVIEWS).glob("epoch_*_*.png"))
    if not files:
        return
    last = files[-1].name.split("_", 2)[1]
    yield f"<h2>Masks after epoch {int(last)}</h2>"
    for file in files:
        _, epoch, case = file.stem.split("_", 2)
        if epoch == last:
            yield html.picture(
                file.read_bytes(), case, "Filled: predicted; lines: reference. The planes that show the labels best."
            )


def _plan(report: Mapping[str, Any]) -> str:
    memory, time = report["memory"], report["time"]
    measured = gibibytes(max(memory["peak_bytes_by_rank"]))
    ratio = f"{memory['planned_over_measured']:.3f}"
    rows = [("memory of the largest rank", gibibytes(memory["planned_bytes"]), measured, ratio)]
    if time["planned_seconds"] is not None:
        planned, measured = f"{time['planned_seconds']:.4g} s", f"{time['seconds_per_step']:.4g} s"
        rows.append(("a training step, median", planned, measured, f"{time['planned_over_measured']:.3f}"))
    return html.table(("", "planned", "measured", "ratio"), rows, words=("",))


def _parts_of_memory(memory: Mapping[str, Any]) -> str:
    parts = sorted(memory["planned_parts"].items(), key=lambda item: -item[1])
    rows = [(name, size_text(size)) for name, size in parts if size]
    said = f"<p>The planned peak comes at {html.text(memory['peak_at'])}.</p>"
    return said + html.table(("planned for", "memory"), rows, words=("planned for",))


def _time(time: Mapping[str, Any]) -> str:
    """Of the steps: mean over the ranks, by kind of work, and what was foretold of a step."""
    kinds = {kind: fmean(seconds) for kind, seconds in time["seconds_by_rank"].items()}
    whole, planned = sum(kinds.values()) or 1.0, time.get("planned_seconds_by_kind", {})
    steps = max(1, time["steps"])
    rows = []
    for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
        foretold = f"{planned[kind]:.3g} s" if kind in planned else ""
        rows.append((kind, f"{seconds / whole:.1%}", f"{seconds:.4g} s", f"{seconds / steps:.3g} s", foretold))
    columns = ("kind of work in the steps", "share", "in all", "a step", "planned")
    return html.table(columns, rows, words=columns[:1]) + (
        f"<p>Load balance {time['load_balance']:.3f}, communication efficiency {time['communication_efficiency']:.3f}. "
        f"Besides the steps: validation {time['validation_seconds']:.4g} s, log and checkpoint "
        f"{time['log_and_checkpoint_seconds']:.4g} s.</p>"
    )


def _ranks(report: Mapping[str, Any]) -> str:
    memory, time = report["memory"]["peak_bytes_by_rank"], report["time"]
    spent = zip(
        time["computing_by_rank"], time["communication_by_rank"], report["communication"]["seconds_by_rank"],
        strict=True,
    )  # fmt: skip
    rows = []
    for rank, (place, peak, seconds) in enumerate(zip(report["placement"], memory, spent, strict=True)):
        words = str(rank), place["node"], str(len(place["cores"])), str(place["threads"]), gibibytes(peak)
        rows.append((*words, *(f"{one:.4g} s" for one in seconds)))
    more = len(report["placement"]) - MOST_RANKS
    said = f"<p>And {more} more: see report.json.</p>" if more > 0 else ""
    columns = ("rank", "machine", "cores", "threads", "peak memory", "computed", "communicated", "waited in MPI")
    return html.table(columns, rows[:MOST_RANKS], words=("machine",)) + said


def _versions(report: Mapping[str, Any]) -> dict[str, str]:
    found = dict(report["versions"])
    if report["mpi_library"]:
        found["MPI"] = report["mpi_library"]
    if report["revision"]:
        found["git revision"] = report["revision"]
    return found


def _inputs(inputs: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [(name, f"{one['bytes']:,}", one["sha256"] or "too large") for name, one in inputs.items()][:MOST_INPUTS]
    more = len(inputs) - MOST_INPUTS
    said = f"<p>And {more} more: see report.json.</p>" if more > 0 else ""
    return html.table(("file", "bytes", "SHA-256"), rows, words=("file", "SHA-256")) + said


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return (
            ", ".join(format_triple(tuple(one)) if isinstance(one, (list, tuple)) else str(one) for one in value)
            or "none"
        )
    return str(value).lower() if isinstance(value, bool) else str(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
