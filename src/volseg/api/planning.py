"""Plans and machines: plan_partition, calibrate, run_study."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from volseg.api.other_network import other_network
from volseg.api.ranks import ranks as ranks_of_job
from volseg.errors import ConfigError
from volseg.events import Listener, ignore
from volseg.geometry import Triple, format_triple

if TYPE_CHECKING:
    from volseg.config import Config
    from volseg.distributed.communicator import Communicator
    from volseg.networks.description import Network
    from volseg.planning.answer import Answer, Asked
    from volseg.planning.command import Origin
    from volseg.planning.profile import Profile
    from volseg.study.study import Outcome

Task = Literal["train", "segment"]

Spacing = tuple[float, float, float]


def plan_partition(
    volume: str | Path | None = None, *, shape: Triple | None = None, ranks: Sequence[int] = (),
    memory: int | str | None = None, task: Task | None = None, partition: str = "auto", replicas: int = 1,
    threads: int | None = None, node_memory: str | None = None, cores_per_node: int | None = None,
    nodes: int | None = None, base_channels: int | None = None, levels: int | None = None, agglomerate: str = "auto",
    checkpoint_levels: tuple[int, ...] | None = None, config: str | Path | None = None,
    model: str | Path | None = None, profile: str | Path | None = None, spacing: Spacing | str | None = None,
    crop: Triple | str | None = None, multigrid: int | None = None, cases: int | None = None,
    precision: str = "auto", network: str | None = None, network_args: str | None = None,
    plans: str | Path | None = None, configuration: str | None = None,
) -> Answer:  # fmt: skip
    """Plan how a volume is split over ranks, the memory each needs, and how long it takes. Starts no torch, no MPI.

    volume       a scan whose size to plan for, or `shape`, its (D, H, W) voxels
    ranks        to plan for; several for the scaling; none: those of `partition`, the fewest that fit, or 1
    memory       that a rank may use, in bytes or as "24GiB"
    task         only this one; None: both
    node_memory  of a machine, such as "128GB", with `cores_per_node`: plan whole machines, `nodes` or the fewest
    config       TOML file with [model]; or `model`, a run folder
    profile      of `calibrate`; None: volseg-profile.json, or a built-in one
    spacing      mm, (D, H, W) or "5x0.8x0.8", of the voxels, by which `train` chooses kernels and strides; None: that
                 of `volume`, and all axes alike where there is only `shape`
    crop         (D, H, W) voxels, or "256x256x256", of a random crop of the volume a step; None: as `config` says
    network      "FILE.py:name" or a class of monai.networks.nets, with `network_args`, as `train` takes them: torch is
                 loaded to describe it; channels and classes are those of `config`
    plans        nnU-Net's plans.json and which `configuration` of it; classes by the dataset.json beside it
    multigrid    resolutions to train at, each half as fine as the one before; None: as `config` says
    cases        to train on, for the time of an epoch and of the run
    precision    in which tensors are stored, "float32" or "bfloat16"; "auto": as `config` or `model` says

    ``answer.tasks["train"].run`` is the plan; ``answer.fits`` whether it keeps to the memory.

    Raises ConfigError for arguments that do not go together, PartitionError where the volume cannot be split so.
    """
    from volseg.planning.answer import answer
    from volseg.sizes import parse_shape, parse_spacing

    return answer(
        question(
            volume, shape, ranks, memory, task, partition, replicas, threads, node_memory, cores_per_node, nodes,
            base_channels, levels, agglomerate, checkpoint_levels, config, model, profile,
            parse_spacing(spacing) if isinstance(spacing, str) else spacing,
            parse_shape(crop) if isinstance(crop, str) else crop, multigrid, cases, precision, network, network_args,
            plans, configuration,
        )
    )  # fmt: skip


def question(
    volume: str | Path | None, shape: Triple | None, ranks: Sequence[int], memory: int | str | None,
    task: str | None, partition: str, replicas: int, threads: int | None, node_memory: str | None,
    cores_per_node: int | None, nodes: int | None, base_channels: int | None, levels: int | None, agglomerate: str,
    checkpoint_levels: tuple[int, ...] | None, config: str | Path | None, model: str | Path | None,
    profile: str | Path | None, spacing: Spacing | None = None, crop: Triple | None = None,
    multigrid: int | None = None, cases: int | None = None, precision: str = "auto", network: str | None = None,
    network_args: str | None = None, plans: str | Path | None = None, configuration: str | None = None,
) -> Asked:  # fmt: skip
    """What `plan_partition` answers. Raises ConfigError for arguments that do not go together."""
    from volseg.networks.imported import imported_model
    from volseg.planning.answer import Asked
    from volseg.planning.profile import find_profile
    from volseg.sizes import parse_memory

    counts = list(ranks)
    _check_numbers(
        {"replicas": replicas, "threads": threads, "cores-per-node": cores_per_node, "nodes": nodes, "cases": cases}
    )
    named = _grid(partition, counts, replicas)
    _check_together(task, counts, replicas)
    _check_training(task, multigrid=multigrid, cases=cases)
    node = None
    if node_memory is not None or nodes is not None:
        node = _node_memory(node_memory, cores_per_node)
        _refuse_with_machines(replicas=replicas != 1, threads=threads, memory=memory, ranks=counts)
    volume, config, model, profile, plans = (
        None if path is None else Path(path) for path in (volume, config, model, profile, plans)
    )
    model = None if model is None else _first_of_joined(model)
    stores = None if precision == "auto" else precision
    settings = _settings(config, model, base_channels, levels, checkpoint_levels, crop, multigrid, stores)
    size, own = _size(volume, shape)
    others = {"--network": network, "--network-args": network_args, "--plans": plans, "--configuration": configuration}
    _check_named(others, model=model, base_channels=base_channels, levels=levels, spacing=spacing)
    stored = other_network(settings, network, network_args, plans, configuration)
    if stored is not None:
        settings, why_network = replace(settings, model=imported_model(stored)), ""
    else:
        settings, why_network = _with_network(settings, model, spacing or own, spacing, size)
        stored = None if model is None else _stored(model, base_channels, levels)
    origin = _origin(volume, config, model, base_channels, levels, crop, multigrid, others, stores)
    return Asked(
        shape=size, settings=settings, tasks=[task] if task is not None else ["train", "segment"],
        profile=find_profile(profile), ranks=counts, limit=parse_memory(memory) if isinstance(memory, str) else memory,
        dims=named, replicas=replicas, cases=cases, threads=threads or 1, node_memory=node,
        cores_per_node=cores_per_node, nodes=nodes, agglomerate=agglomerate, origin=origin,
        stored=stored, why_network=why_network,
    )  # fmt: skip


def calibrate(
    output: str | Path = "volseg-profile.json", *, setting_only: bool = False, launcher: str | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto", communicator: Communicator | None = None,
    listen: Listener = ignore,
) -> Profile:  # fmt: skip
    """Measure this machine, so that plans know how long things take, and write its profile. Collective.

    output        the profile, JSON; what it has of the same machine is kept beside what is measured
    setting_only  only as this job is: its ranks and threads; so are jobs of several ranks
    launcher      how to start ranks, such as "srun -n {ranks}"; None: mpirun, or srun
    precision     in which tensors are stored while it is measured; "auto": float32

    Raises ConfigError where the processor lacks the instructions of the kernels, or the file cannot be used.
    """
    os.environ.pop("VOLSEG_PROFILE", None)  # it may be the file that is to be made
    with ranks_of_job(communicator, listen) as (every, heard):
        from volseg.planning.profile import save_profile
        from volseg.precision import FLOAT32, Precision
        from volseg.study.calibration import calibrate as measure
        from volseg.study.calibration import known_profiles, measure_settings, merge
        from volseg.study.launching import find_launcher

        stored = FLOAT32 if precision == "auto" else Precision(precision)
        if every.size > 1 or setting_only:
            found = [measure(every, heard, precision=stored)]
        else:
            found = measure_settings(find_launcher(launcher), heard, stored)
        file = Path(output)

        def keep() -> Profile:
            profile = merge([*known_profiles(file, found[-1]), *found])
            file.parent.mkdir(parents=True, exist_ok=True)
            save_profile(profile, file)
            return profile

        return every.on_root(keep)


def run_study(
    what: Literal["memory", "channels", "scaling", "all"] = "all", output: str | Path = "volseg-study", *,
    sides: Sequence[int] = (), channels: Sequence[int] = (), ranks: Sequence[int] = (), levels: int = 3,
    minutes: float = 20.0, profile: str | Path | None = None, launcher: str | None = None, proceed: bool = False,
    overwrite: bool = False, listen: Listener = ignore,
) -> Outcome:  # fmt: skip
    """Run the program over sizes, channels and ranks, and lay the model beside what was measured: ``volseg study``.

    It starts ranks of its own, so it is called by an ordinary process. Empty: what there is time for.

    output   folder for report.html, figures and measurements.csv
    minutes  for everything; what does not fit is left out
    proceed  keep the cases that are done, and go on (--continue)

    Raises ConfigError under mpirun, and where the wishes cannot be met.
    """
    from volseg.distributed.launchers import under_launcher

    if under_launcher():
        raise ConfigError("volseg study starts its own ranks: run it as an ordinary process, without mpirun")
    from volseg.study.study import Wishes
    from volseg.study.study import run_study as run
    from volseg.versions import command_line

    wishes = Wishes(
        what=what, folder=Path(output).resolve(), sides=tuple(sorted(set(sides))),
        channels=tuple(sorted(set(channels))), ranks=tuple(sorted(set(ranks))), levels=levels, minutes=minutes,
        profile=None if profile is None else Path(profile), launcher=launcher, proceed=proceed, overwrite=overwrite,
        command=command_line(),
    )  # fmt: skip
    return run(wishes, listen)


def _grid(partition: str, counts: list[int], replicas: int) -> Triple | None:
    """The grid of a replica, where one is named; it must have the ranks that are named besides."""
    from volseg.planning.planner import grid_named, parse_grid

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


def _check_numbers(numbers: dict[str, int | None]) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: give at least 1")


def _check_together(task: str | None, counts: list[int], replicas: int) -> None:
    """Raise ConfigError where one option would have to be ignored because of another."""
    if replicas > 1 and task == "segment":
        raise ConfigError(f"--replicas {replicas}: segmenting has none; leave it out, or use --for train")
    if replicas > 1 and len(counts) > 1:
        raise ConfigError(
            f"--replicas {replicas}: the scaling over several --ranks is of one replica; leave out either"
        )
    if len(counts) == 1 and counts[0] % replicas:
        raise ConfigError(f"--ranks {counts[0]}: is no multiple of --replicas {replicas}; give a multiple")


def _check_training(task: str | None, **numbers: int | None) -> None:
    """Raise ConfigError where segmenting alone is planned with an option that only training has."""
    for name, value in numbers.items():
        if value is not None and task == "segment":
            raise ConfigError(f"--{name} {value}: segmenting has none; leave it out, or use --for train")


def _check_named(others: Mapping[str, object], **asked: object) -> None:
    """Raise ConfigError where a network is named, and an option besides says which one it is."""
    option = next((name for name, value in others.items() if value is not None), None)
    for name, value in asked.items():
        if option is not None and value is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: the network of {option} is what it is; leave out either")


def _first_of_joined(run: Path) -> Path:
    """The run folder itself, or where it joins several models, which take turns, that of the first."""
    from volseg.networks.stored import JOINED

    return run / "part_1" if (run / JOINED).is_file() else run


def _node_memory(text: str | None, cores_per_node: int | None) -> int:
    """Bytes of a machine."""
    from volseg.machine import gibibytes
    from volseg.planning.nodes import SYSTEM
    from volseg.sizes import parse_memory

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
    volume: Path | None, config: Path | None, run: Path | None, base_channels: int | None, levels: int | None,
    crop: Triple | None, multigrid: int | None, others: Mapping[str, object], precision: str | None,
) -> Origin:  # fmt: skip
    from volseg.config import read_config
    from volseg.config.stored_run import CONFIG
    from volseg.planning.command import Origin

    file = config if run is None else run / CONFIG
    settings = None if file is None else read_config(file)
    again = () if settings is None else settings.training.checkpoint_levels
    options = {"--base-channels": base_channels, "--levels": levels}
    changed = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    imported = settings is not None and settings.model.architecture == "imported"
    trained = ["--from", str(run)] if imported else []
    trained += [] if crop is None else ["--crop", format_triple(crop)]
    trained += [] if multigrid is None else ["--multigrid", str(multigrid)]
    trained += [word for name, value in others.items() if value is not None for word in (name, str(value))]
    return Origin(file, again, None if changed else run, [*changed, *trained], volume, precision)


def _settings(
    config: Path | None,
    run: Path | None,
    base_channels: int | None,
    levels: int | None,
    checkpoint_levels: tuple[int, ...] | None,
    crop: Triple | None,
    multigrid: int | None,
    precision: str | None,
) -> Config:
    from volseg.config import Config, override, read_config
    from volseg.config.stored_run import CONFIG

    if config is not None and run is not None:
        raise ConfigError("give --config or --model, not both")
    if run is not None:
        settings = read_config(run / CONFIG)
    else:
        settings = read_config(config) if config is not None else Config()
    model = {"base_channels": base_channels, "levels": levels}
    return override(
        settings, model=model, training={"checkpoint_levels": checkpoint_levels, "precision": precision},
        data={"crop": crop}, multigrid={"levels": multigrid},
    )  # fmt: skip


def _stored(run: Path, base_channels: int | None, levels: int | None) -> Network | None:
    """The network that a run's model describes; None where it has none, or another one is asked for.

    Raises ConfigError where the network of an imported model is to be another one.
    """
    from volseg.config.stored_run import read_run_config
    from volseg.networks.stored import WEIGHTS, stored_network

    if base_channels is None and levels is None:
        return stored_network(run / WEIGHTS) if (run / WEIGHTS).is_file() else None
    if read_run_config(run).model.architecture == "imported":
        raise ConfigError(
            f"--base-channels, --levels: the network of {run} is imported, and what it is; leave them out"
        )
    return None


def _with_network(
    settings: Config, run: Path | None, spacing: Spacing | None, asked: Spacing | None, shape: Triple
) -> tuple[Config, str]:
    """The settings with the network that `train` would choose for such voxels, and why; that of a run is settled.

    Raises ConfigError where a spacing is asked for besides a run.
    """
    from volseg.networks.choice import with_network_for

    if run is not None and asked is not None:
        raise ConfigError(f"--spacing: the network of {run} is what it is; leave out --spacing, or --model")
    if run is not None or spacing is None:
        return settings, ""
    return with_network_for(settings, spacing, shape)


def _size(volume: Path | None, shape: Triple | None) -> tuple[Triple, Spacing | None]:
    """Voxels, and the spacing of a volume's."""
    if (volume is None) == (shape is None):
        raise ConfigError("give a volume, or its size with --shape 512x512x512")
    if shape is not None:
        return shape, None
    if volume is not None:
        from volseg.volumes.canonical import canonical
        from volseg.volumes.reading import open_volume

        space = canonical(open_volume(volume)).space
        return space.shape, space.spacing
    raise AssertionError
