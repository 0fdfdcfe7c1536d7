"""A run as an ordinary torch module that opens without volseg: an archive of `torch.export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from volseg import __version__
from volseg.exporting.job import Exported, ExportJob
from volseg.exporting.stored_folds import models_of
from volseg.files import write_text
from volseg.models.described import DescribedModule
from volseg.models.stored import ModelCard
from volseg.models.unet import training_heads
from volseg.networks.deep_supervision import without_training_heads

_MOST = 4096
"""Sides of a volume that the module takes, at most."""


def export_torch(job: ExportJob, folder: Path) -> Exported:
    """Write ``network.pt2`` (of further folds network_fold_N.pt2) and what it expects, model.json, into `folder`.

    The module takes [1, channels, D, H, W], normalised and at the model's spacing, and gives logits [1, K, D, H, W];
    D, H, W are multiples of those that model.json says.

    Raises CheckpointError where the run is damaged.
    """
    files: list[str] = []
    for fold, tensors, card in models_of(job.run):
        heads = training_heads(card.described)
        module = DescribedModule(without_training_heads(card.described))
        module.load_state_dict({name: t for name, t in tensors.items() if not name.startswith(heads)})
        name = f"network_fold_{fold}.pt2" if files else "network.pt2"
        torch.export.save(_exported(module.eval()), folder / name)
        if not files:
            write_text(folder / "model.json", json.dumps(_description(card), indent=2) + "\n")
            files.append("model.json")
        files.append(name)
    return Exported(files=tuple(sorted(files)))


def _exported(module: DescribedModule) -> torch.export.ExportedProgram:
    """The module with any sides that are multiples of the network's own."""
    multiple = module.network.multiple
    sides = {}
    for axis, (name, m) in enumerate(zip("dhw", multiple, strict=True), 2):
        units = torch.export.Dim(f"{name}_units", min=1, max=_MOST // m)
        sides[axis] = units if m == 1 else m * units
    example = torch.zeros(1, module.network.in_channels, *(3 * m for m in multiple))
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=({**sides},))


def _description(card: ModelCard) -> dict[str, Any]:
    """How a scan becomes the module's input, and what its output means."""
    return {
        "volseg": __version__,
        "channels": [scheme.as_json() for scheme in card.schemes],
        "spacing_mm": list(card.spacing),
        "multiple": list(card.described.multiple),
        "labels": card.labels,
        "regions": [region.as_json() for region in card.regions],
        "origin": None if card.origin is None else card.origin.as_json(),
    }
