"""Models from other tools and for them: import_model, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from volseg.api.ranks import ranks
from volseg.events import Listener, ignore

if TYPE_CHECKING:
    from volseg.distributed.communicator import Communicator
    from volseg.exporting.job import Exported
    from volseg.importing.job import Imported


def import_model(
    source: str | Path | Sequence[str | Path], run: str | Path = "volseg-run", *, configuration: str | None = None,
    folds: str | None = None, checkpoint: Literal["final", "best"] = "final", overwrite: bool = False,
    communicator: Communicator | None = None, listen: Listener = ignore,
) -> Imported:  # fmt: skip
    """Make a run folder of a model of another tool: weights, network, how it reads a scan, labels. Collective.

    source         nnU-Net v2 result folder, of a data set or of one configuration, an exported zip, a MONAI bundle, or
                   an archive of torch.export (.pt2), beside which model.json may describe it; several, to be joined
                   into one mask, or a folder of TotalSegmentator's parts
    run            the run folder to make
    configuration  of several, such as "3d_fullres", which is what is taken where it is there
    folds          such as "0,1", or "all" for the fold of that name; None: each that is there
    checkpoint     the last weights or the best
    overwrite      replace an earlier import

    Nothing in a checkpoint is run. Raises VolsegError where the source cannot be imported, by name of what is in the
    way; nothing is written then.
    """
    with ranks(communicator, listen) as (every, heard):
        from volseg.importing.importer import import_model as bring
        from volseg.importing.job import ImportJob

        job = ImportJob(
            sources=tuple(Path(path) for path in ([source] if isinstance(source, str | Path) else source)),
            run=Path(run),
            configuration=configuration,
            folds=folds,
            checkpoint=checkpoint,
            overwrite=overwrite,
        )
        return bring(job, every, heard)


def export(
    run: str | Path, output: str | Path, *, to: Literal["nnunet", "torch"], window: str | None = None,
    overwrite: bool = False, communicator: Communicator | None = None, listen: Listener = ignore,
) -> Exported:  # fmt: skip
    """Write a run's model as another tool opens it. Collective.

    run     a run folder, trained or imported
    output  the folder to make
    to      "nnunet": a trained model folder for its predictor; "torch": archives of torch.export, and model.json, which
            says what they expect
    window  "96x160x160": voxels of nnU-Net's windows; None: those of the training, or of whole volumes up to 128

    Raises VolsegError where the other tool has no such network: the message says which setting would do.
    """
    with ranks(communicator, listen) as (every, heard):
        from volseg.exporting.exporter import export_model as write
        from volseg.exporting.job import ExportJob
        from volseg.sizes import parse_shape

        size = None if window is None else parse_shape(window, "--window")
        job = ExportJob(run=Path(run), tool=to, output=Path(output), window=size, overwrite=overwrite)
        return write(job, every, heard)
