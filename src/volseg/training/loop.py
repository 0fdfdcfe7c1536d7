"""The training loop, readable top to bottom."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w
import torch
from torch import nn

from volseg.config import Config, TrainingConfig, config_tables
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import ConfigError, VolumeError
from volseg.events import Caution, Listener, Message, Progress, ignore
from volseg.files import write_text
from volseg.geometry import Triple, format_triple
from volseg.models.stored import CHECKPOINT, WEIGHTS, ModelCard
from volseg.models.unet import UNet
from volseg.nn.convert import partition_module
from volseg.nn.gradients import sum_gradients
from volseg.nn.losses import IGNORE, dice_cross_entropy, dice_from_counts
from volseg.partition.layout import padded_shape
from volseg.partition.memory import training_memory
from volseg.partition.planner import choose_grid, parse_grid
from volseg.training.checkpoint import load_checkpoint, save_checkpoint
from volseg.training.data import CaseBlocks, split_cases
from volseg.training.log import PICTURE, TrainingLog
from volseg.training.report import REPORT, TrainingReport, make_report
from volseg.volumes.dataset import Case, Dataset, read_dataset

CONFIG = "config.toml"
CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True)
class TrainingJob:
    """What to train, on what, and where to.

    partition  "auto" or a grid such as "1x2x2"
    proceed    go on from the run folder's checkpoint
    """

    dataset: Path
    run: Path
    config: Config
    partition: str = "auto"
    proceed: bool = False
    overwrite: bool = False


def train(job: TrainingJob, communicator: Communicator, listen: Listener = ignore) -> TrainingReport:
    """Train a U-Net on whole volumes, each split over all ranks. Collective.

    Raises VolsegError, on all ranks, where data set, configuration, grid or run folder cannot be used; nothing is
    written then.
    """
    dataset = read_dataset(job.dataset)
    config = dataclasses.replace(
        job.config, model=job.config.model.for_data(len(dataset.channel_names), len(dataset.labels))
    )
    config.check()
    with communicator.together():
        if communicator.is_root:
            check_run_folder(job)
    cases, held_out = split_cases(dataset, config.training.validation, config.training.seed)
    shapes = canonical_shapes(dataset)
    largest = padded_shape(max(shapes, key=math.prod), config.model.multiple)
    grid = ProcessGrid(communicator, _dims(job.partition, communicator.size, shapes, config.model.multiple))
    blocks = CaseBlocks(dataset, [*cases, *held_out], grid, config.model.multiple)
    planned = training_memory(config.model, config.training.optimizer, grid.layout(largest, config.model.multiple))
    listen(Message(_describe(config, dataset, cases, held_out, grid, largest)))

    torch.manual_seed(config.training.seed)
    model = UNet(config.model)
    twin = partition_module(model, grid, multiple_of=config.model.multiple)
    optimizer = make_optimizer(model, config.training)
    steps = config.training.epochs * len(cases)
    card = ModelCard(config, dataset.labels, (), _spacing(blocks, cases), 0)
    blocks.check()
    if job.proceed:
        with communicator.together():
            card = dataclasses.replace(load_checkpoint(job.run, model, optimizer), config=config)
        blocks.schemes = card.schemes
        listen(Message(f"going on from step {card.step} of {steps}"))
    else:
        blocks.measure()
        card = dataclasses.replace(card, schemes=blocks.schemes)
    log = None
    with communicator.together():
        if communicator.is_root:
            job.run.mkdir(parents=True, exist_ok=True)
            if not job.proceed:  # an earlier run's checkpoint must not be taken for this one's
                for name in (CHECKPOINT, WEIGHTS, REPORT, PICTURE):
                    (job.run / name).unlink(missing_ok=True)
            write_text(job.run / CONFIG, tomli_w.dumps(config_tables(config)))
            log = TrainingLog(job.run, card.step)
    _same_weights(model, communicator)

    started = saved = time.monotonic()
    loss_value = dice_value = float("nan")
    validation: float | None = None
    for step in range(card.step, steps):
        begun = time.monotonic()
        epoch, position = divmod(step, len(cases))
        case = cases[case_order(config.training.seed, epoch, len(cases))[position]]
        sample = blocks.load(case)
        rate = set_learning_rate(optimizer, config.training, step, steps)

        twin.train()
        loss, dice = dice_cross_entropy(twin(sample.image), sample.target, communicator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        sum_gradients(model.parameters(), communicator)
        optimizer.step()

        loss_value, dice_value = float(loss.detach()), float(dice[1:].mean())
        if not np.isfinite(loss_value):
            raise VolumeError(
                f"the loss became {loss_value} at step {step + 1}, case {case.name}: lower --learning-rate "
                f"(now {config.training.learning_rate:g}), or look for outliers in that image"
            )
        seconds = time.monotonic() - begun
        validation = None
        if held_out and position == len(cases) - 1:
            validation = validate(twin, blocks, held_out, len(dataset.labels))
        card = dataclasses.replace(card, step=step + 1)
        if log is not None:
            row = {
                "step": step + 1, "epoch": epoch + 1, "loss": f"{loss_value:.9g}", "dice": f"{dice_value:.6f}",
                "learning_rate": f"{rate:.6g}", "seconds": f"{seconds:.3f}",
                "voxels_per_second": f"{sample.voxels / seconds:.0f}", "case": case.name,
            }  # fmt: skip
            log.add(row if validation is None else row | {"validation_dice": f"{validation:.6f}"})
            if time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == steps:
                save_checkpoint(job.run, model, optimizer, card)
                log.draw(job.run)
                saved = time.monotonic()
        figures = {"loss": f"{loss_value:.4f}", "Dice": f"{dice_value:.3f}"}
        if validation is not None:
            figures["held out"] = f"{validation:.3f}"
        figures["voxels/s"] = f"{sample.voxels / seconds / 1e6:.2f} M"
        listen(Progress(f"epoch {epoch + 1}/{config.training.epochs}", step + 1, steps, "steps", figures))
    if card.step >= steps and np.isnan(loss_value):
        listen(Caution(f"nothing to do: the run has its {steps} steps; give more --epochs to go on"))
    elapsed = time.monotonic() - started
    return make_report(
        job, config, grid, planned, blocks.cached_bytes, elapsed, loss_value, dice_value, validation, card.step
    )


def check_run_folder(job: TrainingJob) -> None:
    """Raise ConfigError unless the run folder can be trained into as asked."""
    run = job.run
    if job.proceed:
        if not (run / CHECKPOINT).is_file():
            raise ConfigError(
                f"{run}: no {CHECKPOINT} to continue from; start anew with --overwrite in place of --continue"
            )
        return
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run}: is a file; give another run folder with -o")
    if run.is_dir() and any(run.iterdir()) and not job.overwrite:
        raise ConfigError(
            f"{run}: exists already; go on with --continue, replace it with --overwrite, or give another -o"
        )
    parent = next(p for p in (run, *run.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        what = "not writable" if parent.is_dir() else "a file"
        raise ConfigError(f"{run}: {parent} is {what}; give another run folder with -o")


def canonical_shapes(dataset: Dataset) -> list[Triple]:
    """(D, H, W) of every case in canonical order; only headers are read."""
    from volseg.volumes.canonical import canonical
    from volseg.volumes.reading import open_volume

    return [canonical(open_volume(case.images[0])).shape for case in dataset.cases]


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` names."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), config.learning_rate, momentum=0.99, nesterov=True, weight_decay=config.weight_decay
        )
    # Adam divides each gradient by its own size. At torch's eps of 1e-8 that turns rounding noise, which depends on the
    # grid, into full steps; at 1e-3 small gradients make small steps, and the loss falls as fast (docs/decisions.md).
    return torch.optim.AdamW(model.parameters(), config.learning_rate, eps=1e-3, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainingConfig, step: int, steps: int) -> float:
    """Linear warm-up over the first steps, times the polynomial decay of nnU-Net, (1 - step / steps)^0.9."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    rate = float(config.learning_rate * warm * (1 - step / steps) ** 0.9)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def case_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the cases in an epoch: a permutation that follows from seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


@torch.no_grad()
def validate(twin: nn.Module, blocks: CaseBlocks, cases: Sequence[Case], classes: int) -> float:
    """Mean foreground Dice of the whole-volume masks of `cases`. Collective."""
    twin.eval()
    scores = []
    for case in cases:
        sample = blocks.load(case)
        mask = twin(sample.image).argmax(1)
        valid = sample.target != IGNORE
        true, found = sample.target[valid].long(), mask[valid]
        counts = torch.stack(
            [torch.bincount(part, minlength=classes) for part in (found, true, true[true == found])]
        ).numpy()
        counts = blocks.grid.communicator.reduce_all(counts)
        scores.append(np.nanmean(dice_from_counts(*counts)[1:]))
    return float(np.nanmean(scores))


def _dims(partition: str, ranks: int, shapes: Sequence[Triple], multiple: int) -> Triple:
    """The best grid for the largest case, among those that every case can hold."""
    if partition != "auto":
        return parse_grid(partition, ranks)
    d, h, w = (min(sides) for sides in zip(*shapes, strict=True))
    return choose_grid(max(shapes, key=math.prod), ranks, multiple, narrowest=(d, h, w))


def _spacing(blocks: CaseBlocks, cases: Sequence[Case]) -> tuple[float, float, float]:
    d, h, w = np.median([blocks.scan(case).space.spacing for case in cases], axis=0)
    return float(d), float(h), float(w)


def _same_weights(model: nn.Module, communicator: Communicator) -> None:
    """Every rank starts from the root's weights, bit for bit."""
    for tensor in model.state_dict().values():
        tensor.copy_(torch.from_numpy(communicator.broadcast(tensor.numpy())))


def _describe(
    config: Config,
    dataset: Dataset,
    cases: Sequence[Case],
    held_out: Sequence[Case],
    grid: ProcessGrid,
    largest: Triple,
) -> str:
    ranks = grid.communicator.size
    return (
        f"{dataset.folder}: {len(cases)} cases to train on, {len(held_out)} held out, "
        f"labels {', '.join(dataset.label_names)}\n"
        f"U-Net of {format_triple(config.model.widths)} channels; {format_triple(largest)} voxels on "
        f"{ranks} rank{'s' if ranks > 1 else ''} as {format_triple(grid.dims)}, {torch.get_num_threads()} threads each"
    )
