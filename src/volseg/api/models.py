"""Networks: train, segment, evaluate, verify_partition."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from volseg.api.opening import Sides, open_options
from volseg.api.ranks import ranks
from volseg.api.settings import OF_THE_NETWORK, Settings, overridden, parsed
from volseg.errors import ConfigError
from volseg.events import Listener, ignore

if TYPE_CHECKING:
    from volseg.config import Config
    from volseg.distributed.communicator import Communicator
    from volseg.geometry import Triple
    from volseg.segmentation.comparison import Evaluation
    from volseg.segmentation.report import SegmentationReport
    from volseg.segmentation.verification import Verification
    from volseg.training.job import NetworkSource
    from volseg.training.report import TrainingReport


DATASET = "ellipsoids"
"""Where none is named: what `generate` makes."""


def train(
    dataset: str | Path | None = None, run: str | Path = "volseg-run", *, labels: str | Path | None = None,
    label_names: str | Path | None = None, channels: tuple[str, ...] = (), label_map: Sequence[str] = (),
    config: Config | str | Path | None = None,
    recipe: str | None = None, partition: str = "auto", replicas: int = 1, agglomerate: str = "auto",
    proceed: bool = False, max_time: float | str | None = None, previews: int = 1, tensorboard: bool = False,
    trace: str | Path | None = None, trace_steps: int = 3, overwrite: bool = False,
    begin_from: str | Path | None = None, network: str | None = None, network_args: str | None = None,
    plans: str | Path | None = None, configuration: str | None = None,
    communicator: Communicator | None = None, listen: Listener = ignore,
    command: str | None = None, **settings: Unpack[Settings],
) -> TrainingReport:  # fmt: skip
    """Train a 3D U-Net on whole volumes, each split over the ranks. Collective.

    dataset      a data set's folder, or one scan; None: "ellipsoids", or where training goes on, the run's own, with
                 its labels, label_names and channels
    labels       of one scan: the file of its labels; of a folder of .zarr: the name of the label image in each
    label_names, channels  without dataset.json: a JSON file with names and values, and names of the image channels
    label_map    which values make which label, in place of the configuration's [labels]: a file or run with such a
                 table, or "liver=5,6" for each label
    run          folder for weights, log, pictures and reports
    config       a `volseg.config.Config`, or a TOML file; where training goes on, a file overrides the run's own, and
                 None is that
    recipe       "nnunet", "adamw", "residual" or "default": values that config and settings override
    partition    process grid Pz x Py x Px of each replica, such as "1x2x2", or "auto"
    replicas     groups of ranks, each with cases of its own; they divide the ranks
    agglomerate  coarse levels on fewer ranks: "3:2x1x1,4:1x1x1", "auto" or "none"
    proceed      go on from the run folder's checkpoint (--continue)
    begin_from   run folder, weights file or checkpoint: a new run begins with its network and weights (--from), sees
                 volumes at its spacing and normalised as it saw them; weights of classes and channels of the same name
                 are kept
    network      "FILE.py:name", a function or class of a file, which is run, that gives a torch module, or a class of
                 monai.networks.nets; with network_args as TOML ("act = 'relu'", or a file)
    plans        nnU-Net's plans.json: network, spacing and normalisation of `configuration` (None: 3d_fullres)
    max_time     seconds, or a text such as "3h50m", after which the run should have stopped and saved its state
    previews     held-out cases drawn after each validation
    tensorboard  also write event files for TensorBoard
    trace        also a trace of `trace_steps` steps here
    overwrite    replace what the run folder holds
    command      how the program was started, for the report
    settings     by name, such as ``epochs=10``: `volseg.api.settings.Settings` lists them

    Raises VolsegError where data set, configuration, grid or run folder cannot be used; nothing is written then.
    """
    with ranks(communicator, listen) as (every, heard):
        from volseg.config import read_label_map
        from volseg.training.job import TrainingJob
        from volseg.training.loop import train as run_training

        begins = _source(_path(begin_from), network, network_args, _path(plans), configuration)
        _check_beginning(begins, proceed, settings)
        before = _settings(config, recipe, Path(run), proceed)
        if dataset is None and proceed:
            dataset, labels, label_names, channels = _own_data(Path(run), labels, label_names, channels)
        settled = overridden(before, settings)
        if label_map:
            settled = dataclasses.replace(settled, labels=read_label_map(label_map))
        job = TrainingJob(
            dataset=Path(dataset or DATASET), run=Path(run), config=settled, partition=partition,
            proceed=proceed, overwrite=overwrite, trace=_path(trace), trace_steps=trace_steps, replicas=replicas,
            agglomerate=agglomerate, max_time=_seconds(max_time), labels=None if labels is None else str(labels),
            label_names=_path(label_names), channel_names=channels, previews=previews, tensorboard=tensorboard,
            command=command, begins=begins, flip_asked=settings.get("flip") is not None,
        )  # fmt: skip
        return run_training(job, every, heard)


def _source(
    run: Path | None, network: str | None, network_args: str | None, plans: Path | None, configuration: str | None
) -> NetworkSource | None:
    """Where the network comes from. Raises ConfigError where that is said twice, or not at all."""
    from volseg.training.job import NetworkSource

    named = [option for option, value in (("--from", run), ("--network", network), ("--plans", plans)) if value]
    if len(named) > 1:
        raise ConfigError(f"{named[0]} and {named[1]}: both say which network to train; leave out either")
    for option, value, of in (
        ("--network-args", network_args, "--network"),
        ("--configuration", configuration, "--plans"),
    ):
        if value is not None and of not in named:
            raise ConfigError(f"{option} {value}: goes with {of}; give that, or leave it out")
    if not named:
        return None
    return NetworkSource(
        run=run, module=network, arguments=network_args, plans=plans, configuration=configuration
    )  # fmt: skip


def _check_beginning(begins: NetworkSource | None, proceed: bool, settings: Settings) -> None:
    """Raise ConfigError where a run would begin with a network and be asked for another one."""
    if begins is None:
        return
    if proceed:
        raise ConfigError(f"{begins}: --continue goes on with the run's own network; leave out either")
    asked = [name for name in OF_THE_NETWORK if settings.get(name) is not None]
    if asked:
        option = f"--{asked[0].replace('_', '-')} {settings.get(asked[0])}"
        raise ConfigError(f"{option}: the network of {begins} is what it is; leave out either")


def _seconds(max_time: float | str | None) -> float | None:
    """A time of the user's in seconds. Raises ConfigError for what is none."""
    from volseg.sizes import parse_duration

    seconds = parsed(max_time, parse_duration)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | None):
        raise ConfigError(f"max_time = {max_time!r}: give seconds, or a text such as 3h50m")
    return seconds


def _own_data(
    run: Path, labels: str | Path | None, label_names: str | Path | None, channels: tuple[str, ...]
) -> tuple[str | Path, str | Path | None, str | Path | None, tuple[str, ...]]:
    """What a run was trained on, but for what is given."""
    from volseg.config.stored_run import own_data

    own = own_data(run)
    return own.dataset, labels or own.labels, label_names or own.label_names, channels or own.channel_names


def _settings(config: Config | str | Path | None, recipe: str | None, run: Path, proceed: bool) -> Config:
    """What a run is made from before anything is overridden."""
    from volseg.config import Config, read_config
    from volseg.config.recipes import config_of_recipe
    from volseg.config.stored_run import CONFIG, read_run_config

    if isinstance(config, Config):
        if recipe is not None:
            raise ConfigError(f"recipe {recipe}: give it, a TOML file or both, but no Config, which has every value")
        return config
    if not proceed:
        base = config_of_recipe(recipe) if recipe is not None else Config()
        return base if config is None else read_config(Path(config), base)
    if not (run / CONFIG).is_file():
        raise ConfigError(f"{run}: no {CONFIG} to continue with; leave out --continue to start anew")
    if recipe is not None:
        raise ConfigError(f"--recipe {recipe}: --continue goes on with the settings of {run / CONFIG}; leave it out")
    base = read_run_config(run)
    return base if config is None else read_config(Path(config), base)


def segment(
    scan: str | Path, output: str | Path | None = None, *, model: str | Path = "volseg-run", partition: str = "auto",
    agglomerate: str = "auto", spacing: tuple[float, float, float] | Literal["model", "native"] = "model",
    series: str | None = None, fix_tilt: bool = False, resample_gaps: bool = False,
    voxel_size: Sides | str | None = None, shape: Triple | str | None = None, dtype: str | None = None,
    keep_largest: bool = False,
    min_volume: float = 0.0, connectivity: int = 26, split: bool = False, save_probabilities: bool = False,
    statistics: bool = False, preview: bool = False, memory_limit: int | str | None = None,
    schedule: Literal["auto", "in-place", "recompute", "spill"] = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto", scratch: str | Path | None = None,
    go_on: bool = False, report_file: str | Path | None = None, trace: str | Path | None = None,
    window: Triple | str | None = None, step: float | None = None, whole: bool = False, mirror: bool = False,
    folds: str = "first", overwrite: bool = False, communicator: Communicator | None = None, listen: Listener = ignore,
) -> SegmentationReport:  # fmt: skip
    """Segment a scan; the mask lies on the scan's own grid, byte for byte the same on any number of ranks. Collective.

    scan          a volume of any format of docs/formats.md, or one DICOM series: a folder, a zip, a DICOMDIR, a file
    output        the mask's file, also SCAN.zarr/labels/NAME; a folder: CASE.nii.gz in it; None: SCAN_mask.nii.gz
    model         run folder, or a weights file
    spacing       how the network sees the scan: the model's, "native", or mm along the patient's z, y, x
    voxel_size    mm along D, H, W of a file that does not say (TIFF, HDF5, raw); shape, dtype: of a raw file's voxels
    keep_largest  of each label only the largest connected component; min_volume: mm³ of those that stay
    connectivity  6, 18 or 26 neighbours
    split         also a mask for each label; save_probabilities, statistics, preview: also those files
    memory_limit  bytes a rank may use, or a text such as "4GiB"; None: what the machine has free
    schedule      how the network is run; "auto": the fastest that fits; precision: how tensors are stored
    window        voxels of a sliding window on the network's axes, (96, 96, 96) or "96x96x96"; None: an imported
                  model's own, else the whole volume at once; step: how far windows lie apart, as a share of the window
    whole         the whole volume at once with an imported model too
    mirror        average over mirror images, on the axes that the model's training mirrored; folds: "first", "all" or
                  such as "0,1": an imported model's folds whose logits are averaged
    go_on         keep what is done in MASK_state, and go on from there (--continue)
    report_file   also a JSON report here; trace: also a trace

    Raises VolsegError where scan, model, grid or outputs cannot be used.
    """
    with ranks(communicator, listen) as (every, heard):
        from volseg.precision import Precision
        from volseg.program.schedule import Schedule
        from volseg.segmentation.job import SegmentationJob
        from volseg.segmentation.postprocessing import Cleaning
        from volseg.segmentation.segment import segment as run
        from volseg.segmentation.windows.options import WindowOptions
        from volseg.sizes import parse_memory, parse_shape

        if isinstance(memory_limit, str):
            memory_limit = parse_memory(memory_limit, "--memory-limit")
        size = parse_shape(window, "--window") if isinstance(window, str) else window
        job = SegmentationJob(
            scan=Path(scan), model=Path(model), output=_path(output), partition=partition,
            probabilities=save_probabilities, statistics=statistics, preview=preview, report=_path(report_file),
            trace=_path(trace), overwrite=overwrite, spacing=spacing,
            options=open_options(series, fix_tilt, resample_gaps, voxel_size, shape, dtype),
            cleaning=Cleaning(keep_largest, min_volume, connectivity), split=split, memory_limit=memory_limit,
            schedule=None if schedule == "auto" else Schedule(schedule),
            precision=None if precision == "auto" else Precision(precision), scratch=_path(scratch), go_on=go_on,
            agglomerate=agglomerate,
            view=WindowOptions(window=size, step=step, whole=whole, mirror=mirror, folds=folds),
        )  # fmt: skip
        return run(job, every, heard)


def evaluate(
    prediction: str | Path, reference: str | Path, *, labels: str | Path | None = None,
    label_map: Sequence[str] = (), output: str | Path | None = None, partial: bool = False, overwrite: bool = False,
    communicator: Communicator | None = None, listen: Listener = ignore,
) -> Evaluation:  # fmt: skip
    """Compare masks with reference masks on the same grid: Dice, IoU and volumes for each label. Collective.

    prediction, reference  a mask each, or folders of masks, which are paired by name
    labels   label names: a dataset.json, or JSON such as {"liver": 1}; None: the labels found
    label_map  what the references' values become: a file or run with [labels], or "liver=5,6" for each label
    output   also nnU-Net's summary.json here
    partial  allow references that have no prediction

    Raises VolumeError where masks cannot be paired or compared.
    """
    with ranks(communicator, listen) as (every, heard):
        from volseg.config import read_label_map
        from volseg.segmentation.comparison import EvaluationJob
        from volseg.segmentation.comparison import evaluate as compare

        job = EvaluationJob(
            prediction=Path(prediction),
            reference=Path(reference),
            labels=_path(labels),
            output=_path(output),
            partial=partial,
            overwrite=overwrite,
            label_map=read_label_map(label_map),
        )
        return compare(job, every, heard)


def verify_partition(
    scan: str | Path, *, model: str | Path = "volseg-run", partition: str = "auto", agglomerate: str = "none",
    precision: Literal["auto", "float32", "bfloat16"] = "auto", communicator: Communicator | None = None,
) -> Verification:  # fmt: skip
    """Compare all logits and labels of this job's ranks with those of one rank. Collective.

    precision  in which tensors are stored; "auto": as the model was trained

    The root holds the whole volume for its part. Raises VolsegError where scan, model or grid cannot be used.
    """
    with ranks(communicator) as (every, _):
        from volseg.precision import Precision
        from volseg.segmentation.verification import verify_partition as verify

        stored = None if precision == "auto" else Precision(precision)
        return verify(Path(model), Path(scan), partition, every, agglomerate, stored)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
