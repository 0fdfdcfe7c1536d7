"""What a run was trained on, to the byte: hashes of the data set's files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from volseg.distributed.communicator import Communicator
from volseg.files import sha256
from volseg.volumes.dataset import DESCRIPTION, Dataset

HASHED_BYTES = 16 * 2**30
"""Of one volume; a larger one is not hashed. Its size stands in the report all the same."""


def hash_inputs(dataset: Dataset, communicator: Communicator) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of dataset.json and of every file of the cases, by its path in the data set. Collective.

    The ranks share the files. A folder (zarr) has the hash of its list: for each file below it, by path, a line
    ``HASH  PATH``, as sha256sum prints them. What is larger than `HASHED_BYTES` has None.

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
