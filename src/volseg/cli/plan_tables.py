"""A plan as tables and sentences."""

from __future__ import annotations

import itertools

from rich.console import Console
from rich.table import Table

from volseg.cli.render import PLAIN_WIDTH, table
from volseg.cli.terminal import terminal_columns
from volseg.geometry import format_triple
from volseg.machine import gibibytes
from volseg.partition.answer import Answer, Asked, TaskAnswer
from volseg.partition.explanation import time_text
from volseg.partition.memory import surely_fits
from volseg.partition.nodes import SYSTEM
from volseg.partition.operations import Kind
from volseg.partition.search import Scaling, fits


def show(asked: Asked, found: Answer) -> None:
    """Print all of it."""
    console = Console(width=terminal_columns() or PLAIN_WIDTH)
    console.print(_plan(asked, found))
    console.print(_memory(found))
    if "segment" in found.tasks:
        console.print(_schedules(asked, found.tasks["segment"]))
    console.print(_levels(found))
    console.print(_times(found))
    for task, one in found.tasks.items():
        if one.scaling is not None:
            console.print(_scaling(asked, str(task), one.scaling))
    if asked.node is not None:
        console.print(_nodes(asked, found))
    for task, one in found.tasks.items():
        for reason in one.reasons:
            console.print(f"{task}: {reason}", highlight=False)
    console.print(_profile(asked), highlight=False)


def _plan(asked: Asked, found: Answer) -> Table:
    first = found.first
    layout = first.plan.layout
    lengths = [sorted({b - a for a, b in itertools.pairwise(cuts)}) for cuts in layout.boundaries]
    rows = [
        ("voxels D x H x W", format_triple(first.plan.shape)),
        ("padded to", format_triple(layout.shape)),
        ("U-Net channels", format_triple(asked.settings.model.widths)),
        ("ranks", first.ranks),
        *([("replicas", first.replicas)] if first.replicas > 1 else []),
        ("grid Pz x Py x Px", format_triple(layout.dims) + first.plan.agglomeration.described),
        ("block sides", ", ".join(f"{axis} {'/'.join(map(str, n))}" for axis, n in zip("DHW", lengths, strict=True))),
        ("halo received a forward pass", gibibytes(first.plan.halo_bytes)),
    ]
    return table("plan", ("", "value"), rows, text_columns=2)


def _memory(found: Answer) -> Table:
    parts = {part: None for one in found.tasks.values() for part, size in one.run.plan.memory.parts.items() if size}
    rows = [(part, *(_size(one.run.plan.memory.parts.get(part, 0)) for one in found.tasks.values())) for part in parts]
    rows.append(("all", *(gibibytes(one.run.plan.memory.peak) for one in found.tasks.values())))
    rows.append(("which is held at", *(one.run.plan.memory.peak_at for one in found.tasks.values())))
    return table("memory of a rank, at the peak", ("", *map(str, found.tasks)), rows)


def _size(count: int) -> str:
    return gibibytes(count) if count else ""


def _schedules(asked: Asked, one: TaskAnswer) -> Table:
    """What each way to segment needs."""
    plan, limit = one.run.plan, asked.limit
    rows = []
    for schedule, memory in plan.by_schedule.items():
        fitting = [] if limit is None else ["yes" if surely_fits(memory, limit) else "no"]
        mark = "chosen" if schedule is plan.schedule else ""
        rows.append((schedule, gibibytes(memory.peak), gibibytes(memory.activations), memory.peak_at, *fitting, mark))
    fits_column = [] if limit is None else [f"fits {gibibytes(limit)}"]
    return table("", ("segment", "peak", "activations", "peak at", *fits_column, ""), rows)


def _levels(found: Answer) -> Table:
    levels = len(found.first.plan.memory.by_level)
    rows = [
        (f"level {n}", *(gibibytes(one.run.plan.memory.by_level[n]) for one in found.tasks.values()))
        for n in range(levels)
    ]
    return table("activations at the peak", ("", *map(str, found.tasks)), rows)


def _times(found: Answer) -> Table:
    names = {"train": "a training step", "segment": "segmenting"}
    kinds = [kind for kind in Kind if any(one.run.time.by_kind()[kind] for one in found.tasks.values())]
    rows = [(kind, *(_time(one.run.time.by_kind()[kind]) for one in found.tasks.values())) for kind in kinds]
    rows.append(("all", *(time_text(one.run.seconds) for one in found.tasks.values())))
    return table("time", ("", *(names[str(task)] for task in found.tasks)), rows)


def _time(seconds: float) -> str:
    return time_text(seconds) if seconds else ""


def _scaling(asked: Asked, task: str, found: Scaling) -> Table:
    question = asked.question(task)
    rows = [
        (run.ranks, format_triple(run.dims), format_triple(run.plan.layout.largest_block), time_text(run.seconds),
         f"{share:.0%}", f"{run.time.communication / run.seconds:.0%}", gibibytes(run.plan.memory.peak),
         *([] if asked.limit is None else ["yes" if fits(question, run) else "no"]))
        for run, share in zip(found.runs, found.efficiency, strict=True)
    ]  # fmt: skip
    columns = [f"{task}: ranks", "grid", "block", "time", "efficiency", "messages", "peak a rank"]
    return table("", [*columns, *([] if asked.limit is None else ["fits"])], rows)


def _nodes(asked: Asked, found: Answer) -> Table:
    """Machines, and for comparison those whose memory plain torch would fill."""
    assert asked.node is not None
    rows = []
    for task, one in found.tasks.items():
        plan = one.nodes
        if plan is None:
            rows.append((task, "none fits", "", "", "", "", ""))
            continue
        run = plan.run
        machine = plan.per_node * run.plan.memory.peak
        rows.append((task, str(plan.nodes), str(plan.per_node), str(plan.threads), format_triple(run.dims),
                     gibibytes(machine), time_text(run.seconds)))  # fmt: skip
    if "train" in found.tasks:
        plain = -(-found.plain_bytes // (asked.node.memory - SYSTEM))
        rows.append(("train, plain torch", str(plain), "", "", "if cut evenly", gibibytes(found.plain_bytes), ""))
    columns = ["machines", "number", "ranks each", "threads", "grid", "memory", "time"]
    return table("", columns, rows)


def _profile(asked: Asked) -> str:
    profile = asked.profile
    own = "" if profile.source != "built in" else "; volseg calibrate measures this one"
    return f"times of {profile.machine} ({profile.source}, {profile.date}){own}"
