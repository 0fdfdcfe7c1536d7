"""What a run was trained on, to the byte: hashes of the data set's files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from volseg.distributed.communicator import Communicator
from volseg.errors import CheckpointError, first_few
from volseg.files import sha256, write_text
from volseg.volumes.dataset import DESCRIPTION, Dataset

INPUTS = "inputs.json"
"""What was hashed, in the run folder."""

MOST_NAMES = 5  # that a message lists

HASHED_BYTES = 16 * 2**30
"""Of one volume; a larger one is not hashed. Its size stands in the report all the same."""


def hash_inputs(
    dataset: Dataset, communicator: Communicator, known: Path | None = None
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Bytes and SHA-256 of dataset.json and of every file of the cases, by its path in the data set. Collective.

    known  JSON file of an earlier call's hashes, which are taken where names, sizes and times of change of all files
           of an input are as they were; it is written anew

    The ranks share the files. A folder (zarr) has the hash of its list: for each file below it, but for those in
    ``labels/``, by path, a line ``HASH  PATH``, as sha256sum prints them. What is larger than `HASHED_BYTES` has None.

    Raises OSError, on all ranks, where a file cannot be read.
    """
    before = {} if known is None else communicator.on_root(partial(_read, known))
    named = _hashed(dataset, communicator, before)
    if known is not None:
        communicator.on_root(partial(_write, known, named))
    return {name: {"bytes": one["bytes"], "sha256": one["sha256"]} for name, one in named.items()}


def check_same_inputs(run: Path, dataset: Dataset, communicator: Communicator) -> None:
    """Raise CheckpointError where a case's image or labels are not what the run began with. Collective.

    Files are compared by their names in the data set, so that it may lie elsewhere now; only those whose time of change
    is another are read. A run of an older version, without `INPUTS`, says nothing of them.
    """
    before = communicator.on_root(lambda: _read(run / INPUTS))
    if not before:
        return
    now = _hashed(dataset, communicator, before)

    def compare() -> None:
        _raise_where_changed(run, dataset, before, now)
        _write(run / INPUTS, now)

    communicator.on_root(compare)


def _raise_where_changed(run: Path, dataset: Dataset, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    def differs(file: Path) -> bool:
        name = _name(file, dataset.folder)
        return isinstance(before.get(name), dict) and any(
            before[name].get(key) != now[name][key] for key in ("bytes", "sha256")
        )

    changed = []
    for case in dataset.cases:
        image, label = any(differs(one.path) for one in case.images), any(differs(mask) for mask in case.masks)
        if image or label:
            changed.append(f"{case.name} ({' and '.join(['image'] * image + ['labels'] * label)})")
    if changed:
        raise CheckpointError(
            f"{run}: the files of {names_of(changed)} are not those that the run began with; continue with the run's "
            "own data set, or train into another folder"
        )


def _hashed(dataset: Dataset, communicator: Communicator, before: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Bytes, stamp and SHA-256 of each input by its name. Collective.

    before  the same of an earlier call
    """
    members, inputs = communicator.on_root(lambda: _survey(dataset, before))
    to_hash = [path for path, known in inputs.items() if known["bytes"] <= HASHED_BYTES and known["sha256"] is None]
    wanted = [file for path in to_hash for file in members[path]]
    mine: dict[Path, str] = {}
    with communicator.together():
        mine = {file: sha256(file) for file in wanted[communicator.rank :: communicator.size]}
    hashes = {file: digest for share in communicator.gather_all(mine) for file, digest in share.items()}
    for path in to_hash:
        inputs[path]["sha256"] = _of_whole(path, members[path], hashes)
    return {_name(path, dataset.folder): known for path, known in inputs.items()}


def _survey(dataset: Dataset, before: Mapping[str, Any]) -> tuple[dict[Path, list[Path]], dict[Path, dict[str, Any]]]:
    """The files of every input; and its bytes, stamp and hash, which is None where `before` does not tell it."""
    members, inputs = _members(dataset), {}
    for path, files in members.items():
        size, stamp = _stamp(path, files)
        old = before.get(_name(path, dataset.folder))
        same = isinstance(old, dict) and old.get("stamp") == stamp
        inputs[path] = {"bytes": size, "stamp": stamp, "sha256": old.get("sha256") if same and old else None}
    return members, inputs


def _write(path: Path, inputs: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(inputs, indent=1) + "\n")


def _read(known: Path) -> dict[str, Any]:
    """What was hashed before; nothing where the file is missing or is not what was written."""
    try:
        found = json.loads(known.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _stamp(path: Path, files: list[Path]) -> tuple[int, str]:
    """Bytes of an input, and a hash of the names, sizes and times of change of its files."""
    states = [(file, file.stat()) for file in files]
    lines = "".join(f"{os.path.relpath(file, path)} {state.st_size} {state.st_mtime_ns}\n" for file, state in states)
    return sum(state.st_size for _, state in states), hashlib.sha256(lines.encode()).hexdigest()


def _members(dataset: Dataset) -> dict[Path, list[Path]]:
    """The files of every input; a file's is itself."""
    images = [[image.path for image in case.images] for case in dataset.cases]  # channels may share a file
    cases = [path for paths, case in zip(images, dataset.cases, strict=True) for path in (*paths, *case.masks)]
    description = dataset.folder / DESCRIPTION
    inputs = [*([description] if description.is_file() else []), *cases]
    return {path: _files(path) if path.is_dir() else [path] for path in inputs}


def _files(store: Path) -> list[Path]:
    """Of a zarr store, but for its label images: those that a case has are inputs of their own."""
    files = (file for file in store.rglob("*") if file.is_file())
    return sorted(file for file in files if file.relative_to(store).parts[0] != "labels")


def _of_whole(path: Path, files: list[Path], hashes: dict[Path, str]) -> str:
    if files == [path]:
        return hashes[path]
    lines = "".join(f"{hashes[file]}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _name(path: Path, folder: Path) -> str:
    if path == folder:  # a single scan
        return path.name
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def names_of(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    return first_few(names, MOST_NAMES)
