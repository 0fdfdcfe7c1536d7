"""nnU-Net results as run folders: network, weights of each fold, and how nnU-Net reads a scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from volseg.config import Config
from volseg.errors import CheckpointError
from volseg.importing.checkpoints import read_checkpoint, tensors_in
from volseg.importing.job import Imported, ImportJob
from volseg.importing.joining import TOTAL, dataset_number
from volseg.importing.nnunet_folder import ALL, TOTAL_SEGMENTATOR, Trained, choose, configuration_named
from volseg.importing.sources import Source
from volseg.importing.weights import fitted
from volseg.models.origin import Origin
from volseg.models.stored import WEIGHTS, ModelCard, fold_path, save_tensors
from volseg.networks.axes import along
from volseg.networks.description import Network
from volseg.networks.imported import imported_model
from volseg.networks.nnunet import nnunet
from volseg.volumes.nnunet_plan import Classes, Plan, channels_of, classes_of, read_plan

_STEP = 0.5
"""How far nnU-Net's windows lie apart unless its user says otherwise."""
_TOTAL_STEP, _TOTAL_COARSE = 0.8, 3.0
"""How far TotalSegmentator's lie apart in its largest task, where voxels are smaller than so many mm."""
_TOTAL_NOTE = (
    "a model of TotalSegmentator: scans are seen in canonical order and resampled by nnU-Net's splines over the whole "
    "extent (TotalSegmentator's own keep the outermost voxels' centres, and round to whole HU); a mask has the nearest "
    "voxel's label"
)


@dataclass(frozen=True)
class _Checkpoint:
    """What is taken from a checkpoint.

    configuration  that it was trained in, as it says; empty where it does not
    mirrored       axes that training mirrored
    """

    weights: dict[str, Tensor]
    configuration: str
    trainer: str
    mirrored: tuple[int, ...]


def import_nnunet(source: Source, job: ImportJob, folder: Path) -> Imported:
    """Write weights of each fold that is asked for into `folder`.

    Raises VolsegError where the result is damaged, or holds what cannot be imported.
    """
    trained = choose(source, job)
    dataset, plans = source.json(trained.dataset), source.json(trained.plans)
    channels = channels_of(dataset, source.where(trained.dataset))
    classes = classes_of(dataset, Path(source.where(trained.dataset)))
    numbers = () if ALL in trained.folds else tuple(int(fold) for fold in trained.folds)
    first: Imported | None = None
    for fold, name in trained.folds.items():
        with source.local(name) as path:
            checkpoint = _read(path, source.where(name))
            if first is None:
                configuration = checkpoint.configuration or configuration_named(source, trained.folder)
                plan = read_plan(plans, configuration, channels, source.where(trained.plans))
                network = nnunet(plan.architecture, len(channels), classes.logits)
                card = _card(plan, classes, network, checkpoint, _source(plans, plan, trained), numbers)
                notes = (*plan.notes, *([_TOTAL_NOTE] if card.origin and card.origin.late else []))
                first = Imported(card=card, facts=_facts(plan, checkpoint, trained, job), notes=notes)
            elif checkpoint.configuration not in ("", plan.configuration):
                raise CheckpointError(
                    f"{source.where(name)}: was trained in {checkpoint.configuration}, the other folds in "
                    f"{plan.configuration}"
                )
            by = f"{source.where(name)} (by {checkpoint.trainer})"
            weights = fitted(checkpoint.weights, network, by)
            place = fold_path(folder, int(fold), numbers) if len(numbers) > 1 else folder / WEIGHTS
            save_tensors(place, weights, card)
    assert first is not None, "choose() gives one fold at least"
    return first


def _read(path: Path, where: str) -> _Checkpoint:
    values = read_checkpoint(path, where)
    if not isinstance(values, Mapping) or "network_weights" not in values:
        raise CheckpointError(f"{where}: no checkpoint of nnU-Net version 2 (it has no network_weights)")
    weights = tensors_in(values["network_weights"], where)
    arguments = values.get("init_args")
    configuration = arguments.get("configuration", "") if isinstance(arguments, Mapping) else ""
    axes = values.get("inference_allowed_mirroring_axes") or ()
    if not all(axis in (0, 1, 2) for axis in axes):
        raise CheckpointError(f"{where}: inference_allowed_mirroring_axes = {axes!r}; the axes are 0, 1 and 2")
    mirrored = tuple(sorted(int(axis) for axis in axes))
    kept = {name: tensor for name, tensor in weights.items() if not _is_repeated(name)}
    return _Checkpoint(kept, str(configuration), str(values.get("trainer_name", "nnUNetTrainer")), mirrored)


def _is_repeated(name: str) -> bool:
    """Whether a tensor is there under another name, too: modules of nnU-Net list theirs twice."""
    return ".all_modules." in name or name.startswith("decoder.encoder.")


def _source(plans: Mapping[str, Any], plan: Plan, trained: Trained) -> str:
    folds = "".join(f", fold {fold}" for fold in trained.folds) if len(trained.folds) == 1 else ""
    return f"{plans.get('dataset_name', 'nnU-Net')}, {plan.configuration}{folds}"


def _card(
    plan: Plan, classes: Classes, network: Network, checkpoint: _Checkpoint, source: str, folds: tuple[int, ...]
) -> ModelCard:  # fmt: skip
    origin = Origin(
        tool="nnunet", source=source, window=plan.window, step=_STEP, mirrored=checkpoint.mirrored, order="stored",
        transpose=plan.transpose, crop=True, cubic=True, folds=folds if len(folds) > 1 else (),
    )  # fmt: skip
    spacing = plan.spacing
    if TOTAL_SEGMENTATOR in source:
        step = _TOTAL_STEP if dataset_number(source) in TOTAL and min(spacing) < _TOTAL_COARSE else _STEP
        origin = replace(origin, step=step, order="canonical", late=True, back="labels")
        spacing = along(spacing, plan.transpose)
    return ModelCard(
        config=Config(model=imported_model(network)), labels=classes.labels, schemes=plan.schemes, spacing=spacing,
        step=0, network=network, regions=classes.regions, origin=origin,
    )  # fmt: skip


def _facts(plan: Plan, checkpoint: _Checkpoint, trained: Trained, job: ImportJob) -> dict[str, Any]:
    architecture = plan.architecture
    return {
        "configuration": plan.configuration,
        "trainer": checkpoint.trainer,
        "checkpoint": f"checkpoint_{job.checkpoint}.pth",
        "folds": list(trained.folds),
        "family": architecture.family,
        "features": list(architecture.features),
        "kernels": [list(kernel) for kernel in architecture.kernels],
        "strides": [list(stride) for stride in architecture.strides],
    }
