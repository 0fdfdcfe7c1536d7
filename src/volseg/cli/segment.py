"""``volseg segment``: the mask of a scan, on the scan's own grid."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from volseg.cli.job import job
from volseg.cli.options import (
    Agglomerate,
    Debug,
    FixTilt,
    NoProgress,
    Overwrite,
    Precision,
    PrecisionName,
    Quiet,
    RawShape,
    RawType,
    ResampleGaps,
    Series,
    Trace,
    VoxelSize,
)
from volseg.deferred import put_off
from volseg.sizes import parse_spacing


class ScheduleName(StrEnum):
    """A schedule by name, or the fastest that fits."""

    auto = "auto"
    in_place = "in-place"
    recompute = "recompute"
    spill = "spill"


def segment(
    scan: Annotated[
        Path,
        typer.Argument(
            help="NIfTI, .zarr, DICOM series (folder, zip, DICOMDIR, file), TIFF, NRRD, MetaImage, HDF5, raw."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Mask: .nii.gz, .nii, .zarr, SCAN.zarr/labels/NAME, .dcm (DICOM SEG), .seg.nrrd, .nrrd, .mha, .tif, "
            "or a folder.  "
            "[default: SCAN_mask.nii.gz]",
        ),
    ] = None,
    model: Annotated[Path, typer.Option(help="Run folder of volseg train, or a weights file.")] = Path("volseg-run"),
    partition: Annotated[str, typer.Option(help="Process grid Pz x Py x Px, such as 1x2x2, or auto.")] = "auto",
    agglomerate: Agglomerate = "auto",
    spacing: Annotated[
        str,
        typer.Option(
            help="How the network sees the scan: at the model's spacing, native, or mm along z, y, x (3x1x1)."
        ),
    ] = "model",
    window: Annotated[
        str | None,
        typer.Option(
            metavar="DxHxW",
            help="By sliding windows of so many voxels, such as 96x96x96.  [default: an imported model's patches, else "
            "the whole volume at once]",
        ),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(help="How far windows lie apart, as a share of the window.  [default: the model's, or 0.5]"),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="The whole volume at once, with an imported model too.")
    ] = False,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Average each window over its mirror images, as training mirrored.")
    ] = False,
    folds: Annotated[
        str, typer.Option(help="Of an imported model: the folds that are averaged: first, all, or such as 0,1.")
    ] = "first",
    series: Series = None,
    fix_tilt: FixTilt = False,
    resample_gaps: ResampleGaps = False,
    voxel_size: VoxelSize = None,
    shape: RawShape = None,
    dtype: RawType = None,
    keep_largest: Annotated[
        bool, typer.Option("--keep-largest", help="Of each label only the largest connected component.")
    ] = False,
    min_volume: Annotated[
        float, typer.Option(metavar="MM3", help="Remove connected components of less than so many mm³.")
    ] = 0.0,
    connectivity: Annotated[
        int, typer.Option(help="What connects: 6 (faces), 18 (and edges) or 26 (and corners) neighbours.")
    ] = 26,
    split: Annotated[bool, typer.Option("--split", help="Also a mask for each label: MASK_LABEL.")] = False,
    save_probabilities: Annotated[
        bool,
        typer.Option("--save-probabilities", help="Also MASK_probabilities, float32; classes last (.zarr: first)."),
    ] = False,
    statistics: Annotated[
        bool,
        typer.Option("--statistics", help="Also MASK_statistics.csv: ml, HU, centroid and bounding box of each label."),
    ] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Also MASK_preview.png: three planes.")] = False,
    memory_limit: Annotated[
        str | None,
        typer.Option(help="Memory a rank may use, such as 4GiB.  [default: what the machine has free, shared]"),
    ] = None,
    schedule: Annotated[
        ScheduleName, typer.Option(help="How the network is run; auto: the fastest that fits the memory.")
    ] = ScheduleName.auto,
    precision: Precision = PrecisionName.auto,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for what does not fit the memory.  [default: the mask's]")
    ] = None,
    go_on: Annotated[
        bool,
        typer.Option(
            "--continue", help="Keep what is done in MASK_state, and go on from there if a run was interrupted."
        ),
    ] = False,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Also a JSON report: grid, memory, time, what was mended.")
    ] = None,
    trace: Trace = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Segment a scan over all ranks: mpirun -n 4 volseg segment scan.nii.gz.

    The whole volume is seen at once, split over the ranks; the mask lies on the scan's own grid, and is byte for byte
    the same on any number of ranks.
    """
    # How operations trace shapes: a quarter of the time that importing torch takes, and for what exports or compiles.
    put_off("torch._meta_registrations", "torch.export", until=("torch._dynamo", "torch._inductor"))
    with job(quiet, no_progress, debug) as work:
        from volseg.api import segment as segment_scan
        from volseg.cli.render import (
            peak_memory_text,
            step_time_text,
            time_text,
            warn_of_limit,
            warn_of_plan,
            warn_of_time,
        )  # fmt: skip
        from volseg.messages import duration

        report = segment_scan(
            scan, output, model=model, partition=partition, agglomerate=agglomerate, spacing=_spacing(spacing),
            series=series, fix_tilt=fix_tilt, resample_gaps=resample_gaps, voxel_size=voxel_size, shape=shape,
            dtype=dtype, keep_largest=keep_largest, min_volume=min_volume, connectivity=connectivity, split=split,
            save_probabilities=save_probabilities,
            window=window, step=step, whole=whole, mirror=mirror, folds=folds,
            statistics=statistics, preview=preview, memory_limit=memory_limit, schedule=schedule.value,
            precision=precision.value,
            scratch=scratch, go_on=go_on, report_file=report_file, trace=trace, overwrite=overwrite,
            communicator=work.communicator, listen=work.listen,
        )  # fmt: skip
        work.tell(_label_table(scan.name, report))
        work.tell(f"{duration(report.seconds)}; {peak_memory_text(report.peaks, report.planned)}")
        waited = report.communication["share_of_time"] if work.communicator.size > 1 else None
        work.tell(time_text(report.time.shares(), waited))
        planned, _ = report.network_planned
        seconds = None if planned is None else planned.seconds
        work.tell(step_time_text("the network took", report.network_seconds, seconds))
        warn_of_plan(report.peaks, report.planned, work.listen)
        warn_of_time(report.network_seconds, seconds, work.listen)
        warn_of_limit(report.peaks, report.choice.limit, report.choice.given, work.listen)
        for path in report.files:
            work.tell(f"wrote {path}")


def _spacing(text: str) -> tuple[float, float, float] | Literal["model", "native"]:
    if text == "model":
        return "model"
    if text == "native":
        return "native"
    return parse_spacing(text)


def _label_table(title: str, report: Any) -> Any:
    """Voxels and ml of each label; with `--statistics` its mean (HU of CT), after cleaning what was removed."""
    from volseg.cli.render import millilitres, table

    columns = ["label", "value", "voxels", "ml"]
    measured = any(row.mean_hu is not None for row in report.statistics)
    removed = {row.label: row for row in report.removed}
    columns += ["mean HU" if report.is_ct else "mean value"] * measured + ["parts removed"] * bool(removed)
    rows = []
    for row in report.statistics:
        cells = [row.name, row.label, f"{row.voxels:,}", millilitres(row.ml, 1)]
        if measured:
            cells.append("" if row.mean_hu is None else f"{row.mean_hu:,.1f}")
        if removed:
            cleaning = removed.get(row.label)
            cells.append("" if cleaning is None else f"{cleaning.removed} of {cleaning.components}")
        rows.append(cells)
    return table(title, columns, rows)
