"""``volseg plan-partition``: grid, memory and time before anything runs. Imports neither torch nor mpi4py."""

from __future__ import annotations

import math
import sys
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
    from volseg.partition.command import Origin


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
    threads: Annotated[int | None, typer.Option(help="Threads of each rank.  [default: 1]")] = None,
    node_memory: Annotated[str | None, typer.Option(help="Memory of a machine: plan whole machines.")] = None,
    cores_per_node: Annotated[
        int | None, typer.Option(help="Cores of a machine.  [default: those of the profile's]")
    ] = None,
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
    --cores-per-node how many machines. Last comes the command that runs the plan. Exit code 1: it does not fit.
    """
    from volseg.partition.answer import Asked, answer
    from volseg.partition.planner import parse_memory
    from volseg.partition.profile import find_profile

    counts = parse_ranks(ranks) if ranks is not None else []
    _check_numbers(replicas, threads, cores_per_node, nodes)
    named = _grid(partition, counts, replicas)
    _check_together(task, counts, replicas, slurm, json_output)
    node = None
    if node_memory is not None or nodes is not None:
        node = _node_memory(node_memory, cores_per_node)
        _refuse_with_machines(replicas=replicas != 1, threads=threads, memory=memory, ranks=ranks)
    settings = _settings(config, model, base_channels, levels, checkpoint_levels)
    asked = Asked(
        _size(volume, shape), settings, [task] if task is not None else list(Task), find_profile(profile), counts,
        parse_memory(memory) if memory is not None else None, named, replicas, threads or 1, node, cores_per_node,
        nodes, agglomerate, _origin(volume, config, model, base_channels, levels),
    )  # fmt: skip
    if plot is not None:
        _check_plot(asked, plot)
    found = answer(asked)
    if plot is not None:
        _plot(found, plot)
    if slurm:
        _print_script(asked, found)
    elif json_output:
        import json

        from volseg.cli.plan_facts import facts

        print(json.dumps(facts(asked, found), indent=2))
    else:
        from volseg.cli.plan_tables import show

        show(asked, found)
    # A limit that no plan meets is an answer, but one that a script must not overlook.
    if not found.fits:
        raise typer.Exit(1)


def _grid(partition: str, counts: list[int], replicas: int) -> tuple[int, int, int] | None:
    """The grid of a replica, where one is named; it must have the ranks that are named besides."""
    from volseg.partition.planner import grid_named, parse_grid

    grid = grid_named(partition)
    if grid is None:
        if partition != "auto":
            parse_grid(partition, 1)
        return None
    needed = math.prod(grid) * replicas
    if len(counts) > 1:
        raise ConfigError(f"--partition {partition}: is one grid, and --ranks are several numbers; leave out either")
    if counts and counts != [needed]:
        of = f"{replicas} replicas of {partition}" if replicas > 1 else f"--partition {partition}"
        raise ConfigError(f"--ranks {counts[0]}: {of} needs {needed} ranks; give --ranks {needed}, or leave it out")
    return grid


def _check_numbers(replicas: int, threads: int | None, cores_per_node: int | None, nodes: int | None) -> None:
    numbers = {"replicas": replicas, "threads": threads, "cores-per-node": cores_per_node, "nodes": nodes}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: give at least 1")


def _check_together(task: Task | None, counts: list[int], replicas: int, slurm: bool, json_output: bool) -> None:
    """Raise ConfigError where one option would have to be ignored because of another."""
    if replicas > 1 and task is Task.segment:
        raise ConfigError(f"--replicas {replicas}: segmenting has none; leave it out, or use --for train")
    if replicas > 1 and len(counts) > 1:
        raise ConfigError(
            f"--replicas {replicas}: the scaling over several --ranks is of one replica; leave out either"
        )
    if len(counts) == 1 and counts[0] % replicas:
        raise ConfigError(f"--ranks {counts[0]}: is no multiple of --replicas {replicas}; give a multiple")
    if slurm and json_output:
        raise ConfigError("--slurm and --json: give one of them; each prints nothing else")
    if slurm and task is None:
        raise ConfigError("--slurm: say what for, with --for train or --for segment")


def _node_memory(text: str | None, cores_per_node: int | None) -> int:
    """Bytes of a machine."""
    from volseg.machine import gibibytes
    from volseg.partition.nodes import SYSTEM
    from volseg.partition.planner import parse_memory

    if text is None or cores_per_node is None:
        raise ConfigError("to plan machines give --node-memory and --cores-per-node, such as 128GB and 36")
    memory = parse_memory(text, "--node-memory")
    if memory <= SYSTEM:
        raise ConfigError(f"--node-memory {text}: {gibibytes(SYSTEM)} are left to the system; give more than that")
    return memory


def _refuse_with_machines(**given: object) -> None:
    """With machines, ranks, threads and what each may use follow from the machines, and a replica takes them all."""
    for name, value in given.items():
        if value:
            raise ConfigError(f"--{name}: follows from the machines where --node-memory is given; leave out either")


def _origin(
    volume: Path | None, config: Path | None, run: Path | None, base_channels: int | None, levels: int | None
) -> Origin:
    from volseg.config import read_config
    from volseg.partition.command import Origin

    file = config if run is None else run / "config.toml"
    again = () if file is None else read_config(file).training.checkpoint_levels
    options = {"--base-channels": base_channels, "--levels": levels}
    changed = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return Origin(file, again, None if changed else run, changed, volume)


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


def _check_plot(asked: Asked, path: Path) -> None:
    from volseg.partition.schedule import covers

    if len(asked.ranks) < 2:
        raise ConfigError(f"--plot {path}: needs a range of ranks, such as --ranks 1:1024")
    if not covers(asked.settings.model):
        raise ConfigError(f"--plot {path}: only networks of kernel_size 3 and up = transpose have a planned time")


def _plot(found: Answer, path: Path) -> None:
    from volseg.files import replacing
    from volseg.study.scaling_figure import scaling_figure

    curves = {task: one.scaling for task, one in found.tasks.items() if one.scaling is not None}
    with replacing(path) as temporary:
        scaling_figure(curves).savefig(temporary, format="png")


def _print_script(asked: Asked, found: Answer) -> None:
    """The script, or on standard error why there is none."""
    from volseg.partition.batch_script import Place, batch_script
    from volseg.partition.explanation import why_too_large

    if not found.fits:
        reasons = [*found.no_machines.values(), *(why_too_large(one.question, one.run) for one in found.tasks.values())]
        print(f"error: --slurm: {reasons[0]}", file=sys.stderr)
        return
    ((task, one),) = found.tasks.items()
    place = Place(one.placing.threads)
    if one.nodes is not None and asked.node is not None:
        place = Place(one.nodes.threads, one.nodes.nodes, one.placing.per_machine, asked.node.memory)
    print(batch_script(task, one.run, place, asked.origin), end="")
