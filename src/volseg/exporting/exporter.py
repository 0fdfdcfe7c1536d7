"""``volseg export``: a run folder as what another tool opens, whole or not at all."""

from __future__ import annotations

import os

from volseg.distributed.communicator import Communicator
from volseg.errors import ConfigError
from volseg.events import Caution, Listener
from volseg.exporting.job import Exported, ExportJob
from volseg.exporting.nnunet import export_nnunet
from volseg.exporting.torch_module import export_torch
from volseg.files import making_folder

_OURS = {"plans.json", "dataset.json", "model.json"}
"""Files that an export begins with: a folder that holds none of them is none."""


def export_model(job: ExportJob, communicator: Communicator, listen: Listener) -> Exported:
    """Make the folder. Collective; the root does it.

    Raises VolsegError where the other tool has no such network, or the folder cannot be written.
    """
    exported = communicator.on_root(lambda: _export(job))
    for note in exported.notes:
        listen(Caution(note))
    return exported


def _export(job: ExportJob) -> Exported:
    _check_output(job)
    with making_folder(job.output) as folder:
        return (export_nnunet if job.tool == "nnunet" else export_torch)(job, folder)


def _check_output(job: ExportJob) -> None:
    """Raise ConfigError unless the folder can be made, or is an earlier export that is to be replaced."""
    output = job.output
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: is a file; give a folder with -o")
    there = {path.name for path in output.iterdir()} if output.is_dir() else set()
    strange = {
        n for n in there - _OURS if not (n.startswith("fold_") or (n.startswith("network") and n.endswith(".pt2")))
    }
    if strange or (there and not there & _OURS):
        raise ConfigError(
            f"{output}: holds {sorted(strange or there)[0]} and is no export: left alone; give another -o"
        )
    if there and not job.overwrite:
        raise ConfigError(f"{output}: exists already; replace it with --overwrite, or give another -o")
    parent = next(p for p in output.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"{output}: {parent} is not a folder that can be written to; give another -o")
