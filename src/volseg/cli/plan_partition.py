"""``volseg plan-partition``: grid, memory and time before anything runs. Imports neither torch nor mpi4py."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from volseg.cli.options import Agglomerate, Debug, JsonOutput
from volseg.cli.sizes import parse_levels, parse_ranks, parse_shape
from volseg.errors import ConfigError

if TYPE_CHECKING:
    from volseg.config import Config
    from volseg.partition.answer import Answer, Asked


class Task(StrEnum):
    """What the ranks are to do."""

    train = "train"
    segment = "segment"


def plan_partition(
    volume: Annotated[Path | None, typer.Argument(help="A scan whose size to plan for.")] = None,
    shape: Annotated[str | None, typer.Option(help="Or its size in voxels, D x H x W, such as 512x512x512.")] = None,
    ranks: Annotated[
        str | None,
        typer.Option(
            help="Ranks to plan for, or a range such as 1:1024 for the scaling.  "
            "[default: those of --partition, the fewest that fit, or 1]"
        ),
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Memory a rank may use, such as 24GiB.")] = None,
    task: Annotated[Task | None, typer.Option("--for", help="Only this task; it decides the fewest ranks.")] = None,
    partition: Annotated[str, typer.Option(help="Process grid Pz x Py x Px, such as 1x2x2, or auto.")] = "auto",
    replicas: Annotated[
        int, typer.Option(help="In training, so many cases at once, each on its own share of the ranks.")
    ] = 1,
    threads: Annotated[int, typer.Option(help="Threads of each rank.")] = 1,
    node_memory: Annotated[str | None, typer.Option(help="Memory of a machine: plan whole machines.")] = None,
    cores_per_node: Annotated[int | None, typer.Option(help="Cores of a machine.")] = None,
    nodes: Annotated[int | None, typer.Option(help="So many machines.  [default: the fewest that fit]")] = None,
    base_channels: Annotated[int | None, typer.Option(help="Channels at full resolution.  [default: 16]")] = None,
    levels: Annotated[int | None, typer.Option(help="Halvings of the resolution.  [default: 3]")] = None,
    agglomerate: Agglomerate = "auto",
    checkpoint_levels: Annotated[
        str | None, typer.Option(help="Levels that compute tensors again in backward to keep fewer, such as 0,1.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with [model].")] = None,
    model: Annotated[Path | None, typer.Option(help="Or a run folder of volseg train.")] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Machine, of volseg calibrate.  [default: volseg-profile.json, or a built-in one]"),
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Print a batch script for Slurm, and nothing else.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw memory and time over the range of ranks: a PNG.")] = None,
    json_output: JsonOutput = False,
    debug: Debug = False,
) -> None:
    """Plan how a volume is split over ranks, the memory each rank needs, and how long it takes to train and to segment.

    With --memory also the fewest ranks that fit; with --ranks 1:4096 how far more ranks pay; with --node-memory and
    --cores-per-node how many machines.
    """
    from volseg.partition.answer import Asked, answer
    from volseg.partition.planner import grid_named, parse_grid, parse_memory
    from volseg.partition.profile import find_profile

    settings = _settings(config, model, base_channels, levels, checkpoint_levels)
    size = _size(volume, shape)
    counts = parse_ranks(ranks) if ranks is not None else []
    named = grid_named(partition)
    if not counts and named is not None:
        counts = [math.prod(named) * replicas]
    if named is None and partition != "auto":
        parse_grid(partition, 1)
    if named is not None:
        for count in counts:
            parse_grid(partition, count // replicas)
    for name, value in (("--replicas", replicas), ("--threads", threads), ("--nodes", nodes or 1)):
        if value < 1:
            raise ConfigError(f"{name} {value}: give at least 1")
    if (node_memory is None) != (cores_per_node is None) or (nodes is not None and node_memory is None):
        raise ConfigError("to plan machines give --node-memory and --cores-per-node, such as 128GB and 36")
    asked = Asked(
        size, settings, [task] if task is not None else list(Task), find_profile(profile), counts,
        parse_memory(memory) if memory is not None else None, named, replicas, threads,
        None if node_memory is None else parse_memory(node_memory, "--node-memory"), cores_per_node, nodes,
        agglomerate,
    )  # fmt: skip
    found = answer(asked)
    if plot is not None:
        _plot(found, plot)
    if slurm:
        print(_script(asked, found, config), end="")
    elif json_output:
        import json

        from volseg.cli.plan_facts import facts

        print(json.dumps(facts(asked, found), indent=2))
    else:
        from volseg.cli.plan_tables import show

        show(asked, found)
    # A limit that no plan meets is an answer, but one that a script must not overlook.
    if not all(one.fits for one in found.tasks.values()):
        raise typer.Exit(1)


def _settings(
    config: Path | None, run: Path | None, base_channels: int | None, levels: int | None, checkpoint_levels: str | None
) -> Config:
    from volseg.config import Config, override, read_config

    if config is not None and run is not None:
        raise ConfigError("give --config or --model, not both")
    if run is not None:
        settings = read_config(run / "config.toml")
    else:
        settings = read_config(config) if config is not None else Config()
    again = None if checkpoint_levels is None else parse_levels(checkpoint_levels)
    model = {"base_channels": base_channels, "levels": levels}
    return override(settings, model=model, training={"checkpoint_levels": again})


def _size(volume: Path | None, shape: str | None) -> tuple[int, int, int]:
    if (volume is None) == (shape is None):
        raise ConfigError("give a volume, or its size with --shape 512x512x512")
    if volume is not None:
        from volseg.volumes.canonical import canonical
        from volseg.volumes.reading import open_volume

        return canonical(open_volume(volume)).shape
    return parse_shape(shape or "")


def _plot(found: Answer, path: Path) -> None:
    from volseg.files import replacing
    from volseg.study.scaling_figure import scaling_figure

    curves = {task: one.scaling for task, one in found.tasks.items() if one.scaling is not None}
    if not curves:
        raise ConfigError(f"--plot {path}: needs a range of ranks, such as --ranks 1:1024")
    with replacing(path) as temporary:
        scaling_figure(curves).savefig(temporary, format="png")


def _script(asked: Asked, found: Answer, config: Path | None) -> str:
    from volseg.partition.batch_script import Place, batch_script

    if len(found.tasks) != 1:
        raise ConfigError("--slurm: say what for, with --for train or --for segment")
    ((task, one),) = found.tasks.items()
    more = ["--config", str(config)] if config is not None and task == "train" else []
    if config is None and task == "train":
        model = asked.settings.model
        more = ["--base-channels", str(model.base_channels), "--levels", str(model.levels)]
    if one.nodes is not None:
        plan = one.nodes
        return batch_script(task, plan.run, Place(plan.nodes, plan.per_node, plan.threads), more)
    return batch_script(task, one.run, Place(1, one.run.ranks, asked.threads), more)
