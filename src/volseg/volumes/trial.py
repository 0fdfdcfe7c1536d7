"""Whether a file can be written where it is wanted, found out before the work whose result it is to hold.

Permissions, read-only file systems, limits of names and sizes, quotas: only the file system knows them, and it tells
whoever tries. So a file of nearly that name is made, given the size, and removed again.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from volseg.errors import VolumeError
from volseg.machine import size_text

CLAIM = 16 << 20  # bytes that are really taken for a moment, which shows a quota that is used up
UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def try_place(path: Path, size: int = 0) -> None:
    """Raise VolumeError unless a file of `size` bytes can be made, and given the name `path`, in its folder, which is
    there. What `path` holds stays as it is.
    """
    folder = path.parent
    temporary = folder / f".{path.name}.{secrets.token_hex(4)}.partial"
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            os.ftruncate(descriptor, size)
            _claim(descriptor, min(size, CLAIM))
        finally:
            os.close(descriptor)
            with suppress(OSError):
                temporary.unlink()
    except OSError as error:
        raise VolumeError(f"{path}: {_reason(error, path, size)}") from error
    _check_replacing(path, folder)


def check_room(needs: Mapping[Path, int]) -> None:
    """Raise VolumeError unless the disks have room for these files of so many bytes; folders may still be made."""
    disks: dict[int, list[Path]] = {}
    for path in needs:
        with suppress(OSError):
            disks.setdefault(_folder_there(path).stat().st_dev, []).append(path)
    for paths in disks.values():
        total, folder = sum(needs[path] for path in paths), _folder_there(paths[0])
        free = shutil.disk_usage(folder).free
        if total > free:
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            raise VolumeError(
                f"{paths[0]}{more}: about {size_text(total)} will be needed, and the disk of {folder} has "
                f"{size_text(free)} free; free some space, or give another folder"
            )


def _folder_there(path: Path) -> Path:
    """The nearest folder above `path` that is there."""
    return next(folder for folder in path.absolute().parents if folder.exists())


def _claim(descriptor: int, size: int) -> None:
    if not size:
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _reason(error: OSError, path: Path, size: int) -> str:
    folder = path.parent
    if error.errno == errno.ENAMETOOLONG:
        return f"a name of {len(os.fsencode(path.name))} bytes is too long for {folder}; give a shorter one"
    if error.errno == errno.EROFS:
        return f"the folder {folder} is on a disk that can only be read; choose another"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        need = f"{size_text(size)} will be needed, and " if size else ""
        return f"{need}{folder} has no room ({error.strerror}); free some, or choose another"
    if error.errno == errno.EFBIG:
        return f"{folder} takes no file of {size_text(size)} ({error.strerror}); choose a folder on another disk"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"the folder {folder} is not writable; choose another"
    return f"cannot be written ({error.strerror or error}); choose another folder"


def _check_replacing(path: Path, folder: Path) -> None:
    """In a folder such as /tmp only a file's owner may replace it."""
    try:
        there, here = path.lstat(), folder.stat()
    except OSError:
        return
    me = os.geteuid()
    if here.st_mode & stat.S_ISVTX and me not in (0, there.st_uid, here.st_uid):
        raise VolumeError(f"{path}: belongs to another user, and {folder} lets only him replace it; give another name")
