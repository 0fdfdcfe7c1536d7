"""Models of other tools: import_model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from volseg.api.ranks import ranks
from volseg.events import Listener, ignore

if TYPE_CHECKING:
    from volseg.distributed.communicator import Communicator
    from volseg.importing.job import Imported


def import_model(
    source: str | Path, run: str | Path = "volseg-run", *, configuration: str | None = None, folds: str | None = None,
    checkpoint: Literal["final", "best"] = "final", overwrite: bool = False, communicator: Communicator | None = None,
    listen: Listener = ignore,
) -> Imported:  # fmt: skip
    """Make a run folder of a model of another tool: weights, network, how it reads a scan, labels. Collective.

    source         nnU-Net v2 result folder, of a data set or of one configuration, or an exported zip
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
            source=Path(source),
            run=Path(run),
            configuration=configuration,
            folds=folds,
            checkpoint=checkpoint,
            overwrite=overwrite,
        )
        return bring(job, every, heard)
