"""What a run was trained on, to the byte: hashes of the data set's files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volseg.distributed.communicator import Communicator
from volseg.errors import CheckpointError
from volseg.files import sha256, write_text
from volseg.volumes.dataset import DESCRIPTION, Dataset

INPUTS = "inputs.json"
MOST_NAMES = 5

HASHED_BYTES = 16 * 2**30
"""Of one volume; a larger one is not hashed. Its size stands in the report all the same."""


def hash_inputs(dataset: Dataset, communicator: Communicator) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of dataset.json and of every file of the cases, by its path in the data set. Collective.

    The ranks share the files. A folder (zarr) has the hash of its list: for each file below it, but
    for those in ``labels/``, by path, a line ``HASH  PATH``, as sha256sum prints them. What is larger than
    `HASHED_BYTES` has None.

    Raises OSError, on all ranks, where a file cannot be read.
    """
    members: dict[Path, list[Path]] = {}
    sizes: dict[Path, int] = {}
    with communicator.together():
        if communicator.is_root:
            members = _members(dataset)
            sizes = {path: sum(file.stat().st_size for file in files) for path, files in members.items()}
    members, sizes = communicator.broadcast((members, sizes))
    wanted = [file for path, files in members.items() if sizes[path] <= HASHED_BYTES for file in files]
    mine: dict[Path, str] = {}
    with communicator.together():
        mine = {file: sha256(file) for file in wanted[communicator.rank :: communicator.size]}
    hashes = {file: digest for share in communicator.gather_all(mine) for file, digest in share.items()}
    return {
        _name(path, dataset.folder): {
            "bytes": sizes[path],
            "sha256": _of_whole(path, files, hashes) if sizes[path] <= HASHED_BYTES else None,
        }
        for path, files in members.items()
    }


def _members(dataset: Dataset) -> dict[Path, list[Path]]:
    """The files of every input; a file's is itself."""
    images = [[image.path for image in case.images] for case in dataset.cases]  # channels may share a file
    cases = [path for paths, case in zip(images, dataset.cases, strict=True) for path in (*paths, case.label) if path]
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


def write_inputs(run: Path, inputs: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `INPUTS` into a run folder, whole or not at all. Raises as `write_text` does."""
    write_text(run / INPUTS, json.dumps(inputs, indent=1) + "\n")


def check_same_inputs(run: Path, dataset: Dataset, inputs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise CheckpointError where a case's image or labels are not what the run began with.

    Files are compared by their names in the data set, so that it may lie elsewhere now. A run of an older version,
    without `INPUTS`, says nothing of them.
    """
    path = run / INPUTS
    if not path.is_file():
        return
    try:
        before = {str(name): (one["bytes"], one["sha256"]) for name, one in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove it to go on with the files there are") from None
    now = {name: (one["bytes"], one["sha256"]) for name, one in inputs.items()}

    def differs(file: Path) -> bool:
        name = _name(file, dataset.folder)
        return name in before and before[name] != now[name]

    changed = []
    for case in dataset.cases:
        image, label = any(differs(one.path) for one in case.images), case.label is not None and differs(case.label)
        if image or label:
            changed.append(f"{case.name} ({' and '.join(['image'] * image + ['labels'] * label)})")
    if changed:
        raise CheckpointError(
            f"{run}: the files of {names_of(changed)} are not those that the run began with; continue with the run's "
            "own data set, or train into another folder"
        )


def names_of(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
