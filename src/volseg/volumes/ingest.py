"""Bring a scan of any format into one volume file, every voxel looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.events import Caution, Listener, Progress, ignore
from volseg.volumes.checks import check_finite
from volseg.volumes.ingest_report import IngestedMask, IngestReport, hash_inputs, write_report
from volseg.volumes.kept_slices import SliceKeeper
from volseg.volumes.label_table import LabelTable
from volseg.volumes.mask_source import open_labels
from volseg.volumes.mask_values import together
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.output import Content, Unit
from volseg.volumes.overlap import Overlap
from volseg.volumes.reading import open_volume
from volseg.volumes.resampling import resampled, resampled_space
from volseg.volumes.volume import Volume
from volseg.volumes.writing import (
    Intended,
    Unpublished,
    all_or_none,
    check_output,
    check_small_output,
    prepare_volume,
    rehearse,
    volume_suffix,
)


@dataclass(frozen=True)
class IngestJob:
    """What to bring in, and what may be done to it on the way.

    output           a name that ends in one of `formats.registry.WRITTEN`
    labels           also a mask: a volume, a folder of one mask a structure, DICOM SEG or RTSTRUCT; or one of each
                     of several readers. They go beside the output (`labels_path`)
    options          which series, what may be mended, what the file does not say
    spacing          resample to this, mm along the scan's own D, H, W; None keeps the grid
    resample_labels  bring a mask that lies on another grid onto the image's, by the nearest voxel
    overlap          which structure has a voxel of several
    """

    source: Path
    output: Path
    labels: tuple[Path, ...] = ()
    options: OpenOptions = field(default_factory=OpenOptions)
    spacing: tuple[float, float, float] | None = None
    resample_labels: bool = False
    overwrite: bool = False
    overlap: Overlap = "smallest"


def ingest(job: IngestJob, communicator: Communicator, listen: Listener = ignore) -> IngestReport:
    """Copy the volume at `job.source` to `job.output`, on its own grid and with its own values unless asked otherwise.

    Collective; each voxel is read by the rank that writes it. Beside the output goes an audit (`report_path`): what was
    used, dropped and mended, hashes of the input, versions.

    Raises VolumeError where the source cannot be read faithfully or holds NaN or infinity, where the mask lies on
    another grid or holds anything but whole numbers, and where an output cannot be written. Nothing is left then.
    """
    volume, masks = _open(job, communicator, listen)
    for source, opened in ((job.source, volume), *((mask.source, mask.volume) for mask in masks)):
        for warning in opened.audit.warnings:
            listen(Caution(f"{source}: {warning}"))
    hashes = hash_inputs([volume.audit, *(mask.volume.audit for mask in masks)], communicator)
    with all_or_none() as written:  # a mask without its image is no result
        for mask in masks:
            _copy(mask.volume, volume, mask.output, communicator, listen, job.overwrite, written, mask.table)
        minimum, maximum = _copy(volume, volume, job.output, communicator, listen, job.overwrite, written)
    brought_up = [together(set().union(*communicator.gather_all(mask.remarks))) for mask in masks]
    for mask, lines in zip(masks, brought_up, strict=True):
        for remark in lines:
            listen(Caution(f"{mask.source}: {remark}"))
    if minimum == maximum:
        listen(Caution(f"{job.source}: every voxel is {minimum:g}"))
    report = IngestReport(
        source=job.source,
        format=volume.format,
        output=job.output,
        shape=volume.shape,
        spacing=volume.space.spacing,
        dtype=str(volume.dtype),
        minimum=minimum,
        maximum=maximum,
        audit=volume.audit,
        masks=tuple(mask.report(lines) for mask, lines in zip(masks, brought_up, strict=True)),
        hashes=hashes,
        report=report_path(job.output),
    )
    communicator.on_root(lambda: write_report(report))
    return report


@dataclass(frozen=True, kw_only=True)
class _Mask:
    """A mask as it is to be written, from `source` to `output`.

    remarks  get what reading it brings up on this rank
    """

    source: Path
    volume: Volume
    table: LabelTable
    output: Path
    remarks: set[str]

    def report(self, remarks: Sequence[str]) -> IngestedMask:
        """What is to be said of it, with the `remarks` of all ranks."""
        audit = replace(self.volume.audit, warnings=(*self.volume.audit.warnings, *remarks))
        names = {name: value for value, name in self.table.foreground}
        return IngestedMask(path=self.output, audit=audit, names=names)


def _open(job: IngestJob, communicator: Communicator, listen: Listener) -> tuple[Volume, list[_Mask]]:
    """The image and its masks, as they are to be written. Collective; little but headers is read."""
    volume, masks = None, []
    with communicator.together():
        check_output(job.output, job.overwrite)
        check_small_output(report_path(job.output), job.overwrite)
        volume = open_volume(job.source, job.options)
        for number, source in enumerate(job.labels, start=1):
            place = labels_path(job.output, number if len(job.labels) > 1 else None)
            check_output(place, job.overwrite)
            masks.append(_open_mask(job, source, volume, place))
        if job.spacing is not None:
            space = resampled_space(volume.space, job.spacing)
            volume = resampled(volume, space, "linear")
            masks = [replace(mask, volume=resampled(mask.volume, space, "labels")) for mask in masks]
    assert volume is not None
    for line in communicator.on_root(partial(_rehearse, job, volume, masks)):
        listen(Caution(line))
    return volume, masks


def _open_mask(job: IngestJob, source: Path, image: Volume, output: Path) -> _Mask:
    remarks: set[str] = set()
    volume, table = open_labels(
        source, image, resample=job.resample_labels, overlap=job.overlap, remark=remarks.add
    )  # fmt: skip
    return _Mask(source=source, volume=volume, table=table or LabelTable({}), output=output, remarks=remarks)


def _rehearse(job: IngestJob, volume: Volume, masks: Sequence[_Mask]) -> list[str]:
    """Try all that can refuse the outputs (`writing.rehearse`); what the user should know of them."""
    intended = [Intended(job.output, Content(volume.space, volume.dtype, fixes=volume.audit.fixes), volume)]
    for mask in masks:
        content = Content(volume.space, mask.volume.dtype, labels=mask.table, fixes=mask.volume.audit.fixes)
        intended.append(Intended(mask.output, content, volume))
    return rehearse(intended, job.overwrite)


def labels_path(output: Path, reader: int | None = None) -> Path:
    """Where the mask of the volume `output` goes: ``scan.nii.gz`` to ``scan_labels.nii.gz``, that of one of several
    readers to ``scan_labels_reader1.nii.gz``.
    """
    suffix = volume_suffix(output)
    whose = "" if reader is None else f"_reader{reader}"
    return output.with_name(f"{output.name[: -len(suffix)]}_labels{whose}{suffix}")


def report_path(output: Path) -> Path:
    """Where the audit of the volume `output` goes: ``scan.nii.gz`` to ``scan_ingest.json``."""
    return output.with_name(output.name[: -len(volume_suffix(output))] + "_ingest.json")


def _copy(
    volume: Volume,
    image: Volume,
    output: Path,
    communicator: Communicator,
    listen: Listener,
    overwrite: bool,
    written: list[Unpublished],
    labels: LabelTable | None = None,
) -> tuple[float, float]:
    """Write `volume` for `output` and add it to `written`; its smallest and largest value, on every rank.

    image  itself, or the image that it is a mask of, whose header says where both lie
    """
    keeper, total = SliceKeeper(volume), float(np.prod(volume.shape))  # voxels
    extremes = np.array([-np.inf, -np.inf])  # of minus the smallest, and of the largest
    done = 0.0

    def produce(units: list[Unit | None]) -> np.ndarray | None:
        nonlocal done
        done += sum(unit.box.size for unit in units if unit is not None)
        mine, voxels = units[communicator.rank], None
        if mine is not None:
            voxels = keeper.read(mine.box, keep=mine.box.shape[1:] != volume.shape[1:])
            check_finite(voxels, mine.box, volume.path)
            np.maximum(extremes, [-float(voxels.min()), float(voxels.max())], out=extremes)
        listen(Progress(f"writing {output.name}", round(done / 1e6, 2), round(total / 1e6, 2), "Mvoxels"))
        return voxels

    written.append(
        prepare_volume(
            output,
            image.space,
            volume.dtype,
            produce,
            communicator,
            overwrite=overwrite,
            labels=labels,
            source=image,
            fixes=volume.audit.fixes,
        )
    )
    communicator.reduce_all_in_place(extremes, "max")
    negated, largest = extremes.tolist()
    return -negated, largest
