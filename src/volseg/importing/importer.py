"""``volseg import``: a model of another tool becomes a run folder, whole or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from volseg.distributed.communicator import Communicator
from volseg.errors import ConfigError
from volseg.events import Caution, Listener
from volseg.files import making_folder
from volseg.importing.archive import SUFFIX, import_archive
from volseg.importing.job import Imported, ImportJob
from volseg.importing.joining import Member, facts_of, joined
from volseg.importing.monai import bundle_root, import_monai
from volseg.importing.nnunet import import_nnunet
from volseg.importing.nnunet_folder import is_nnunet, parts_in
from volseg.importing.run_folder import check_run_folder, write_description
from volseg.importing.sources import opened
from volseg.models.joined import write_joined
from volseg.networks.coverage import why_not_covered


def import_model(job: ImportJob, communicator: Communicator, listen: Listener) -> Imported:
    """Make the run folder. Collective; the root does it.

    Raises VolsegError where the source is no model that can be imported, or the folder cannot be written.
    """
    imported = communicator.on_root(lambda: _import(job))
    for note in imported.notes:
        listen(Caution(note))
    return imported


def _import(job: ImportJob) -> Imported:
    check_run_folder(job.run, job.overwrite)
    sources = parts_in(job.sources[0]) if len(job.sources) == 1 else job.sources
    with making_folder(job.run) as folder:
        if len(sources) > 1:
            return _join(job, sources, folder)
        return _described(job, sources[0], folder)


def _described(job: ImportJob, source: Path, folder: Path) -> Imported:
    """Write a model and what `volseg info` shows of it into `folder`."""
    imported = _imported(job, source, folder)
    facts = {**_facts(imported), **imported.facts}
    write_description(folder, imported.card, facts)
    return dataclasses.replace(imported, facts=facts, notes=(*imported.notes, *_notes(imported)))


def _join(job: ImportJob, sources: Sequence[Path], folder: Path) -> Imported:
    """Write each of several models into a folder of its own in `folder`, and what joins them."""
    members = []
    for number, source in enumerate(sources, 1):
        part = folder / f"part_{number}"
        part.mkdir()
        members.append(Member(str(source), part, _described(job, source, part)))
    of, card = joined(members), members[0].imported.card
    write_joined(folder, of)
    facts = facts_of(members, of)
    write_description(folder, card, facts)
    notes = dict.fromkeys(note for member in members for note in member.imported.notes)
    return Imported(card=card, facts=facts, notes=tuple(notes))


def _imported(job: ImportJob, path: Path, folder: Path) -> Imported:
    """Write the weights into `folder`, by what is at `path`."""
    if path.suffix == SUFFIX and path.is_file():
        return import_archive(path, folder)
    with opened(path) as source:
        names = source.names
        if is_nnunet(names):
            return import_nnunet(source, job, folder)
        root = bundle_root(names)
        if root is not None:
            return import_monai(source, root, folder)
        raise ConfigError(
            f"{path}: no model that is known: no plans.json of nnU-Net in it and no configs/inference.json of a "
            "MONAI bundle; save a network as an archive with "
            'torch.export.save(torch.export.export(module, (image,)), "network.pt2"), and import that'
        )


def _facts(imported: Imported) -> dict[str, Any]:
    """What all models have, as plain values."""
    card, network, origin = imported.card, imported.card.described, imported.card.origin
    assert origin is not None, "an imported model has an origin"
    return {
        "source": origin.source,
        "tool": origin.tool,
        "channels": [scheme.name for scheme in card.schemes],
        "labels": card.labels,
        "regions": [region.as_json() for region in card.regions],
        "parameters": network.parameters(),
        "window": None if origin.window is None else list(origin.window),
        "spacing_mm": list(card.spacing),
        "mirrored_axes": list(origin.mirrored),
        "transpose": list(origin.transpose),
    }


def _notes(imported: Imported) -> list[str]:
    """What the network costs where the fused kernels do not cover it."""
    why = why_not_covered(imported.card.described)
    if not why:
        return []
    return [f"the network runs layer by layer, at torch's own speed and memory: {why}"]
