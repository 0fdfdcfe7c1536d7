"""``volseg verify-partition``: this job's ranks against one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.job import job
from volseg.cli.options import Agglomerate, Debug, Device, JsonOutput, NoProgress, Precision, PrecisionName, Quiet


def verify_partition(
    scan: Annotated[Path, typer.Argument(help="NIfTI file, .zarr, or folder of one DICOM series.")],
    model: Annotated[Path, typer.Option(help="Run folder of volseg train, or a weights file.")] = Path("volseg-run"),
    partition: Annotated[str, typer.Option(help="Process grid Pz x Py x Px, such as 1x2x2, or auto.")] = "auto",
    agglomerate: Agglomerate = "none",
    precision: Precision = PrecisionName.auto,
    device: Device = "auto",
    json: JsonOutput = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Show that this job's ranks compute what one rank computes: mpirun -n 4 volseg verify-partition scan.nii.gz.

    Compares all logits and labels; rank 0 needs the memory of the whole volume. Exits with 1 where they differ, by
    torch's operators (a GPU) by more than a bound.
    """
    with job(quiet, no_progress, debug) as work:
        import dataclasses
        from json import dumps

        from volseg.api import verify_partition as verify
        from volseg.geometry import format_triple

        found = verify(
            scan, model=model, partition=partition, agglomerate=agglomerate, precision=precision.value, device=device,
            communicator=work.communicator,
        )  # fmt: skip
        if json:
            work.print(dumps(dataclasses.asdict(found)))
        else:
            verdict = "bit-identical" if found.identical else "NOT identical"
            if found.bound and not found.identical:
                verdict = f"{'within' if found.agrees else 'NOT within'} the bound of {found.bound:.3g}"
            grid = format_triple(found.grid)
            if found.agglomeration != "none":
                grid += f", agglomerated {found.agglomeration},"
            work.print(
                f"grid {grid} against 1 rank: max |delta logit| {found.largest_difference:.3g}, "
                f"{found.mismatches} label mismatches in {found.voxels:,} voxels: {verdict}"
            )
        if not found.agrees:
            raise typer.Exit(1)
