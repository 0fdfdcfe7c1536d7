"""The folder that keeps machine code from one process to the next.

It is ``$XDG_CACHE_HOME/volseg``, ``~/.cache/volseg`` where that is not set, or the folder that VOLSEG_CACHE names;
``VOLSEG_CACHE=off`` keeps nothing. What lies there is run, so nothing is read that anybody but this user or root could
have written. Any number of processes may read and write at once: a file is written under a name of its own and renamed,
so that it is there as a whole or not at all. What fails here costs time alone, so no error leaves this module.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

LIMIT = 64 * 2**20
"""Bytes that the folder may hold, in files of some ten thousand."""

_SUFFIX, _PARTIAL = ".kernels", ".partial"
_FRESH = 3600.0
"""Seconds for which a file counts as just used without being marked again."""


def chosen_folder() -> Path | None:
    """The folder that the environment names; None where it says off, or there is no home."""
    named = os.environ.get("VOLSEG_CACHE", "")
    if named.lower() in ("off", "0"):
        return None
    try:
        if named:
            return Path(named).expanduser()
        caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (caches if caches.is_absolute() else Path.home() / ".cache") / "volseg"
    except RuntimeError:  # this user has no home
        return None


def has_kept_code() -> bool:
    """Whether an earlier process left machine code here, so that this one will most likely compile none or little."""
    path = chosen_folder()
    return path is not None and CodeFolder(path).has_files()


class CodeFolder:
    """Files known by names, in a folder that only this user writes to; of at most `limit` bytes in all."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self.path, self._limit = path, limit

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none that may be trusted. It counts as used just now."""
        with suppress(OSError), self._entered() as folder:
            descriptor = os.open(name + _SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            with open(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not (stat.S_ISREG(status.st_mode) and _is_own(status)):
                    return None
                content = file.read()
                if time.time() - status.st_mtime > _FRESH:
                    with suppress(OSError):  # another user's, or on a system that is mounted to be read
                        os.utime(descriptor)
                return content
        return None

    def has_files(self) -> bool:
        """Whether there are any, of whatever names, that may be trusted."""
        with suppress(OSError), self._entered() as folder:
            return any(name.endswith(_SUFFIX) for name in os.listdir(folder))
        return False

    def write(self, name: str, content: bytes) -> None:
        """Keep a file, if that is possible; the least recently used files go where there are too many bytes."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
            with self._entered() as folder:
                _write_whole(folder, name + _SUFFIX, content)
                self._trim(folder)

    @contextmanager
    def _entered(self) -> Iterator[int]:
        """A descriptor of the folder, so that it stays the one that was looked at. Raises OSError: not to be used."""
        if not hasattr(os, "geteuid"):  # a system whose files say in another way who may write them
            raise PermissionError(self.path)
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not _is_own(os.fstat(folder)):
                raise PermissionError(self.path)
            yield folder
        finally:
            os.close(folder)

    def _trim(self, folder: int) -> None:
        """Remove the least recently used files until a quarter of the room is free, where they fill more than all."""
        kept = []
        for name in os.listdir(folder):
            if name.endswith((_SUFFIX, _PARTIAL)):
                with suppress(FileNotFoundError):  # another process has just removed it
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    kept.append((status.st_mtime, name, status.st_size))
        total = sum(size for _, _, size in kept)
        if total <= self._limit:
            return
        for _, name, size in sorted(kept):
            if total <= self._limit * 3 // 4:
                return
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
            total -= size


def _is_own(status: os.stat_result) -> bool:
    """Whether a file or folder is this user's or root's, and nobody else can write it."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _write_whole(folder: int, name: str, content: bytes) -> None:
    temporary = os.urandom(12).hex() + _PARTIAL  # processes of several machines may share the folder
    private = partial(os.open, mode=0o600, dir_fd=folder)
    try:
        with open(temporary, "xb", opener=private) as file:
            file.write(content)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
