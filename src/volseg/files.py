"""Small files written whole or not at all (a temporary name in the same folder, fsync, rename), and hashes of any."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from volseg.errors import VolsegError, first_line

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE)
"""No fault of the user's input: they stay OSErrors, exit code 1."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on leaving it is synced and takes the name `path`, on an error it is removed.

    The temporary name keeps `path`'s suffix, for writers that go by it. Raises VolsegError where the folder is
    missing or cannot be written, OSError where the disk is full or fails, whatever error a library makes of that.
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
    except Exception as error:
        fault = system_error(error)
        if fault is None:
            raise
        if fault.errno in DISK_FAULTS:
            raise OSError(fault.errno, fault.strerror, str(path)) from error
        if not path.parent.is_dir():
            raise VolsegError(f"cannot write {path}: there is no folder {path.parent}; make it first") from error
        raise VolsegError(
            f"cannot write {path}: {fault.strerror or fault}; choose a folder you can write to"
        ) from error
    finally:
        with suppress(OSError):  # the first error is the one to hear of
            temporary.unlink(missing_ok=True)


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to write to; on leaving it takes the name `path`, on an error it is removed.

    What `path` was before goes, once the new folder is whole. Raises OSError where the disk is full or fails.
    """
    whole = path.absolute()
    whole.parent.mkdir(parents=True, exist_ok=True)
    staging, before = (whole.with_name(f".{whole.name}.{os.getpid()}.{word}") for word in ("partial", "before"))
    staging.mkdir()
    try:
        yield staging
        flush_to_disk(staging)
        if whole.exists():
            os.rename(whole, before)
        try:
            os.rename(staging, whole)
        except OSError:
            if before.exists():
                os.rename(before, whole)
            raise
        flush_to_disk(whole.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if whole.exists():
            shutil.rmtree(before, ignore_errors=True)


def system_error(error: BaseException | None) -> OSError | None:
    """The system's error behind one of a library, which may have made it its own kind or text; None for any other.

    safetensors and other libraries in Rust end their texts with "(os error 28)".
    """
    handled = False  # what an error merely came up in handling of counts where it is the disk's
    for _ in range(10):
        if isinstance(error, OSError) and (not handled or error.errno in DISK_FAULTS):
            return error
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is not None:
            return OSError(int(number[1]), os.strerror(int(number[1])))
        if error is None:
            break
        handled = handled or error.__cause__ is None
        error = error.__cause__ or error.__context__
    return None


def what_is_wrong(error: BaseException) -> str:
    """Why something could not be written, in one line, as the system says it where it does."""
    fault = system_error(error)
    return fault.strerror if fault is not None and fault.strerror else first_line(error)


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
        temporary.write_bytes(utf8(text))


def utf8(text: str) -> bytes:
    """`text` as UTF-8 that every reader takes, whatever bytes the names in it have.

    Those of a path that the system's encoding does not know (surrogates in Python) are put back as they were where that
    is UTF-8; else they are escaped.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


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


def leads_out(name: str) -> bool:
    """Whether the name of a zip's member is a path to somewhere outside the folder that it would be unpacked in."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]
