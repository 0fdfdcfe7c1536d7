"""The trained configuration in an nnU-Net result: a folder of one, of a data set, of several, or their exported zip."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from volseg.errors import ConfigError
from volseg.importing.job import ImportJob
from volseg.importing.sources import Source

_CHECKPOINT = re.compile(r"fold_(?P<fold>\d+|all)/checkpoint_(?P<kept>final|best)\.pth")
PLANS, DATASET = "plans.json", "dataset.json"
_USUAL = "3d_fullres"
TOTAL_SEGMENTATOR = "TotalSegmentator"
"""In the names of its data sets."""
ALL = "all"
"""The fold that was trained on all cases."""


@dataclass(frozen=True)
class Trained:
    """A trained configuration.

    folder       below the source, with a slash at its end where there is one
    folds        by fold, the file of its weights
    """

    folder: str
    folds: dict[str, str]

    @property
    def dataset(self) -> str:
        """Name of the dataset.json."""
        return self.folder + DATASET

    @property
    def plans(self) -> str:
        """Name of the plans.json."""
        return self.folder + PLANS


def is_nnunet(names: Sequence[str]) -> bool:
    """Whether among files there is a plan of nnU-Net."""
    return any(PurePosixPath(name).name == PLANS for name in names)


def parts_in(path: Path) -> tuple[Path, ...]:
    """The data sets' folders in a folder of TotalSegmentator's results, by their numbers; else the path itself."""
    inside = sorted(path.glob(f"Dataset*{TOTAL_SEGMENTATOR}*")) if path.is_dir() else []
    return tuple(inside) if len(inside) > 1 else (path,)


def choose(source: Source, job: ImportJob) -> Trained:
    """The configuration and folds that are asked for.

    Raises ConfigError where there is none, where there are several and none is the usual one, and for a fold or a kind
    of checkpoint that is not there: it lists what is.
    """
    names = source.names
    folders = [name.removesuffix(PLANS) for name in names if PurePosixPath(name).name == PLANS]
    trained = {folder: kept for folder in folders if (kept := _checkpoints(names, folder))}
    if not trained:
        raise ConfigError(
            f"{source.path}: no trained nnU-Net model: none of its folders holds {PLANS} and "
            "fold_0/checkpoint_final.pth (or another fold); give the folder TRAINER__PLANS__CONFIGURATION, or its zip"
        )
    folder = _folder(source, list(trained), job.configuration)
    if folder + DATASET not in names:
        raise ConfigError(
            f"{source.where(folder + DATASET)}: is missing; it names channels and labels: copy it from nnUNet_raw or "
            "nnUNet_preprocessed"
        )
    return Trained(folder, _folds(source.where(folder or "."), trained[folder], job))


def configuration_named(source: Source, folder: str) -> str:
    """The configuration by a folder's name, TRAINER__PLANS__CONFIGURATION; empty where it has another."""
    parts = (PurePosixPath(folder).name or source.path.absolute().name.removesuffix(".zip")).split("__")
    return parts[2] if len(parts) == 3 else ""


def _checkpoints(names: Sequence[str], folder: str) -> dict[tuple[str, str], str]:
    """By fold and kind, the checkpoints in a folder."""
    inside = ((name, _CHECKPOINT.fullmatch(name.removeprefix(folder))) for name in names if name.startswith(folder))
    return {(match["fold"], match["kept"]): name for name, match in inside if match}


def _folder(source: Source, folders: Sequence[str], wanted: str | None) -> str:
    """The one folder of a configuration, the usual one where none is wanted."""
    named = {folder: configuration_named(source, folder) for folder in folders}
    if wanted is None:
        spatial = [folder for folder, name in named.items() if name != "2d" and "cascade" not in name]
        chosen = [folder for folder in spatial if named[folder] == _USUAL] or spatial or list(folders)
    else:
        chosen = [folder for folder, name in named.items() if name == wanted or (not name and len(folders) == 1)]
    there = ", ".join(f"{folder or '.'}" for folder in sorted(folders))
    if not chosen:
        raise ConfigError(f"{source.path}: --configuration {wanted} is not there; it holds {there}")
    if len(chosen) > 1:
        raise ConfigError(
            f"{source.path}: holds several models: {there}; choose with --configuration, or give the folder of one"
        )
    return chosen[0]


def _folds(where: str, checkpoints: Mapping[tuple[str, str], str], job: ImportJob) -> dict[str, str]:
    """By fold, its file: the folds that are asked for, in their order."""
    kept = {fold: name for (fold, kind), name in checkpoints.items() if kind == job.checkpoint}
    there = ", ".join(sorted(f"fold_{fold}/checkpoint_{kind}" for fold, kind in checkpoints))
    if not kept:
        other = "best" if job.checkpoint == "final" else "final"
        raise ConfigError(
            f"{where}: no checkpoint_{job.checkpoint}.pth, but {there}; take those with --checkpoint {other}"
        )
    if job.folds is None:
        numbered = sorted((fold for fold in kept if fold != ALL), key=int)
        return {fold: kept[fold] for fold in numbered or [ALL]}
    wanted = [fold.strip().removeprefix("fold_") for fold in job.folds.split(",")]
    strange = [fold for fold in wanted if fold not in kept]
    if strange or len(set(wanted)) != len(wanted) or (ALL in wanted and len(wanted) > 1):
        raise ConfigError(
            f"--folds {job.folds}: {where} holds {there}; give numbers of those, such as 0,1, each once, or {ALL} "
            "alone for fold_all"
        )
    return {fold: kept[fold] for fold in wanted}
