"""``volseg ingest``: bring a scan into one volume file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from volseg.cli.job import job
from volseg.cli.options import (
    Debug,
    FixTilt,
    NoProgress,
    OverlapRule,
    Overwrite,
    Quiet,
    RawShape,
    RawType,
    ResampleGaps,
    Series,
    VoxelSize,
)
from volseg.errors import ConfigError, VolumeError
from volseg.sizes import parse_spacing


def ingest(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="NIfTI, .zarr, DICOM, TIFF, NRRD, MetaImage, HDF5, raw; a file or folder."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="A .nii.gz, .nii, .zarr, .nrrd, .mha or .tif to write."),
    ] = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            help="Also a mask (a volume, a folder of one mask a structure, DICOM SEG or RTSTRUCT), as OUT + "
            "_labels; once for each of several readers."
        ),
    ] = None,
    series: Series = None,
    list_series: Annotated[bool, typer.Option("--list", help="Show the series that SRC holds, and stop.")] = False,
    spacing: Annotated[
        str | None, typer.Option(help="Resample to this many mm: 1.5, or along D x H x W 3x1.5x1.5.")
    ] = None,
    fix_tilt: FixTilt = False,
    resample_gaps: ResampleGaps = False,
    voxel_size: VoxelSize = None,
    shape: RawShape = None,
    dtype: RawType = None,
    resample_labels: Annotated[
        bool, typer.Option("--resample-labels", help="Bring a mask that lies on another grid onto the image's.")
    ] = False,
    overlap: OverlapRule = "smallest",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Bring a CT into one volume file, with its own grid and values (HU), every voxel looked at on the way.

    DICOM slices are ordered and spaced by their positions. What cannot be read faithfully (gantry tilt, missing slices,
    NaN voxels) is refused unless an option says how to mend it, and nothing is written. Beside OUT goes
    OUT_ingest.json: what was used, left out and mended, hashes of the input, versions.
    """
    with job(quiet, no_progress, debug) as work:
        from volseg.cli.render import table

        if list_series:
            work.communicator.on_root(lambda: work.print(series_table(source)))
            return
        if output is None:
            raise ConfigError(f"{source}: give the file to write with --output, such as -o scan.nii.gz, or ask --list")
        from volseg.api import ingest as run
        from volseg.volumes.ingest_report import report_rows

        report = run(
            source, output, labels=labels, series=series, spacing=None if spacing is None else parse_spacing(spacing),
            fix_tilt=fix_tilt, resample_gaps=resample_gaps, voxel_size=voxel_size, shape=shape, dtype=dtype,
            resample_labels=resample_labels, overlap=overlap,
            overwrite=overwrite, communicator=work.communicator, listen=work.listen,
        )  # fmt: skip
        work.tell(table("ingested", ["", "value"], report_rows(report), text_columns=2))


def series_table(source: Path) -> Any:
    """The series that `source` holds, and what else, as tables. Raises VolumeError where it holds no DICOM."""
    from rich.console import Group

    from volseg.cli.render import table
    from volseg.volumes.audit import count_reasons
    from volseg.volumes.dicom.finding.candidates import candidate_rows
    from volseg.volumes.dicom.finding.series import survey
    from volseg.volumes.dicom.finding.sources import open_source
    from volseg.volumes.formats.dicom import DICOM
    from volseg.volumes.reading import format_of

    if format_of(source) is not DICOM:
        raise VolumeError(f"{source}: one volume, no DICOM; --list shows DICOM series: see volseg info {source}")
    found = survey(open_source(source))
    columns, candidates = candidate_rows(found)
    tables: list[Any] = [table(f"series in {source}", columns, candidates, text_columns=len(columns))]
    reasons = count_reasons(found.dropped)
    if reasons:
        rows = [(str(number), reason, short_list(names)) for reason, number, names in reasons]
        tables.append(table("left out", ["files", "reason", "such as"], rows, text_columns=3))
    return Group(*tables)


def short_list(names: Sequence[str], most: int = 2) -> str:
    """The first few names, without their folders."""
    from volseg.volumes.dicom.image import without_folders

    return ", ".join(without_folders(name) for name in names[:most]) + (", ..." if len(names) > most else "")
