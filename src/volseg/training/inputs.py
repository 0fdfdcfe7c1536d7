"""What a run was trained on, to the byte: hashes of the data set's files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from volseg.distributed.communicator import Communicator
from volseg.files import sha256, write_text
from volseg.volumes.dataset import DESCRIPTION, Dataset

INPUTS = "inputs.json"
"""What was hashed, in the run folder."""

HASHED_BYTES = 16 * 2**30
"""Of one volume; a larger one is not hashed. Its size stands in the report all the same."""


def hash_inputs(
    dataset: Dataset, communicator: Communicator, known: Path | None = None
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Bytes and SHA-256 of dataset.json and of every file of the cases, by its path in the data set. Collective.

    known  JSON file of an earlier call's hashes, which are taken where names, sizes and times of change of all files
           of an input are as they were; it is written anew

    The ranks share the files. A folder (zarr) has the hash of its list: for each file below it, by path, a line
    ``HASH  PATH``, as sha256sum prints them. What is larger than `HASHED_BYTES` has None.

    Raises OSError, on all ranks, where a file cannot be read.
    """
    members: dict[Path, list[Path]] = {}
    found: dict[Path, dict[str, Any]] = {}  # of each input
    with communicator.together():
        if communicator.is_root:
            members, before = _members(dataset), {} if known is None else _read(known)
            for path, files in members.items():
                size, stamp = _stamp(path, files)
                old = before.get(_name(path, dataset.folder))
                same = isinstance(old, dict) and old.get("stamp") == stamp
                found[path] = {"bytes": size, "stamp": stamp, "sha256": old.get("sha256") if same and old else None}
    members, found = communicator.broadcast((members, found))
    to_hash = [path for path, one in found.items() if one["bytes"] <= HASHED_BYTES and one["sha256"] is None]
    wanted = [file for path in to_hash for file in members[path]]
    mine: dict[Path, str] = {}
    with communicator.together():
        mine = {file: sha256(file) for file in wanted[communicator.rank :: communicator.size]}
    hashes = {file: digest for share in communicator.gather_all(mine) for file, digest in share.items()}
    for path in to_hash:
        found[path]["sha256"] = _of_whole(path, members[path], hashes)
    named = {_name(path, dataset.folder): one for path, one in found.items()}
    with communicator.together():
        if communicator.is_root and known is not None:
            write_text(known, json.dumps(named, indent=1) + "\n")
    return {name: {"bytes": one["bytes"], "sha256": one["sha256"]} for name, one in named.items()}


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
    cases = [path for paths, case in zip(images, dataset.cases, strict=True) for path in (*paths, case.label) if path]
    description = dataset.folder / DESCRIPTION
    inputs = [*([description] if description.is_file() else []), *cases]
    return {
        path: sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path] for path in inputs
    }


def _of_whole(path: Path, files: list[Path], hashes: dict[Path, str]) -> str:
    if files == [path]:
        return hashes[path]
    lines = "".join(f"{hashes[file]}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _name(path: Path, folder: Path) -> str:
    if path == folder:  # a single scan
        return path.name
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
