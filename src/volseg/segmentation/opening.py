"""What `segment` opens before it chooses anything: the model, and the scan, laid over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import ConfigError
from volseg.geometry import PerAxis, Triple, per_axis
from volseg.models.joined import read_joined
from volseg.models.stored import ModelCard
from volseg.models.unet import UNet
from volseg.networks.deep_supervision import without_training_heads
from volseg.networks.description import Network
from volseg.planning.planner import grid_for
from volseg.precision import FLOAT32, Precision
from volseg.program.kinds import Kind
from volseg.program.schedule import check_precision
from volseg.segmentation.averaging import flips_of
from volseg.segmentation.job import SegmentationJob, channel_files, check_outputs, input_files, plan_outputs
from volseg.segmentation.windows.options import load_folds
from volseg.segmentation.windows.planning import grid_of_columns
from volseg.segmentation.windows.sweep import Windows
from volseg.volumes.image_file import ImageFile
from volseg.volumes.imported_scan import ImportedView, Manner, along, lay_out_imported, view_as_imported
from volseg.volumes.label_table import LabelTable
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.reading_order import from_canonical_order, order_of
from volseg.volumes.regions import mask_type
from volseg.volumes.resampling import Spacing
from volseg.volumes.scan import Scan, lay_out, open_channels, seen_space
from volseg.volumes.volume import Volume

SpacingChoice = Spacing | Literal["model", "native"]
"""At which spacing the network sees a scan: the model's, the scan's own, or mm along canonical D, H, W."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A job whose model and scan are open, and whose outputs have a place.

    card       of the model that fills the mask, or of one of those that do in turn
    load       makes the networks whose logits are averaged, all of one architecture
    folds      how many they are
    windows    by which the scan is gone through; None: the whole volume at once
    mirrored   the axes that are mirrored
    values     what each of its labels is in the mask; None where they are what they are
    multiple   the sides of a block, of all parts
    labels     of the mask
    outputs    the paths that will be written, by kind (`job.plan_outputs`)
    channels   of the scan, as the files have them
    precision  in which the network's tensors are stored
    """

    card: ModelCard
    load: Callable[[], tuple[UNet, ...]]
    folds: int
    windows: Windows | None
    mirrored: tuple[int, ...]
    values: Mapping[int, int] | None
    multiple: Triple
    labels: LabelTable
    outputs: dict[str, Path]
    channels: tuple[Volume, ...]
    precision: Precision = FLOAT32

    @property
    def network(self) -> Network:
        """That of the models, without heads for training."""
        return without_training_heads(self.card.described)

    @property
    def mask(self) -> Path:
        """Where the mask goes."""
        return self.outputs["mask"]

    @property
    def mask_type(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """What the mask is stored as."""
        return self.card.mask_type if self.values is None else mask_type(max(self.labels.names.values()) + 1)

    @property
    def passes(self) -> int:
        """How many times the whole volume is gone through."""
        return self.folds * len(flips_of(self.mirrored))

    @property
    def averaged(self) -> bool:
        """Whether the logits of the whole volume are added up before anything is made of them."""
        probable = self.card.origin is not None and self.card.origin.back == "probabilities"
        return self.windows is None and (self.passes > 1 or probable)


@dataclass(frozen=True)
class LaidOut:
    """A scan laid over a grid of all ranks."""

    scan: Scan
    grid: ProcessGrid


def open_job(job: SegmentationJob, communicator: Communicator) -> tuple[Opened, ...]:
    """Open the model, or models that are joined, and the scan's files, of which little but headers is read. Collective.

    out  of each model; they differ in what concerns the model alone

    Raises VolsegError, on all ranks, where a model or the scan cannot be read, or an output cannot be written.
    """
    joined = read_joined(job.model)
    if joined is not None and job.probabilities:
        raise ConfigError(
            f"--save-probabilities: {job.model} joins several models, whose probabilities are of different labels; "
            f"leave it out, or name one of them: --model {joined.parts[0].run}"
        )
    models = (
        [_loaded(job.model, job)] if joined is None else [_loaded(part.run, job, again=True) for part in joined.parts]
    )
    cards = [card for _, _, card in models]
    precisions = [job.precision or Precision(card.config.training.precision) for card in cards]
    for card, precision in zip(cards, precisions, strict=True):
        check_precision(card.described, precision)
    labels = LabelTable(cards[0].labels, regions=cards[0].regions) if joined is None else LabelTable(joined.labels)
    outputs = plan_outputs(job, labels)
    with communicator.together():
        files = channel_files(job.scan, cards[0].described.in_channels)
    communicator.on_root(lambda: check_outputs(outputs, input_files(files), job.overwrite))
    with communicator.meter.doing(Kind.FILES):
        channels = _open(files, job.options, communicator)
    multiples = zip(*(per_axis(card.described.multiple) for card in cards), strict=True)
    d, h, w = (math.lcm(*axis) for axis in multiples)
    values = [None] if joined is None else [part.values for part in joined.parts]
    return tuple(
        Opened(
            card=card, load=load, folds=folds, windows=job.view.windows_for(card),
            mirrored=job.view.mirrored_for(card), values=of, multiple=(d, h, w), labels=labels, outputs=outputs,
            channels=channels, precision=precision,
        )
        for (load, folds, card), of, precision in zip(models, values, precisions, strict=True)
    )  # fmt: skip


def _loaded(
    run: Path, job: SegmentationJob, again: bool = False
) -> tuple[Callable[[], tuple[UNet, ...]], int, ModelCard]:
    """What makes the models of a run, how many they are, and their card. They are read here, so that they are whole.

    again  whether they are let go of, and read once more when they are wanted
    """
    models, card = load_folds(run, job.view.folds)
    if again:
        return (lambda: load_folds(run, job.view.folds)[0]), len(models), card
    return (lambda: models), len(models), card


def lay_out_over_ranks(
    channels: Sequence[Volume], card: ModelCard, partition: str, spacing: SpacingChoice, communicator: Communicator,
    windowed: bool = False, multiple: PerAxis | None = None,
) -> LaidOut:  # fmt: skip
    """Lay a scan's open channels over a grid of all ranks. Collective.

    partition  the grid: ``auto`` or ``2x1x1``
    windowed   it is gone through by windows: only planes are cut, and nothing is padded
    multiple   of the sides of a block; None: that of the network

    Raises PartitionError where it cannot be split so.
    """
    wanted = card.seen_at if spacing == "model" else None if spacing == "native" else spacing
    multiple = 1 if windowed else multiple or card.described.multiple

    def grid_over(shape: Triple) -> ProcessGrid:
        ranks = communicator.size
        if windowed:
            return ProcessGrid(communicator, grid_of_columns(partition, shape, ranks))
        return ProcessGrid(communicator, grid_for(partition, shape, ranks, multiple))

    manner = None if card.origin is None else card.origin.manner
    if manner is not None:
        view = as_its_tool_reads(channels, card, manner, spacing, communicator)
        grid = grid_over(view.channels[0].shape)
        return LaidOut(lay_out_imported(view, grid, multiple), grid)
    with communicator.together():
        shape = seen_space(channels[0], wanted).shape
    grid = grid_over(shape)
    return LaidOut(lay_out(channels, grid, multiple, wanted), grid)


def as_its_tool_reads(
    channels: Sequence[Volume], card: ModelCard, manner: Manner, spacing: SpacingChoice, communicator: Communicator
) -> ImportedView:
    """A scan as the tool that trained an imported model reads it. Collective.

    Raises VolumeError, on all ranks, where it cannot be read.
    """
    wanted: Spacing | None
    if spacing == "model":
        wanted = manner.on_network_axes(card.seen_at)
    elif spacing == "native":
        wanted = None
    else:  # along the patient's axes: the network's run otherwise
        order = order_of(channels[0].space, manner.stored, manner.transpose)
        wanted = along(spacing, from_canonical_order(channels[0].space, order).axes)
    return view_as_imported(channels, manner, wanted, card.schemes, communicator)


def open_scan(
    path: Path,
    card: ModelCard,
    partition: str,
    communicator: Communicator,
    spacing: SpacingChoice = "model",
    options: OpenOptions = OpenOptions(),  # noqa: B008  (frozen)
) -> tuple[Scan, ProcessGrid]:
    """The scan at `path` laid over a grid of all ranks, for a model. Collective.

    Raises VolumeError, on all ranks, where it cannot be read, PartitionError where it cannot be split so.
    """
    with communicator.together():
        files = channel_files(path, card.described.in_channels)
    laid = lay_out_over_ranks(_open(files, options, communicator), card, partition, spacing, communicator)
    return laid.scan, laid.grid


def _open(files: Sequence[ImageFile], options: OpenOptions, communicator: Communicator) -> tuple[Volume, ...]:
    with communicator.together():
        return open_channels(files, options)
