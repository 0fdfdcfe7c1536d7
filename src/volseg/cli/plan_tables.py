"""A plan as tables and sentences."""

from __future__ import annotations

import itertools

from rich.console import Console
from rich.table import Table

from volseg.cli.render import PLAIN_WIDTH, table
from volseg.cli.terminal import terminal_columns
from volseg.geometry import format_triple
from volseg.machine import gibibytes
from volseg.planning.answer import Answer, Asked, TaskAnswer
from volseg.planning.explanation import time_text
from volseg.planning.memory import surely_fits
from volseg.planning.nodes import SYSTEM
from volseg.planning.resolutions import ResolutionPlan
from volseg.planning.search import Candidate, Question, fits
from volseg.program.kinds import Kind


def show(asked: Asked, found: Answer) -> None:
    """Print all of it."""
    console = Console(width=terminal_columns() or PLAIN_WIDTH)
    if found.tasks:
        console.print(_plan(asked, found))
        console.print(_memory(found))
        if "segment" in found.tasks:
            console.print(_schedules(found.tasks["segment"]))
        console.print(_levels(found))
        if all(one.question.timed for one in found.tasks.values()):
            console.print(_times(found))
        if "train" in found.tasks:
            _show_resolutions(console, found.tasks["train"])
    for task, one in found.tasks.items():
        if one.scaling is not None:
            console.print(_scaling(str(task), one))
    if asked.node is not None:
        console.print(_nodes(asked, found))
    for task, one in found.tasks.items():
        for reason in one.reasons:
            console.print(f"{task}: {reason}", highlight=False)
    for task, why in found.no_machines.items():
        console.print(f"{task}: {why}", highlight=False)
    if asked.why_network:
        console.print(f"network: {asked.why_network}", highlight=False)
    console.print(_profile(asked), highlight=False)
    for one in found.tasks.values():
        if one.command is not None:  # in one line, to be copied
            console.print(f"run it with: {one.command}", highlight=False, soft_wrap=True)


def _plan(asked: Asked, found: Answer) -> Table:
    """A column a task, or one for all where they are split alike."""
    columns = {str(task): _split(asked, one) for task, one in found.tasks.items()}
    first = next(iter(columns.values()))
    if all(values == first for values in columns.values()):
        columns = {"value": first}
    if not any(one.run.replicas > 1 for one in found.tasks.values()):
        columns = {name: {k: v for k, v in values.items() if k != "replicas"} for name, values in columns.items()}
    rows = [(name, *(values[name] for values in columns.values())) for name in next(iter(columns.values()))]
    return table("plan", ("", *columns), rows, text_columns=1 + len(columns))


def _split(asked: Asked, one: TaskAnswer) -> dict[str, str]:
    run, layout, placing = one.run, one.run.plan.layout, one.placing
    lengths = [sorted({b - a for a, b in itertools.pairwise(cuts)}) for cuts in layout.boundaries]
    return {
        "voxels D x H x W": format_triple(run.plan.shape),
        "padded to": format_triple(layout.shape),
        "channels": format_triple(asked.network.widths),
        "tensors stored as": asked.settings.training.precision,
        "ranks": str(run.ranks),
        "replicas": str(run.replicas),
        "ranks a machine, threads of each": f"{placing.per_machine}, {placing.threads}",
        "grid Pz x Py x Px": format_triple(layout.dims) + run.plan.agglomeration.described,
        "block sides": ", ".join(f"{axis} {'/'.join(map(str, n))}" for axis, n in zip("DHW", lengths, strict=True)),
        "halo received a forward pass": gibibytes(run.plan.halo_bytes),
    }


def _memory(found: Answer) -> Table:
    parts = {part: None for one in found.tasks.values() for part, size in one.memory.parts.items() if size}
    rows = [(part, *(_size(one.memory.parts.get(part, 0)) for one in found.tasks.values())) for part in parts]
    rows.append(("all", *(gibibytes(one.memory.peak) for one in found.tasks.values())))
    rows.append(("which is held at", *(one.memory.peak_at for one in found.tasks.values())))
    return table("memory of a rank, at the peak", ("", *map(str, found.tasks)), rows)


def _size(count: int) -> str:
    return gibibytes(count) if count else ""


def _schedules(one: TaskAnswer) -> Table:
    """What each way to segment needs."""
    plan, limit = one.run.plan, one.question.limit
    rows = []
    for schedule, memory in plan.by_schedule.items():
        fitting = [] if limit is None else ["yes" if surely_fits(memory, limit) else "no"]
        mark = "chosen" if schedule is plan.schedule else ""
        rows.append((schedule, gibibytes(memory.peak), gibibytes(memory.activations), memory.peak_at, *fitting, mark))
    fits_column = [] if limit is None else [f"fits {gibibytes(limit)}"]
    return table("", ("segment", "peak", "activations", "peak at", *fits_column, ""), rows)


def _levels(found: Answer) -> Table:
    levels = max(len(one.memory.by_level) for one in found.tasks.values())
    rows = [(f"level {n}", *(gibibytes(one.memory.by_level[n]) for one in found.tasks.values())) for n in range(levels)]
    return table("activations at the peak", ("", *map(str, found.tasks)), rows)


def _times(found: Answer) -> Table:
    names = {"train": "a training step", "segment": "segmenting"}
    kinds = [kind for kind in Kind if any(one.run.time.by_kind()[kind] for one in found.tasks.values())]
    rows = [(kind, *(_time(one.run.time.by_kind()[kind]) for one in found.tasks.values())) for kind in kinds]
    rows.append(("all", *(time_text(one.run.seconds) for one in found.tasks.values())))
    return table("time", ("", *(names[str(task)] for task in found.tasks)), rows)


def _time(seconds: float) -> str:
    return time_text(seconds) if seconds else ""


def _show_resolutions(console: Console, one: TaskAnswer) -> None:
    """Print a line for each resolution of a training run; nothing where there is one, and its time is not known."""
    whole = one.whole
    if whole is None or (len(whole.resolutions) == 1 and whole.in_epoch is None):
        return
    timed, counted = one.question.timed, whole.in_epoch is not None
    times = ["a step", "messages"] + ["an epoch", "all steps"] * counted if timed else []
    columns = ["level", "voxels", "grid", "peak a rank", "halo a pass", "steps", *times]
    rows = [_resolution(each, whole.in_epoch, timed=timed) for each in whole.resolutions]
    console.print(table("resolutions of the training run", columns, rows))
    if timed and whole.seconds is not None:
        console.print(f"train: all steps together {time_text(whole.seconds)}, validation not counted", highlight=False)


def _resolution(each: ResolutionPlan, in_epoch: int | None, *, timed: bool) -> list[str]:
    run, steps = each.run, each.steps
    grid = format_triple(run.dims) + run.plan.agglomeration.described
    row = [
        str(each.level), format_triple(run.plan.layout.shape),
        grid if run.replicas == 1 else f"{run.replicas} replicas of {grid}", gibibytes(run.plan.memory.peak),
        gibibytes(run.plan.halo_bytes), f"{each.share:.0%}" if steps is None else str(steps),
    ]  # fmt: skip
    if timed:
        row += [time_text(each.step_seconds), f"{run.time.communication / run.seconds:.0%}"]
        row += [] if in_epoch is None or steps is None else [
            time_text(in_epoch * each.step_seconds), time_text(steps * each.step_seconds)
        ]  # fmt: skip
    return row


def _scaling(task: str, one: TaskAnswer) -> Table:
    """Run by run; times of networks that have any, and whether they fit where there is a limit."""
    question, found = one.question, one.scaling
    assert found is not None
    rows = [
        (run.ranks, format_triple(run.dims), format_triple(run.plan.layout.largest_block),
         *(_pace(run, share) if question.timed else []), gibibytes(run.plan.memory.peak),
         *([] if question.limit is None else [_fit(question, run)]))
        for run, share in zip(found.runs, found.efficiency, strict=True)
    ]  # fmt: skip
    times = ["time", "efficiency", "messages"] if question.timed else []
    limited = [] if question.limit is None else ["fits"]
    return table("", [f"{task}: ranks", "grid", "block", *times, "peak a rank", *limited], rows)


def _pace(run: Candidate, efficiency: float) -> list[str]:
    return [time_text(run.seconds), f"{efficiency:.0%}", f"{run.time.communication / run.seconds:.0%}"]


def _fit(question: Question, run: Candidate) -> str:
    if fits(question, run):
        return "yes"
    return "with files" if fits(question, run, files=True) else "no"


def _nodes(asked: Asked, found: Answer) -> Table:
    """Machines, and for comparison those whose memory plain torch would fill."""
    assert asked.node is not None
    rows = [(task, "none fits", "", "", "", "", "") for task in found.no_machines]
    for task, one in found.tasks.items():
        run, plan = one.run, one.nodes
        assert plan is not None
        machine = one.placing.per_machine * run.plan.memory.peak
        rows.append((task, str(plan.nodes), str(one.placing.per_machine), str(plan.threads), format_triple(run.dims),
                     gibibytes(machine), time_text(run.seconds) if one.question.timed else ""))  # fmt: skip
    if "train" in asked.tasks:
        plain = -(-found.plain_bytes // (asked.node.memory - SYSTEM))
        rows.append(("train, plain torch", str(plain), "", "", "if cut evenly", gibibytes(found.plain_bytes), ""))
    columns = ["machines", "number", "ranks each", "threads", "grid", "memory", "time"]
    return table("", columns, rows)


def _profile(asked: Asked) -> str:
    profile = asked.profile
    own = "" if profile.source != "built in" else "; volseg calibrate measures this one"
    return f"times of {profile.machine} ({profile.source}, {profile.date}){own}"
