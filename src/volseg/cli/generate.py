"""``volseg generate``: a synthetic data set to train on."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.job import job
from volseg.cli.options import Debug, NoProgress, Overwrite, Quiet
from volseg.errors import ConfigError
from volseg.sizes import parse_shape


class FileFormat(StrEnum):
    """How volumes are stored."""

    nifti = "nifti"
    zarr = "zarr"


def generate(
    out: Annotated[Path, typer.Argument(help="The data set's folder; it must not exist yet.")] = Path("ellipsoids"),
    shape: Annotated[str, typer.Option(help="Voxels of each case, D x H x W.")] = "64x64x64",
    cases: Annotated[int, typer.Option(help="Number of cases.")] = 8,
    ellipsoids: Annotated[str, typer.Option(help="Fewest and most ellipsoids in a case.")] = "2:6",
    classes: Annotated[int, typer.Option(help="Foreground classes, labelled 1 to K.")] = 2,
    noise: Annotated[float, typer.Option(help="Standard deviation of the noise; classes are 2 apart.")] = 0.2,
    blur: Annotated[float, typer.Option(help="Sigma of the Gaussian blur, in voxels; 0 for none.")] = 0.7,
    bias: Annotated[float, typer.Option(help="Largest relative shading by the bias field; 0 for none.")] = 0.15,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes, on any number of ranks.")] = 0,
    format: Annotated[FileFormat, typer.Option(help="nifti (.nii.gz) or zarr, block by block.")] = FileFormat.nifti,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Make a data set of random ellipsoids, in nnU-Net's folder layout, to train on.

    Each case holds ellipsoids of random place, size and rotation; every class has its own intensity.

    With --format zarr a volume may be larger than memory. Ranks share the work: mpirun -n 4 volseg generate.
    """
    with job(quiet, no_progress, debug) as work:
        from volseg.api import generate as make
        from volseg.events import Message

        make(
            out, shape=parse_shape(shape), cases=cases, ellipsoids=_span(ellipsoids), classes=classes, noise=noise,
            blur=blur, bias=bias, seed=seed, format=format.value, overwrite=overwrite, communicator=work.communicator,
            listen=work.listen,
        )  # fmt: skip
        work.listen(Message(f"{cases} case{'s' if cases != 1 else ''} of {shape} voxels, {classes} classes: {out}"))


def _span(text: str) -> tuple[int, int]:
    """``1:6`` as (1, 6); a single number is both. Raises ConfigError for anything else."""
    if not re.fullmatch(r"\d+(:\d+)?", text):
        raise ConfigError(f"--ellipsoids {text}: give FEWEST:MOST, such as 1:6")
    fewest, _, most = text.partition(":")
    return int(fewest), int(most or fewest)
