"""``volseg plan-partition``: grid, memory and time before anything runs. Imports neither torch nor mpi4py."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from volseg.cli.options import Agglomerate, Debug, JsonOutput, Precision, PrecisionName
from volseg.cli.rank_counts import parse_ranks
from volseg.errors import ConfigError
from volseg.planning.batch_system import Site, System
from volseg.sizes import parse_duration, parse_levels, parse_shape, parse_spacing

if TYPE_CHECKING:
    from volseg.planning.answer import Answer, Asked


class Task(StrEnum):
    """What the ranks are to do."""

    train = "train"
    segment = "segment"


def plan_partition(
    volume: Annotated[Path | None, typer.Argument(help="A scan whose size to plan for.")] = None,
    shape: Annotated[str | None, typer.Option(help="Or its size in voxels, D x H x W, such as 512x512x512.")] = None,
    spacing: Annotated[
        str | None,
        typer.Option(help="Of its voxels, mm, D x H x W, by which train chooses the network.  [default: the scan's]"),
    ] = None,
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
    precision: Precision = PrecisionName.auto,
    crop: Annotated[
        str | None, typer.Option(help="A random crop of the volume a training step, such as 256x256x256.")
    ] = None,
    multigrid: Annotated[
        int | None, typer.Option(help="Resolutions to train at, each half as fine as the one before.  [default: 1]")
    ] = None,
    cases: Annotated[
        int | None, typer.Option(help="Cases to train on, for the time of an epoch and of the run.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with [model], and how it is trained: [data], [multigrid] ...")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Or a run folder of volseg train.")] = None,
    network: Annotated[
        str | None,
        typer.Option(help="Or FILE.py:name, which is run, or a class of MONAI; --config says channels and classes."),
    ] = None,
    network_args: Annotated[
        str | None, typer.Option(help="Its arguments, TOML: channels = [16, 32], act = 'RELU', or a .toml file.")
    ] = None,
    plans: Annotated[
        Path | None, typer.Option(help="Or nnU-Net's plans.json; a dataset.json beside it says the classes.")
    ] = None,
    configuration: Annotated[
        str | None, typer.Option(help="Of --plans, such as 3d_lowres.  [default: 3d_fullres]")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Machine, of volseg calibrate.  [default: volseg-profile.json, or a built-in one]"),
    ] = None,
    batch: Annotated[
        System | None, typer.Option(help="Print a batch script for this system, and nothing else.")
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Short for --batch slurm.")] = False,
    account: Annotated[str | None, typer.Option(help="Of a batch script: who pays.")] = None,
    queue: Annotated[str | None, typer.Option(help="Of a batch script: where it waits (Slurm's partition).")] = None,
    time: Annotated[
        str, typer.Option(help="Of a batch script: how long it may run, such as 4h or 1-12:00:00.")
    ] = "24h",
    setup: Annotated[
        list[str] | None,
        typer.Option(help="Of a batch script: a line before it, such as 'module load mpich'."),
    ] = None,
    launch_options: Annotated[
        str | None,
        typer.Option(help="Of a batch script: options of srun or mpirun.  [default: what this machine's MPI needs]"),
    ] = None,
    program: Annotated[
        bool, typer.Option("--program", help="Print the steps of the busiest rank too, a line each.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw memory and time over the range of ranks: a PNG.")] = None,
    json_output: JsonOutput = False,
    debug: Debug = False,
) -> None:
    """Plan how a volume is split over ranks, the memory each rank needs, and how long it takes to train and to segment.

    With --memory also the fewest ranks that fit; with --ranks 1:4096 how far more ranks pay; with --node-memory and
    --cores-per-node how many machines. Last comes the command that runs the plan. Exit code 1: it does not fit.
    """
    from volseg.api.planning import question
    from volseg.planning.answer import answer

    script = "--batch" if batch is not None else "--slurm"
    site = None
    if slurm or batch is not None:
        if json_output:
            raise ConfigError(f"{script} and --json: give one of them; each prints nothing else")
        if program:
            raise ConfigError(f"{script} and --program: give one of them; a batch script is printed alone")
        if task is None:
            raise ConfigError(f"{script}: say what for, with --for train or --for segment")
        site = _site(batch, slurm, account, queue, time, setup or [], launch_options)
    asked = question(
        volume, None if shape is None else parse_shape(shape), [] if ranks is None else parse_ranks(ranks), memory,
        None if task is None else task.value, partition, replicas, threads, node_memory, cores_per_node, nodes,
        base_channels, levels, agglomerate, None if checkpoint_levels is None else parse_levels(checkpoint_levels),
        config, model, profile, None if spacing is None else parse_spacing(spacing),
        None if crop is None else parse_shape(crop), multigrid, cases, precision.value, network, network_args, plans,
        configuration,
    )  # fmt: skip
    if plot is not None:
        _check_plot(asked, plot)
    found = answer(asked)
    if plot is not None:
        _plot(found, plot)
    if site is not None:
        _print_script(asked, found, site, script)
    elif json_output:
        import json

        from volseg.cli.plan_facts import facts

        print(json.dumps(facts(asked, found, programs=program), indent=2))
    else:
        from volseg.cli.plan_tables import show

        show(asked, found)
        if program:
            from volseg.cli.plan_program import show_programs

            show_programs(found)
    # A limit that no plan meets is an answer, but one that a script must not overlook.
    if not found.fits:
        raise typer.Exit(1)


def _check_plot(asked: Asked, path: Path) -> None:
    from volseg.networks.coverage import why_not_covered

    if len(asked.ranks) < 2:
        raise ConfigError(f"--plot {path}: needs a range of ranks, such as --ranks 1:1024")
    reason = why_not_covered(asked.network)
    if reason:
        raise ConfigError(
            f"--plot {path}: the network has no planned time, for {reason}, which was not measured; leave out "
            "--plot, or plan another network"
        )


def _plot(found: Answer, path: Path) -> None:
    from volseg.files import replacing
    from volseg.study.scaling_figure import scaling_figure

    curves = {task: one.scaling for task, one in found.tasks.items() if one.scaling is not None}
    with replacing(path) as temporary:
        scaling_figure(curves).savefig(temporary, format="png")


def _site(
    batch: System | None, slurm: bool, account: str | None, queue: str | None, time: str, setup: list[str],
    launch_options: str | None,
) -> Site:  # fmt: skip
    if slurm and batch not in (None, System.SLURM):
        raise ConfigError(f"--slurm and --batch {batch}: give one of them")
    system = batch or System.SLURM
    if launch_options is not None:
        launch: tuple[str, ...] = tuple(shlex.split(launch_options))
    elif system is System.SLURM:
        from volseg.distributed.launch import mpi_library
        from volseg.distributed.slurm import KILL, srun_options

        launch = srun_options(mpi_library()) or (KILL,)
    else:
        launch = ()
    return Site(
        system=system,
        account=account,
        queue=queue,
        seconds=ceil(parse_duration(time, "--time")),
        setup=setup,
        launch=launch,
    )


def _print_script(asked: Asked, found: Answer, site: Site, option: str) -> None:
    """The script, or on standard error why there is none."""
    from volseg.planning.batch_script import Place, batch_script
    from volseg.planning.explanation import why_too_large

    if not found.fits:
        too_large = (why_too_large(one.question, one.run, one.whole) for one in found.tasks.values())
        reasons = [*found.no_machines.values(), *too_large]
        print(f"error: {option}: {reasons[0]}", file=sys.stderr)
        return
    ((task, one),) = found.tasks.items()
    place = Place(one.placing.threads)
    if one.nodes is not None and asked.node is not None:
        place = Place(one.nodes.threads, one.nodes.nodes, one.placing.per_machine, asked.node.memory)
    print(batch_script(task, one.run, place, asked.origin, one.memory.peak, site), end="")
