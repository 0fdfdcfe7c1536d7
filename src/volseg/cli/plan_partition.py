"""``volseg plan-partition``: grid, blocks, halos and memory before anything runs. Imports neither torch nor mpi4py."""

from __future__ import annotations

import itertools
import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volseg.cli.options import Agglomerate, Debug, JsonOutput
from volseg.cli.sizes import parse_levels, parse_shape
from volseg.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from volseg.config import Config
    from volseg.partition.planner import Plan


class Task(StrEnum):
    """What the ranks are to do."""

    train = "train"
    segment = "segment"


def plan_partition(
    volume: Annotated[Path | None, typer.Argument(help="A scan whose size to plan for.")] = None,
    shape: Annotated[str | None, typer.Option(help="Or its size in voxels, D x H x W, such as 512x512x512.")] = None,
    ranks: Annotated[
        int | None, typer.Option(help="Ranks to plan for.  [default: those of --partition, the fewest that fit, or 1]")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Memory a rank may use, such as 24GiB.")] = None,
    task: Annotated[Task | None, typer.Option("--for", help="Only this task; it decides the fewest ranks.")] = None,
    partition: Annotated[str, typer.Option(help="Process grid Pz x Py x Px, such as 1x2x2, or auto.")] = "auto",
    agglomerate: Agglomerate = "none",
    checkpoint_levels: Annotated[
        str | None, typer.Option(help="Levels that compute tensors again in backward to keep fewer, such as 0,1.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with [model].")] = None,
    model: Annotated[Path | None, typer.Option(help="Or a run folder of volseg train.")] = None,
    json_output: JsonOutput = False,
    debug: Debug = False,
) -> None:
    """Plan how a volume is split over ranks, and the memory each rank needs to train and to segment.

    With --memory also the fewest ranks that fit.
    """
    from volseg.config import override
    from volseg.partition.planner import fewest_ranks, grid_named, make_plan, parse_grid, parse_memory

    settings = _settings(config, model)
    if checkpoint_levels is not None:
        settings = override(settings, training={"checkpoint_levels": parse_levels(checkpoint_levels)})
    size = _size(volume, shape)
    limit = parse_memory(memory) if memory is not None else None
    if ranks is not None and ranks < 1:
        raise ConfigError(f"--ranks {ranks}: give at least 1")
    tasks = [task] if task is not None else list(Task)
    training = settings.training
    fewest = {t: fewest_ranks(size, settings.model, t, training, limit) if limit else None for t in tasks}
    if ranks is None:
        named = grid_named(partition)
        ranks = None if named is None else math.prod(named)
    if ranks is None:
        found = [plan.layout.dims for plan in fewest.values() if plan is not None]
        ranks = max((d * h * w for d, h, w in found), default=1)
    dims = None if partition == "auto" else parse_grid(partition, ranks)
    plans = {t: make_plan(size, settings.model, ranks, t, training, dims, limit, agglomerate) for t in tasks}
    if json_output:
        import json

        print(json.dumps(_facts(plans, fewest, limit, settings), indent=2))
    else:
        _show(plans, fewest, limit, settings)
    # A limit that no plan meets is an answer, but one that a script must not overlook.
    if limit is not None and not all(plan.fits(limit) for plan in plans.values()):
        raise typer.Exit(1)


def _settings(config: Path | None, run: Path | None) -> Config:
    from volseg.config import Config, read_config

    if config is not None and run is not None:
        raise ConfigError("give --config or --model, not both")
    if run is not None:
        return read_config(run / "config.toml")
    return read_config(config) if config is not None else Config()


def _size(volume: Path | None, shape: str | None) -> tuple[int, int, int]:
    if (volume is None) == (shape is None):
        raise ConfigError("give a volume, or its size with --shape 512x512x512")
    if volume is not None:
        from volseg.volumes.canonical import canonical
        from volseg.volumes.reading import open_volume

        return canonical(open_volume(volume)).shape
    return parse_shape(shape or "")


def _facts(
    plans: dict[Task, Plan], fewest: dict[Task, Plan | None], limit: int | None, settings: Config
) -> dict[str, Any]:
    """Everything the plan says, as plain values; sizes in bytes, axes D, H, W."""
    import dataclasses

    first = next(iter(plans.values()))
    return {
        "shape": list(first.shape),
        "padded_shape": list(first.layout.shape),
        "ranks": first.layout.dims[0] * first.layout.dims[1] * first.layout.dims[2],
        "grid": list(first.layout.dims),
        "agglomeration": str(first.agglomeration),
        "grids_by_level": [list(dims) for dims in _grids(first, settings)],
        "boundaries": [list(cuts) for cuts in first.layout.boundaries],
        "largest_block": list(first.layout.largest_block),
        "halo_bytes_per_forward": first.halo_bytes,
        "memory_limit_bytes": limit,
        "model": dataclasses.asdict(settings.model),
        "tasks": {
            str(task): {
                "peak_bytes_per_rank": plan.memory.peak,
                "process_bytes": plan.memory.process,
                "weights_bytes": plan.memory.weights,
                "activations_bytes": plan.memory.activations,
                "work_bytes": plan.memory.work,
                "activations_bytes_by_level": list(plan.memory.by_level),
                "peak_at": plan.memory.peak_at,
                "fits": None if limit is None else plan.fits(limit),
                "schedule": plan.schedule,
                "peak_bytes_per_rank_by_schedule": {s: memory.peak for s, memory in plan.by_schedule.items()},
                "fewest_ranks": _ranks(fewest[task]),
                "fewest_ranks_grid": None if fewest[task] is None else list(fewest[task].layout.dims),  # type: ignore[union-attr]
            }
            for task, plan in plans.items()
        },
    }


def _show_schedules(console: Console, plans: dict[Task, Plan], limit: int | None) -> None:
    """What each way to segment needs."""
    from volseg.cli.render import table
    from volseg.machine import gibibytes
    from volseg.partition.memory import surely_fits

    plan = plans.get(Task.segment)
    if plan is None:
        return
    rows = []
    for schedule, memory in plan.by_schedule.items():
        fits = [] if limit is None else ["yes" if surely_fits(memory, limit) else "no"]
        mark = "chosen" if schedule is plan.schedule else ""
        rows.append((schedule, gibibytes(memory.peak), gibibytes(memory.activations), memory.peak_at, *fits, mark))
    fits_column = [] if limit is None else [f"fits {gibibytes(limit)}"]
    console.print(table("", ("segment", "peak", "activations", "peak at", *fits_column, ""), rows))


def _grids(plan: Plan, settings: Config) -> list[tuple[int, int, int]]:
    """The process grid of each level."""
    return [plan.agglomeration.dims_at(n, plan.layout.dims) for n in range(settings.model.levels + 1)]


def _ranks(plan: Plan | None) -> int | None:
    return None if plan is None else plan.layout.dims[0] * plan.layout.dims[1] * plan.layout.dims[2]


def _show(plans: dict[Task, Plan], fewest: dict[Task, Plan | None], limit: int | None, settings: Config) -> None:
    from rich.console import Console

    from volseg.cli.render import table
    from volseg.geometry import format_triple
    from volseg.machine import gibibytes

    console = Console()
    first = next(iter(plans.values()))
    layout = first.layout
    lengths = [sorted({b - a for a, b in itertools.pairwise(cuts)}) for cuts in layout.boundaries]
    rows = [
        ("voxels D x H x W", format_triple(first.shape)),
        ("padded to", format_triple(layout.shape)),
        ("U-Net channels", format_triple(settings.model.widths)),
        ("ranks", _ranks(first)),
        ("grid Pz x Py x Px", format_triple(layout.dims) + first.agglomeration.described),
        ("block sides", ", ".join(f"{axis} {'/'.join(map(str, n))}" for axis, n in zip("DHW", lengths, strict=True))),
        ("halo received a forward pass", gibibytes(first.halo_bytes)),
    ]
    console.print(table("plan", ("", "value"), rows, text_columns=2))
    columns = ["memory a rank", "peak", "activations", "kernels", "weights", "process", "peak at"]
    body = [
        (task, gibibytes(p.memory.peak), gibibytes(p.memory.activations), gibibytes(p.memory.work),
         gibibytes(p.memory.weights), gibibytes(p.memory.process), p.memory.peak_at)
        for task, p in plans.items()
    ]  # fmt: skip
    console.print(table("", columns, body))
    _show_schedules(console, plans, limit)
    levels = [
        (f"level {n}", *(gibibytes(p.memory.by_level[n]) for p in plans.values()))
        for n in range(len(first.memory.by_level))
    ]
    console.print(table("activations at the peak", ("", *map(str, plans)), levels))
    if limit is None:
        return
    for task, plan in plans.items():
        best = fewest[task]
        if best is None:
            console.print(f"{task}: no number of ranks fits {gibibytes(limit)} a rank; fewer channels or levels may")
        else:
            console.print(
                f"{task}: the fewest ranks within {gibibytes(limit)} are {_ranks(best)}, as "
                f"{format_triple(best.layout.dims)}, with {gibibytes(best.memory.peak)} a rank"
            )
        if not plan.fits(limit):
            console.print(f"{task}: {_ranks(plan)} ranks need {gibibytes(plan.memory.peak)} a rank, which does not fit")
