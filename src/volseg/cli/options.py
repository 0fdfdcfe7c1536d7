"""The options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results, warnings and errors.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bars and no progress lines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace", help="Also a trace, .json or .json.gz: what each rank does when; see it in ui.perfetto.dev."
    ),
]
Agglomerate = Annotated[
    str,
    typer.Option(
        help="Coarse levels on fewer ranks: levels and their process grids, such as 3:2x1x1,4:1x1x1; auto, or none."
    ),
]


class PrecisionName(StrEnum):
    """A precision by name, or that of the run."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


Precision = Annotated[
    PrecisionName,
    typer.Option(
        help="How the network's tensors are stored: float32, or bfloat16 in half the memory; auto: as the run says, "
        "else float32."
    ),
]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Series = Annotated[
    str | None,
    typer.Option(
        help="Which DICOM series: its number in the list (2.1 is a part of series 2), its UID, or the end of that.",
        show_default=False,
    ),
]
FixTilt = Annotated[bool, typer.Option("--fix-tilt", help="Shear the slices of a tilted gantry back (DICOM).")]
ResampleGaps = Annotated[
    bool, typer.Option("--resample-gaps", help="Interpolate missing or uneven slices onto an even grid (DICOM).")
]
VoxelSize = Annotated[
    str | None,
    typer.Option(
        "--voxel-size", metavar="MM", show_default=False,
        help="Sides of a voxel in a file that does not say (TIFF, HDF5, raw): 0.05, or along D x H x W 0.1x0.05x0.05.",
    ),
]  # fmt: skip
RawShape = Annotated[
    str | None,
    typer.Option("--shape", metavar="DxHxW", show_default=False, help="The file is raw voxels, of this shape."),
]
RawType = Annotated[
    str | None,
    typer.Option(
        "--dtype", show_default=False, help="Type of raw voxels: uint8, int16, uint16, float32; big-endian: >u2."
    ),
]
OverlapRule = Annotated[
    str,
    typer.Option(
        "--overlap",
        help="Labels that overlap: smallest (the smallest has the voxel), last (of the list), or error.",
    ),
]
DatasetPath = Annotated[
    Path,
    typer.Argument(help="Data set folder (nnU-Net, Decathlon, ingested volumes), or one scan with --labels."),
]
OwnDatasetPath = Annotated[
    Path | None,
    typer.Argument(
        help="Data set folder (nnU-Net, Decathlon, ingested volumes), or one scan with --labels.  [default: "
        "ellipsoids; with --continue the run's own]",
        show_default=False,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Of one scan: the file of its labels, or a folder of one mask a structure. Of a folder of .zarr: the "
        "name of the label image inside each.",
        show_default=False,
    ),
]
LabelNames = Annotated[
    Path | None,
    typer.Option(
        help='Without dataset.json: JSON with label names, such as {"liver": 1}. Else names in the files, or values.',
        show_default=False,
    ),
]
LabelMap = Annotated[
    list[str] | None,
    typer.Option(
        help="Which values of the label files make which label: a JSON file, a TOML file or run with [labels], or "
        "NAME=5,6 once for each; the rest is background.",
        show_default=False,
    ),
]
Channels = Annotated[
    str | None,
    typer.Option(help="Without dataset.json: names of the image channels, such as CT or T1,T2.  [default: CT]"),
]
