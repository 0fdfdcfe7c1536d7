"""``volseg train``: train a 3D U-Net on whole volumes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.job import job
from volseg.cli.options import (
    Agglomerate,
    Channels,
    Debug,
    LabelMap,
    LabelNames,
    Labels,
    NoProgress,
    Overwrite,
    OwnDatasetPath,
    Precision,
    PrecisionName,
    Quiet,
    Trace,
)


def train(
    dataset: OwnDatasetPath = None,
    run: Annotated[Path, typer.Option("--output", "-o", help="Run folder.")] = Path("volseg-run"),
    labels: Labels = None,
    label_names: LabelNames = None,
    channels: Channels = None,
    label_map: LabelMap = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file, such as volseg init-config writes; options override it.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="nnunet, adamw, residual or default: values that --config and options override.")
    ] = None,
    begin_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Begin with network, weights, spacing and normalisation of this run (folder, weights or checkpoint).",
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="FILE.py:name, a function or class that gives a torch module (the file is run), or a class of MONAI."
        ),
    ] = None,
    network_args: Annotated[
        str | None, typer.Option(help="Its arguments, TOML: channels = [16, 32], act = 'RELU', or a .toml file.")
    ] = None,
    plans: Annotated[
        Path | None, typer.Option(help="nnU-Net's plans.json: its network, spacing and normalisation.")
    ] = None,
    configuration: Annotated[
        str | None, typer.Option(help="Of --plans, such as 3d_lowres.  [default: 3d_fullres]")
    ] = None,
    partition: Annotated[str, typer.Option(help="Process grid Pz x Py x Px, such as 1x2x2, or auto.")] = "auto",
    replicas: Annotated[
        int, typer.Option(help="Groups of ranks, each with its own grid and its own cases; they divide the ranks.")
    ] = 1,
    accumulate: Annotated[
        int | None, typer.Option(help="Cases a replica takes for a step; replicas x this is the batch.  [default: 1]")
    ] = None,
    agglomerate: Agglomerate = "auto",
    multigrid: Annotated[
        int | None, typer.Option(help="Resolutions to train at, each half as fine as the one before.  [default: 1]")
    ] = None,
    cycle: Annotated[
        str | None, typer.Option(help="fmg: coarse to fine, once; v: down and up, several times.  [default: fmg]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the cases.  [default: 40]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At the start.  [default: 0.01]")] = None,
    schedule: Annotated[str | None, typer.Option(help="poly, cosine or constant.  [default: poly]")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps of rising learning rate.  [default: 0]")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd.  [default: adamw]")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of sgd.  [default: 0.99]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of the optimizer.  [default: 1e-5]")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradients; 0: any.  [default: 0]")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of an average of the weights, such as 0.999; 0: none.  [default: 0]")
    ] = None,
    deep_supervision: Annotated[
        bool | None, typer.Option("--deep-supervision/--no-deep-supervision", help="The loss at coarser levels too.")
    ] = None,
    batch_dice: Annotated[
        bool | None, typer.Option("--batch-dice/--no-batch-dice", help="The loss's Dice over all cases of a step.")
    ] = None,
    base_channels: Annotated[int | None, typer.Option(help="Channels at full resolution.  [default: 16]")] = None,
    levels: Annotated[int | None, typer.Option(help="Halvings of the resolution.  [default: 3]")] = None,
    anisotropy: Annotated[
        str | None,
        typer.Option(
            help="auto: kernels and strides by the spacing of the data; none: all axes alike.  [default: auto]"
        ),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="instance, group, batch or none.  [default: instance]")] = None,
    checkpoint_levels: Annotated[
        str | None, typer.Option(help="Levels that compute tensors again in backward to keep fewer, such as 0,1.")
    ] = None,
    precision: Precision = PrecisionName.auto,
    augment: Annotated[
        str | None, typer.Option(help="How volumes are changed, anew each step: none, light or full.  [default: none]")
    ] = None,
    flip: Annotated[
        str | None,
        typer.Option(help="Axes mirrored half of the time, such as dhw, h or none; w is left-right."),
    ] = None,
    crop: Annotated[
        str | None, typer.Option(help="A random crop of each volume a step, such as 256x256x256.  [default: all of it]")
    ] = None,
    validation: Annotated[int | None, typer.Option(help="Cases held out.  [default: one in eight]")] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Epochs between evaluations of the held-out cases.  [default: 1]")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Validations without an improvement that end the run; 0: any.  [default: 0]")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Parts of a cross-validation.  [default: 5 with --fold, else none]")
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Which of them is held out, from 0.  [default: 0]")] = None,
    readers: Annotated[
        str | None,
        typer.Option(help="Of several masks a case: majority, random (one a step) or first.  [default: majority]"),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(help="How the network sees volumes: own, median, or mm, as 3x1.5x1.5.  [default: auto]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and case order.  [default: 0]")] = None,
    proceed: Annotated[bool, typer.Option("--continue", help="Go on from the run folder's last checkpoint.")] = False,
    keep: Annotated[int | None, typer.Option(help="Checkpoints that are kept, the last ones.  [default: 2]")] = None,
    checkpoint_seconds: Annotated[
        float | None, typer.Option(help="Between two checkpoints at least.  [default: 30]")
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(help="Stop, with a checkpoint, before so long has passed: 3h50m, 12:00:00, 5400 (s)."),
    ] = None,
    previews: Annotated[
        int, typer.Option(help="Held-out cases drawn after each validation, in RUN/previews; 0 for none.")
    ] = 1,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also event files for TensorBoard; needs that package.")
    ] = False,
    trace: Trace = None,
    trace_steps: Annotated[int, typer.Option(help="Steps in the trace; the first of a run is left out.")] = 3,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Train a 3D U-Net on whole volumes, each split over all ranks: mpirun -n 4 volseg train.

    With --replicas 2 two volumes at a time, each split over half of the ranks, and one step with both.

    Writes weights.safetensors, best.safetensors, checkpoints/, config.toml, log.csv, progress.png, previews/,
    report.json, report.html, fingerprint.json and split.json. On SIGTERM or SIGUSR1 it saves its state and ends;
    --continue goes on.
    """
    begun = time.monotonic()
    with job(quiet, no_progress, debug) as work:
        from volseg.api import train as train_run
        from volseg.cli.go_on import go_on_command
        from volseg.cli.render import (
            class_text,
            peak_memory_text,
            step_time_text,
            time_text,
            warn_of_plan,
            warn_of_time,
        )  # fmt: skip
        from volseg.distributed.launchers import launch_words
        from volseg.messages import MessageLog, duration
        from volseg.models.stored import BEST
        from volseg.sizes import parse_duration, parse_names
        from volseg.training.job import HTML
        from volseg.versions import command_line

        work.folder = run
        # The time of the job counts, not only that of the training.
        limit = None if max_time is None else parse_duration(max_time) - (time.monotonic() - begun)
        report = train_run(
            dataset, run, labels=labels, label_names=label_names, channels=parse_names(channels),
            label_map=label_map or (), config=config, recipe=recipe, begin_from=begin_from, network=network,
            network_args=network_args, plans=plans, configuration=configuration,
            partition=partition, replicas=replicas, accumulate=accumulate, agglomerate=agglomerate,
            multigrid=multigrid, cycle=cycle, epochs=epochs, learning_rate=learning_rate, schedule=schedule,
            warmup=warmup, optimizer=optimizer, momentum=momentum, weight_decay=weight_decay, clip=clip, ema=ema,
            deep_supervision=deep_supervision, batch_dice=batch_dice, base_channels=base_channels, levels=levels,
            anisotropy=anisotropy, norm=norm, checkpoint_levels=checkpoint_levels,
            precision=precision.value, augment=augment, flip=flip,
            crop=crop, validation=validation, validate_every=validate_every, patience=patience,
            folds=folds, fold=fold, spacing=spacing, readers=readers,
            seed=seed, proceed=proceed, keep=keep, checkpoint_seconds=checkpoint_seconds, max_time=limit,
            previews=previews, tensorboard=tensorboard, trace=trace, trace_steps=trace_steps, overwrite=overwrite,
            communicator=work.communicator, listen=work.listen, command=command_line(),
        )  # fmt: skip
        if report.loss is None:
            return
        work.log_to(MessageLog.going_on(report.run))
        work.tell(
            f"{report.steps} steps in {duration(report.seconds)}: loss {report.loss:.4f}"
            + (", no foreground" if report.dice is None else f", soft Dice {report.dice:.3f}")
            + ("" if report.validation_dice is None else f", held-out Dice {report.validation_dice:.3f}")
            + (f" at level {report.validation_level}, coarser than the volumes" if report.validation_level else "")
        )
        work.tell(peak_memory_text(report.peaks, report.planned))
        work.tell(time_text(report.time, report.waited if work.communicator.size > 1 else None))
        work.tell(step_time_text("a step took", report.step_seconds, report.step_planned))
        warn_of_plan(report.peaks, report.planned, work.listen)
        warn_of_time(report.step_seconds, report.step_planned, work.listen)
        if len(report.validation_by_class) > 1:
            work.tell("held-out Dice by class: " + class_text(report.validation_by_class))
        work.tell(f"model: {report.run}; all about the run: {report.run / HTML}")
        if report.stopped == "patience":
            work.tell(
                f"ended at step {report.steps} of {report.all_steps}: nothing improves; best weights: {run / BEST}"
            )
        elif report.stopped is not None:
            again = go_on_command(dataset, run, work.communicator.size, launch_words(), {
                "--labels": labels, "--label-names": label_names, "--channels": channels,
                "--partition": partition if partition != "auto" else None,
                "--replicas": replicas if replicas != 1 else None,
                "--agglomerate": agglomerate if agglomerate != "auto" else None,
                "--previews": previews if previews != 1 else None, "--tensorboard": tensorboard,
            })  # fmt: skip
            work.tell(f"stopped at step {report.steps} of {report.all_steps}; go on with: {again}")
