"""Which cases a run is trained on, which are held out, and at what spacing; what it remembers of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.config import DataConfig, TrainingConfig
from volseg.distributed.communicator import Communicator
from volseg.errors import CheckpointError, ConfigError, VolumeError
from volseg.events import Caution, Listener
from volseg.files import write_text
from volseg.text import read_text
from volseg.training.inputs import MOST_NAMES, names_of
from volseg.training.job import TrainingJob
from volseg.volumes.canonical import canonical
from volseg.volumes.dataset import Case, Dataset, Fault
from volseg.volumes.dataset.examination import examine
from volseg.volumes.fingerprint import Fingerprint, read_fingerprint
from volseg.volumes.resampling import Spacing
from volseg.volumes.volume import Space

SPLIT = "split.json"
NNUNET_SPLITS = "splits_final.json"


@dataclass(frozen=True)
class Split:
    """Cases to train on and cases to validate with, each by name.

    described  where it comes from, ready to follow "held out"; empty for an ordinary one
    """

    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    described: str = ""

    def as_json(self) -> dict[str, list[str]]:
        """Names, as one entry of nnU-Net's splits_final.json."""
        return {"train": [case.name for case in self.training], "val": [case.name for case in self.validation]}


def split_cases(dataset: Dataset, config: TrainingConfig) -> Split:
    """The split that `config` asks for; it follows from the names of the cases, the seed and the numbers given alone.

    With folds, that of `NNUNET_SPLITS` beside dataset.json where it is there; else cases are dealt out, in an order
    drawn by the seed. Without, `validation` cases are drawn, -1 for one in eight.

    Raises VolumeError where nothing would be left to train on, there are more folds than cases, or the file is of
    another data set; ConfigError where there is no such fold.
    """
    count = len(dataset.cases)
    if config.folds:
        path = dataset.folder / NNUNET_SPLITS
        if path.is_file():
            return _split_of_file(dataset, path, config.fold)
        if config.fold >= config.folds:
            raise ConfigError(
                f"training.fold = {config.fold}, but there are {config.folds} folds, counted from 0; give --fold 0 to "
                f"{config.folds - 1}, or more --folds"
            )
        if config.folds > count:
            raise VolumeError(
                f"{dataset.folder}: training.folds = {config.folds}, but there are {count} cases; give --folds "
                f"{count}, or have more cases"
                if count > 1
                else f"{dataset.folder}: one case cannot be split into folds"
            )
        order = np.random.default_rng(config.seed).permutation(count)
        held_out = {int(n) for n in order[config.fold :: config.folds]}
        described = f" (fold {config.fold} of {config.folds})"
    elif config.fold:
        raise ConfigError(
            f"training.fold = {config.fold}, but training.folds = 0 asks for none; give --folds 5, or leave --fold out"
        )
    else:
        wanted = count // 8 if config.validation < 0 else config.validation
        if wanted >= count:
            raise VolumeError(
                f"{dataset.folder}: training.validation = {wanted} of {count} cases leaves none to train on"
            )
        held_out = {int(n) for n in np.random.default_rng(config.seed).permutation(count)[:wanted]}
        described = ""
    training = tuple(case for n, case in enumerate(dataset.cases) if n not in held_out)
    return Split(training, tuple(case for n, case in enumerate(dataset.cases) if n in held_out), described)


def _split_of_file(dataset: Dataset, path: Path, fold: int) -> Split:
    cases = {case.name: case for case in dataset.cases}
    try:
        splits: Any = json.loads(read_text(path))
        folds = [{part: [str(name) for name in split[part]] for part in ("train", "val")} for split in splits]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VolumeError(
            f'{path}: no list of {{"train": [...], "val": [...]}} ({error}); mend it, or move it '
            "away to have folds drawn"
        ) from None
    if fold >= len(folds):
        raise ConfigError(
            f"training.fold = {fold}, but {path} has {len(folds)}, counted from 0; give --fold below {len(folds)}, or "
            "move the file away to have folds drawn"
        )
    split = folds[fold]
    unknown = [name for part in split.values() for name in part if name not in cases]
    if unknown:
        raise VolumeError(
            f"{path}: fold {fold} names {len(unknown)} cases that are not in {dataset.folder}, such as {unknown[0]}; "
            "move the file away to have folds drawn"
        )
    both = sorted(set(split["train"]) & set(split["val"]))
    if both or not split["train"]:
        what = f"case {both[0]} both to train on and to validate with" if both else "no case to train on"
        raise VolumeError(f"{path}: fold {fold} has {what}; mend it, or move it away to have folds drawn")
    train, val = (tuple(cases[name] for name in sorted(set(split[part]))) for part in ("train", "val"))
    return Split(train, val, f" (fold {fold} of {len(folds)} in {path})")


def write_split(run: Path, split: Split) -> None:
    """Write `SPLIT` into a run folder, whole or not at all. Raises as `write_text` does."""
    write_text(run / SPLIT, json.dumps(split.as_json(), indent=1) + "\n")


def check_same_split(run: Path, split: Split) -> None:
    """Raise CheckpointError where the run began with other cases. One of an older version says nothing of them."""
    path = run / SPLIT
    if not path.is_file():
        return
    try:
        before = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove it to go on with the cases there are") from None
    now = split.as_json()
    if before == now:
        return
    then, there = {*before["train"], *before["val"]}, {*now["train"], *now["val"]}
    differences = (
        ("new", there - then),
        ("missing", then - there),
        ("held out before, now to train on", {*before["val"]} & {*now["train"]}),
        ("trained on before, now held out", {*before["train"]} & {*now["val"]}),
    )
    said = "; ".join(f"{what}: {names_of(sorted(names))}" for what, names in differences if names)
    raise CheckpointError(
        f"{run}: was trained on other cases than there are now ({said}); continue with the run's own data set, or "
        "train into another folder"
    )


def canonical_spaces(dataset: Dataset) -> dict[str, Space]:
    """The grid of every case in canonical order, by name; only headers are read."""
    return {case.name: canonical(case.images[0].open()).space for case in dataset.cases}


def median_spacing(spaces: Sequence[Space]) -> Spacing:
    """Axis by axis, in mm."""
    d, h, w = np.median([space.spacing for space in spaces], axis=0).tolist()
    return d, h, w


def spacing_to_train_at(config: DataConfig, spaces: Sequence[Space]) -> Spacing | None:
    """What `config` asks for, in mm, from the grids of the training cases; None: each case's own.

    "auto" and "median" are the same. Axes of a case within 1 % of it stay as they are (`volumes.scan.space_at`), so
    that a set of one spacing is not resampled by either.
    """
    if config.spacing == "own":
        return None
    return config.named_spacing or median_spacing(spaces)


def fingerprint_of_run(
    job: TrainingJob, dataset: Dataset, spaces: Mapping[str, Space], communicator: Communicator, listen: Listener
) -> Fingerprint:
    """The one that the run was begun with where it goes on with the same cases; else every case is read. Collective.

    spaces  of the cases, canonical order

    Raises VolumeError where a case cannot be trained on.
    """
    known = communicator.on_root(lambda: read_fingerprint(job.run)) if job.proceed else None
    if known is not None and _is_of(known, dataset, spaces):
        return known
    found = examine(dataset, communicator, listen)
    _raise_first([fault for fault in found.faults if fault.serious], dataset)
    empty = [fault.case for fault in found.faults if fault.kind == "empty labels"]
    if empty:
        of = f"{len(empty)} of {len(dataset.cases)} cases"
        listen(Caution(f"{dataset.folder}: {of} hold background alone, such as {empty[0]}"))
    warned = [fault for fault in found.faults if not fault.serious and fault.kind != "empty labels"]
    for kind in dict.fromkeys(fault.kind for fault in warned):
        alike = [fault.message for fault in warned if fault.kind == kind]
        for message in alike[:MOST_NAMES]:
            listen(Caution(message))
        if len(alike) > MOST_NAMES:
            more = f"{len(alike) - MOST_NAMES} more of {kind}"
            listen(Caution(f"{dataset.folder}: {more}; `volseg check {dataset.folder}` lists all"))
    return found.fingerprint


def _raise_first(faults: Sequence[Fault], dataset: Dataset) -> None:
    if faults:
        more = f" ({len(faults)} faults; `volseg check {dataset.folder}` lists all)" if len(faults) > 1 else ""
        raise VolumeError(faults[0].message + more)


def _is_of(fingerprint: Fingerprint, dataset: Dataset, spaces: Mapping[str, Space]) -> bool:
    same = (fingerprint.labels, fingerprint.channel_names) == (dataset.labels, dataset.channel_names)
    grids = {case.name: (case.shape, case.spacing) for case in fingerprint.cases}
    return same and grids == {name: (space.shape, space.spacing) for name, space in spaces.items()}
