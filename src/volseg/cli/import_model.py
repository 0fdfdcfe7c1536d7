"""``volseg import``: models of nnU-Net, TotalSegmentator, MONAI, or an archive of torch.export, as a run folder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volseg.cli.job import job
from volseg.cli.options import Debug, Overwrite, Quiet

if TYPE_CHECKING:
    from volseg.importing.job import Imported


class Kept(StrEnum):
    """Which of nnU-Net's checkpoints."""

    final = "final"
    best = "best"


def import_model(
    source: Annotated[
        list[Path],
        typer.Argument(
            help="nnU-Net v2 result folder, its exported zip, a MONAI bundle, or a torch.export archive (.pt2); "
            "several models share a mask, as do a folder's parts of TotalSegmentator."
        ),
    ],
    run: Annotated[Path, typer.Option("--output", "-o", help="The run folder to make.")] = Path("volseg-run"),
    configuration: Annotated[
        str | None,
        typer.Option(help="Of several: 3d_fullres, 3d_lowres.  [default: 3d_fullres]", show_default=False),
    ] = None,
    folds: Annotated[
        str | None,
        typer.Option(help="Folds to bring, such as 0,1, or all for fold_all.  [default: each]", show_default=False),
    ] = None,
    checkpoint: Annotated[Kept, typer.Option(help="The last weights or the best.")] = Kept.final,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make a run folder of another tool's model: weights, network, how it reads a scan, labels.

    Nothing in a checkpoint is run. Then: volseg segment SCAN --model RUN.
    """
    with job(quiet, True, debug) as work:
        from volseg.api import import_model as bring
        from volseg.events import Message

        imported = bring(
            source, run, configuration=configuration, folds=folds, checkpoint=checkpoint.value, overwrite=overwrite,
            communicator=work.communicator, listen=work.listen,
        )  # fmt: skip
        if not quiet:
            work.tell(_table(imported))
        work.listen(Message(f"{run}: segment with it: volseg segment SCAN --model {run}"))


def _table(imported: Imported) -> Any:
    """What was imported, as a table."""
    from volseg.cli.render import table
    from volseg.geometry import format_triple, format_triples

    facts = imported.facts
    labels = [f"{name} {value}" for name, value in facts["labels"].items() if value]
    rows = [("model", facts["source"])]
    if "features" in facts:
        rows += [
            ("trained by", f"{facts['trainer']}, {facts['checkpoint']}"),
            ("network", f"{facts['family']} U-Net, {facts['parameters']:,} weights"),
            ("features", ", ".join(map(str, facts["features"]))),
            ("kernels", format_triples(facts["kernels"])),
            ("strides", format_triples(facts["strides"][1:])),
        ]
    elif "network" in facts:
        rows.append(("network", f"{facts['network']}, {facts['parameters']:,} weights"))
    if facts.get("parts"):
        rows.append(("parts", f"{len(facts['parts'])}, {facts['parameters']:,} weights"))
    if facts["window"] is not None:
        rows.append(("window, voxels", format_triple(tuple(facts["window"]))))
    rows += [
        ("spacing, mm", format_triple(tuple(f"{side:.4g}" for side in facts["spacing_mm"]))),
        ("channels", ", ".join(facts["channels"])),
        ("regions" if facts["regions"] else "labels", _shortened(labels)),
    ]
    if facts.get("folds"):
        rows.append(("folds", ", ".join(facts["folds"])))
    return table("imported", ["", "value"], rows, text_columns=2)


def _shortened(labels: list[str], most: int = 8) -> str:
    return ", ".join(labels[:most]) + (f", and {len(labels) - most} more" if len(labels) > most else "")
