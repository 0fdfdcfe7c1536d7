"""The members of a zip archive, read in place: nothing is unpacked to disk, and no name is ever used as a path.

A member is inflated as far as it is read, and never beyond the size that the archive's directory declares for it; the
declared sizes are held against `limits` before any member is opened.
"""

from __future__ import annotations

import io
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from volseg.errors import VolumeError
from volseg.machine import size_text
from volseg.volumes.audit import Dropped
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.finding.foreign import Foreign
from volseg.volumes.dicom.image import printable

STEP = 1 << 16
METHODS = {6: "implode", 9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "zstandard", 95: "xz", 98: "PPMd"}
NESTED_ARCHIVES = (".zip", ".gz", ".tgz", ".tar", ".7z", ".rar", ".bz2", ".xz")


@dataclass(frozen=True)
class Member:
    """One file within a zip (an `image.Entry`)."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    file: Path

    @property
    def name(self) -> str:
        return _shown(self.file, self.info)

    def open(self) -> BinaryIO:
        """Its bytes, inflated as they are read. Raises VolumeError where the archive is damaged there or lies."""
        try:
            inflating = self.archive.open(self.info)
        except Exception as error:  # zipfile reports damage by many types
            raise VolumeError(f"{self.name}: damaged archive ({error}); copy it again") from error
        return cast(BinaryIO, _Inflating(inflating, self.info.file_size, self.name))


def read_archive(path: Path) -> tuple[list[Member], list[Dropped]]:
    """The members that may hold images, in the order of their names, and those that are not looked into.

    Raises VolumeError where `path` is no sound zip, and where its declared sizes break a limit of `limits`.
    """
    try:
        # The archive stays open for its members; its file is closed when the last of them is gone.
        archive = zipfile.ZipFile(cast(IO[bytes], _GuardedFile(path)))
    except Exception as error:  # zipfile reports damage by many types
        raise VolumeError(f"{path}: a damaged zip archive ({error}); copy it again, or unpack it") from error
    infos = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
    _require_within_limits(path, infos)
    members, dropped, names = list[Member](), list[Dropped](), set[str]()
    for info in infos:
        reason = "another member of the same name" if info.filename in names else _why_not(info)
        names.add(info.filename)
        if reason is None:
            members.append(Member(archive, info, path))
        else:
            dropped.append(Foreign(_shown(path, info), reason))
    return members, dropped


def _shown(path: Path, info: zipfile.ZipInfo) -> str:
    return f"{path}!{printable(info.filename)}"


def _require_within_limits(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    remedy = "; unpack it with care, and give the folder"
    if len(infos) > limits.MAX_ZIP_MEMBERS:
        raise VolumeError(f"{path}: {len(infos)} members, limit {limits.MAX_ZIP_MEMBERS}{remedy}")
    total = sum(info.file_size for info in infos)
    if total > limits.MAX_ZIP_BYTES:
        raise VolumeError(f"{path}: inflates to {size_text(total)}, limit {size_text(limits.MAX_ZIP_BYTES)}{remedy}")
    size = path.stat().st_size
    if _is_bomb(total, size):
        ratio = f"inflates to {total / size:.0f} times its size, limit {limits.MAX_RATIO}"
        raise VolumeError(f"{path}: {ratio}: perhaps a zip bomb{remedy}")


def _is_bomb(inflated: int, stored: int) -> bool:
    return inflated > limits.SUSPECT_BYTES and inflated > limits.MAX_RATIO * stored


def _why_not(info: zipfile.ZipInfo) -> str | None:
    """Why a member is not opened, or None."""
    if _leads_out(info.filename):
        return "its name leads out of the archive; not opened"
    mode = info.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "a link or another special file; not opened"
    if info.flag_bits & 0x1:
        return "encrypted; unpack the archive with its password and give the folder"
    if info.filename.lower().endswith(NESTED_ARCHIVES):
        return "an archive within the archive, not opened; unpack both and give the folder"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = METHODS.get(info.compress_type, f"method {info.compress_type}")
        return f"compressed by {method}, which is not read; unpack the archive and give the folder"
    if info.file_size > limits.MAX_MEMBER_BYTES:
        return (
            f"inflates to {size_text(info.file_size)}, limit {size_text(limits.MAX_MEMBER_BYTES)}; unpack the archive"
        )
    if _is_bomb(info.file_size, info.compress_size):
        return f"inflates more than {limits.MAX_RATIO} times: perhaps a zip bomb; not opened"
    return None


def _leads_out(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or parts[0].endswith(":") or "\0" in name


class _GuardedFile(io.FileIO):
    """The archive's file, which zipfile asks for the whole directory of members in one piece: not for a huge one."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")

    def read(self, size: int | None = -1, /) -> Any:
        if size is not None and size > limits.MAX_ZIP_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a list of members of {size} bytes, limit {limits.MAX_ZIP_DIRECTORY_BYTES}")
        return super().read(size)

    def __del__(self) -> None:
        self.close()


class _Inflating(io.RawIOBase):
    """A member as a seekable stream: what was inflated is kept, more is inflated where the reader asks for it."""

    def __init__(self, stream: IO[bytes], size: int, name: str) -> None:
        self._stream, self._size, self.name = stream, size, name
        self._kept, self._position = bytearray(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._position + size, self._size)
        self._inflate(stop)
        found = bytes(self._kept[self._position : stop])
        self._position += len(found)
        return found

    def readinto(self, buffer: Any, /) -> int:
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._stream.close()
        super().close()

    def _inflate(self, stop: int) -> None:
        while len(self._kept) < stop:
            try:
                piece = self._stream.read(STEP)
            except Exception as error:  # zipfile and zlib report damage by many types
                raise VolumeError(f"{self.name}: damaged archive ({error}); copy it again") from error
            if not piece:
                found = len(self._kept)
                raise VolumeError(f"{self.name}: damaged archive: {found} bytes where it declares {self._size}")
            self._kept += piece
