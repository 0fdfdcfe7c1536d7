"""``volseg export``: a trained or imported model for nnU-Net's predictor, or as an ordinary torch module."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.job import job
from volseg.cli.options import Debug, Overwrite, Quiet


class Target(StrEnum):
    """Who is to open the model."""

    nnunet = "nnunet"
    torch = "torch"


def export(
    run: Annotated[Path, typer.Argument(help="Run folder of volseg train or volseg import.")],
    to: Annotated[Target, typer.Option(help="nnunet: a folder for its predictor; torch: a torch.export archive.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    window: Annotated[
        str | None,
        typer.Option(
            help="Voxels of nnU-Net's windows, D x H x W.  [default: those of its training, or up to 128]",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a model as other tools open it: nnU-Net's predictor, or torch without volseg.

    nnunet: nnUNetv2_predict_from_modelfolder -m FOLDER. torch: torch.export.load("FOLDER/network.pt2").module().
    """
    with job(quiet, True, debug) as work:
        from volseg.api import export as write
        from volseg.events import Message

        exported = write(
            run, output, to=to.value, window=window, overwrite=overwrite, communicator=work.communicator,
            listen=work.listen,
        )  # fmt: skip
        how = {
            Target.nnunet: f"nnUNetv2_predict_from_modelfolder -i SCANS -o MASKS -m {output}",
            Target.torch: f'torch.export.load("{output}/network.pt2").module()',
        }
        work.listen(Message(f"{output}: {', '.join(exported.files)}; open it with: {how[to]}"))
