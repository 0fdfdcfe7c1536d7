"""The files of what is imported, in a folder or a zip, of which no more is read than what is asked for by name."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from volseg.errors import CheckpointError, ConfigError, first_line
from volseg.files import leads_out
from volseg.machine import size_text

_DEEPEST = 5
"""Folders below the one that was named in which files are looked for."""
_MOST_FILES = 100_000
_LARGEST_JSON, _LARGEST_CHECKPOINT = 64 * 2**20, 16 * 2**30
_MOST_SHRUNK = 1000
"""How many times smaller a file in a zip may be than it says to be; weights shrink by a tenth."""


class Source(ABC):
    """Files by their names below the folder or in the zip, with slashes.

    path  as the user named it
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """All files, sorted."""

    @abstractmethod
    def text(self, name: str) -> str:
        """A file as text. Raises CheckpointError where it is not UTF-8, or too large."""

    @abstractmethod
    def local(self, name: str) -> AbstractContextManager[Path]:
        """A context manager that gives a path at which the file can be read. Raises CheckpointError."""

    def where(self, name: str) -> str:
        """A file as messages call it."""
        return f"{self.path}/{name}"

    def json(self, name: str) -> dict[str, Any]:
        """A file of JSON. Raises CheckpointError where it is no table of JSON."""
        try:
            values = json.loads(self.text(name))
        except ValueError as error:
            raise CheckpointError(f"{self.where(name)}: is not JSON ({error}); restore it") from None
        except RecursionError:
            raise CheckpointError(f"{self.where(name)}: is nested too deep; restore it") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{self.where(name)}: holds no table of JSON; restore it")
        return values


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """The files of a folder or a zip.

    Raises ConfigError where there is neither, CheckpointError for a zip that is damaged, holds paths that lead out of
    it, or more files than any model has.
    """
    if path.is_dir():
        yield _Folder(path)
    elif not path.is_file():
        raise ConfigError(f"{path}: no such folder or zip; give a model's folder, or the zip that its tool exported")
    elif not zipfile.is_zipfile(path):
        raise ConfigError(f"{path}: neither a folder nor a zip; give the folder that it lies in, or an exported zip")
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise CheckpointError(f"{path}: damaged ({first_line(error)}); restore it") from None
        with archive:
            yield _Zip(path, archive)


class _Folder(Source):
    @property
    def names(self) -> list[str]:
        found: list[str] = []
        for folder, folders, files in os.walk(self.path):
            inside = Path(folder).relative_to(self.path)
            folders[:] = [] if len(inside.parts) >= _DEEPEST else sorted(folders)
            found += [(inside / file).as_posix() for file in files]
            if len(found) > _MOST_FILES:
                raise ConfigError(f"{self.path}: more than {_MOST_FILES:,} files; give the model's own folder")
        return sorted(found)

    def text(self, name: str) -> str:
        path = self.path / name
        try:
            if path.stat().st_size > _LARGEST_JSON:
                raise CheckpointError(f"{path}: larger than {size_text(_LARGEST_JSON)}; no model has such a file")
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise CheckpointError(f"{path}: is not UTF-8 ({error})") from None

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        yield self.path / name


class _Zip(Source):
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        super().__init__(path)
        self.archive = archive
        self.members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        if len(self.members) > _MOST_FILES:
            raise CheckpointError(
                f"{path}: holds {len(self.members):,} files; a model's zip has at most {_MOST_FILES:,}"
            )
        for name in self.members:
            if leads_out(name):
                raise CheckpointError(f"{path}: holds {name!r}, a path that leads out of it; nothing was unpacked")

    @property
    def names(self) -> list[str]:
        return sorted(self.members)

    def text(self, name: str) -> str:
        self._check_size(name, _LARGEST_JSON)
        with self._member(name) as file:
            values = file.read(_LARGEST_JSON)
        try:
            return values.decode("utf-8")
        except ValueError as error:
            raise CheckpointError(f"{self.where(name)}: is not UTF-8 ({error})") from None

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        size = self._check_size(name, _LARGEST_CHECKPOINT)
        with tempfile.TemporaryDirectory(prefix="volseg-import-") as folder:
            free = shutil.disk_usage(folder).free
            if size > free:
                raise ConfigError(
                    f"{self.where(name)}: unpacks to {size_text(size)}, and {Path(folder).parent} has "
                    f"{size_text(free)} free; free some space, or name another place in TMPDIR"
                )
            path = Path(folder) / "checkpoint"
            with self._member(name) as file, path.open("wb") as copy:
                shutil.copyfileobj(file, copy, 2**20)
            yield path

    @contextmanager
    def _member(self, name: str) -> Iterator[IO[bytes]]:
        """A member to read. Raises CheckpointError where it is damaged or encrypted."""
        try:
            with self.archive.open(self.members[name]) as file:
                yield file
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            raise CheckpointError(f"{self.where(name)}: cannot be unpacked ({first_line(error)}); restore it") from None

    def _check_size(self, name: str, largest: int) -> int:
        """Bytes of a member. Raises CheckpointError where it says to be too large, or shrank as no weights do."""
        member = self.members[name]
        if member.file_size > largest or member.file_size > _MOST_SHRUNK * max(1024, member.compress_size):
            raise CheckpointError(
                f"{self.where(name)}: unpacks from {size_text(member.compress_size)} to {size_text(member.file_size)}; "
                f"no model has such a file of more than {size_text(largest)}, or that shrinks so; nothing was unpacked"
            )
        return member.file_size
