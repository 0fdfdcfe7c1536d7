"""``volseg ingest``: bring a scan into one volume file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.job import job
from volseg.cli.options import Debug, NoProgress, Overwrite, Quiet


def ingest(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A NIfTI file, a folder with one DICOM CT series, or a .zarr folder.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="A .nii.gz, .nii or .zarr to write.")],
    labels: Annotated[
        Path | None, typer.Option(help="Also bring in a mask on the same grid; it becomes OUT's name + _labels.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Bring a CT into one volume file, with its own grid and values (HU), every voxel looked at on the way.

    DICOM slices are ordered and spaced by their positions. What cannot be read faithfully (several series in one
    folder, gantry tilt, missing slices, NaN voxels) is refused, and nothing is written.
    """
    with job(quiet, no_progress, debug) as work:
        from volseg.cli.render import table
        from volseg.volumes.ingest import ingest as run
        from volseg.volumes.ingest import report_rows

        report = run(source, output, work.communicator, work.listen, labels=labels, overwrite=overwrite)
        work.print(table("ingested", ["", "value"], report_rows(report), text_columns=2))
