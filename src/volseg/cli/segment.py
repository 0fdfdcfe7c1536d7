"""``volseg segment``: the mask of a scan, on the scan's own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.job import job
from volseg.cli.options import Debug, NoProgress, Overwrite, Quiet


def segment(
    scan: Annotated[Path, typer.Argument(help="NIfTI file, .zarr, or folder of one DICOM series.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Mask: .nii.gz, .nii or .zarr.  [default: SCAN_mask.nii.gz]")
    ] = None,
    model: Annotated[Path, typer.Option(help="Run folder of volseg train, or a weights file.")] = Path("volseg-run"),
    partition: Annotated[str, typer.Option(help="Process grid Pz x Py x Px, such as 1x2x2, or auto.")] = "auto",
    save_probabilities: Annotated[
        bool,
        typer.Option("--save-probabilities", help="Also MASK_probabilities, float32; classes last (.zarr: first)."),
    ] = False,
    statistics: Annotated[bool, typer.Option("--statistics", help="Also MASK_statistics.csv: voxels and ml.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Also MASK_preview.png: three planes.")] = False,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Also a JSON report: grid, memory, time.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Segment a scan over all ranks: mpirun -n 4 volseg segment scan.nii.gz.

    The whole volume is seen at once, split over the ranks; the mask is byte for byte the same on any number of them.
    """
    with job(quiet, no_progress, debug) as work:
        from volseg.cli.render import duration, peak_memory_text, table, warn_of_plan
        from volseg.segmentation.segment import SegmentationJob
        from volseg.segmentation.segment import segment as segment_scan

        settings = SegmentationJob(
            scan, model, output, partition, save_probabilities, statistics, preview, report_file, overwrite
        )
        report = segment_scan(settings, work.communicator, work.listen)
        rows = [(row.name, row.label, f"{row.voxels:,}", f"{row.ml:,.1f}") for row in report.statistics]
        work.print(table(scan.name, ("label", "value", "voxels", "ml"), rows))
        work.print(f"{duration(report.seconds)}; {peak_memory_text(report.peaks, report.planned)}")
        warn_of_plan(report.peaks, report.planned, work.listen)
        for path in report.files:
            work.print(f"wrote {path}")
