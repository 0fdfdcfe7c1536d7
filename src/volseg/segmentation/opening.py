"""What `segment` opens before it chooses anything: the model, and the scan, laid over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.geometry import PerAxis, Triple
from volseg.models.stored import ModelCard
from volseg.models.unet import UNet
from volseg.planning.planner import grid_for
from volseg.precision import FLOAT32, Precision
from volseg.program.kinds import Kind
from volseg.program.schedule import check_precision
from volseg.segmentation.job import SegmentationJob, channel_files, check_outputs, input_files, plan_outputs
from volseg.segmentation.windows.options import load_folds
from volseg.segmentation.windows.planning import grid_of_columns
from volseg.segmentation.windows.sweep import Windows
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.image_file import ImageFile
from volseg.volumes.imported_scan import ImportedView, Manner, lay_out_imported, view_as_imported
from volseg.volumes.label_table import LabelTable
from volseg.volumes.reading_order import from_canonical_order, order_of
from volseg.volumes.resampling import Spacing
from volseg.volumes.scan import Scan, lay_out, open_channels, seen_space
from volseg.volumes.volume import Volume

SpacingChoice = Spacing | Literal["model", "native"]
"""At which spacing the network sees a scan: the model's, the scan's own, or mm along canonical D, H, W."""


@dataclass(frozen=True)
class Opened:
    """A job whose model and scan are open, and whose outputs have a place.

    models    whose logits are averaged; `model` is the first
    windows   by which the scan is gone through; None: the whole volume at once
    labels    of the model
    outputs   the paths that will be written, by kind (`job.plan_outputs`)
    channels  of the scan, as the files have them
    precision  in which the network's tensors are stored
    """

    models: tuple[UNet, ...]
    card: ModelCard
    windows: Windows | None
    labels: LabelTable
    outputs: dict[str, Path]
    channels: tuple[Volume, ...]
    precision: Precision = FLOAT32

    @property
    def model(self) -> UNet:
        """The first of the models, which are of one architecture."""
        return self.models[0]

    @property
    def mask(self) -> Path:
        """Where the mask goes."""
        return self.outputs["mask"]


@dataclass(frozen=True)
class LaidOut:
    """A scan laid over a grid of all ranks."""

    scan: Scan
    grid: ProcessGrid


def open_job(job: SegmentationJob, communicator: Communicator) -> Opened:
    """Open the model and the scan's files, of which little but headers is read. Collective.

    Raises VolsegError, on all ranks, where the model or the scan cannot be read, or an output cannot be written.
    """
    models, card = load_folds(job.model, job.view.folds)
    windows = job.view.windows_for(card)
    precision = job.precision or Precision(card.config.training.precision)
    check_precision(card.described, precision)
    labels = LabelTable(card.labels)
    outputs = plan_outputs(job, labels)
    with communicator.together():
        files = channel_files(job.scan, card.described.in_channels)
    communicator.on_root(lambda: check_outputs(outputs, input_files(files), job.overwrite))
    with communicator.meter.doing(Kind.FILES):
        channels = _open(files, job.dicom, communicator)
    return Opened(models, card, windows, labels, outputs, channels, precision)


def lay_out_over_ranks(
    channels: Sequence[Volume], card: ModelCard, partition: str, spacing: SpacingChoice, communicator: Communicator,
    windowed: bool = False,
) -> LaidOut:  # fmt: skip
    """Lay a scan's open channels over a grid of all ranks. Collective.

    partition  the grid: ``auto`` or ``2x1x1``
    windowed   it is gone through by windows: only planes are cut, and nothing is padded

    Raises PartitionError where it cannot be split so.
    """
    wanted = card.seen_at if spacing == "model" else None if spacing == "native" else spacing
    multiple: PerAxis = 1 if windowed else card.described.multiple

    def grid_over(shape: Triple) -> ProcessGrid:
        ranks = communicator.size
        if windowed:
            return ProcessGrid(communicator, grid_of_columns(partition, shape, ranks))
        return ProcessGrid(communicator, grid_for(partition, shape, ranks, multiple))

    if card.origin is not None and not card.origin.is_our_reading:
        view = as_its_tool_reads(channels, card, spacing, communicator)
        grid = grid_over(view.channels[0].shape)
        return LaidOut(lay_out_imported(view, grid, multiple), grid)
    with communicator.together():
        shape = seen_space(channels[0], wanted).shape
    grid = grid_over(shape)
    return LaidOut(lay_out(channels, grid, multiple, wanted), grid)


def as_its_tool_reads(
    channels: Sequence[Volume], card: ModelCard, spacing: SpacingChoice, communicator: Communicator
) -> ImportedView:
    """A scan as the tool that trained an imported model reads it. Collective.

    Raises VolumeError, on all ranks, where it cannot be read.
    """
    origin = card.origin
    assert origin is not None
    manner = Manner(
        stored=origin.order == "stored", transpose=origin.transpose, crop=origin.crop, cubic=origin.cubic
    )  # fmt: skip
    wanted: Spacing | None
    if spacing == "model":
        wanted = card.seen_at
        if wanted is not None and not manner.stored:  # that is of the canonical axes
            wanted = along(wanted, manner.transpose)
    elif spacing == "native":
        wanted = None
    else:  # along the patient's axes: the network's run otherwise
        order = order_of(channels[0].space, manner.stored, manner.transpose)
        wanted = along(spacing, from_canonical_order(channels[0].space, order).axes)
    return view_as_imported(channels, manner, wanted, card.schemes, communicator)


def along(spacing: Spacing, axes: Triple) -> Spacing:
    """Axis n has the spacing of axis ``axes[n]``."""
    d, h, w = (spacing[axis] for axis in axes)
    return d, h, w


def open_scan(
    path: Path,
    card: ModelCard,
    partition: str,
    communicator: Communicator,
    spacing: SpacingChoice = "model",
    dicom: DicomOptions = DicomOptions(),  # noqa: B008  (frozen)
) -> tuple[Scan, ProcessGrid]:
    """The scan at `path` laid over a grid of all ranks, for a model. Collective.

    Raises VolumeError, on all ranks, where it cannot be read, PartitionError where it cannot be split so.
    """
    with communicator.together():
        files = channel_files(path, card.described.in_channels)
    laid = lay_out_over_ranks(_open(files, dicom, communicator), card, partition, spacing, communicator)
    return laid.scan, laid.grid


def _open(files: Sequence[ImageFile], dicom: DicomOptions, communicator: Communicator) -> tuple[Volume, ...]:
    with communicator.together():
        return open_channels(files, dicom)
