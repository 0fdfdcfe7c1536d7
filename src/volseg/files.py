"""Small files written whole or not at all (a temporary name in the same folder, fsync, rename), and hashes of any."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from volseg.errors import VolsegError

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # no fault of the user's input: they stay OSErrors, exit code 1


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on leaving it is synced and takes the name `path`, on an error it is removed.

    The temporary name keeps `path`'s suffix, for writers that go by it. Raises VolsegError where the folder is
    missing or cannot be written, OSError where the disk is full or fails.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it; some writers make files that nobody else can read
        yield temporary
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    except OSError as error:
        if error.errno in DISK_FAULTS:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise VolsegError(
            f"cannot write {path}: {error.strerror or error}; choose a folder you can write to"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether `replacing` gave it its name, as a temporary one."""
    return re.fullmatch(r"\..+\.\d+\.partial(\.\w+)?", path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove what `replacing` left in a folder where its process was killed; nobody else may be writing there."""
    for path in folder.glob(".*.partial*"):
        if is_leftover(path) and not path.is_dir():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all. Raises as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
