"""Small files: whole or not at all, and whose fault a failure is."""

import errno
import os

import pytest

from volseg.errors import VolsegError
from volseg.files import remove_leftovers, replacing, system_error, utf8, write_text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_a_full_or_failing_disk_is_no_fault_of_the_user(tmp_path, monkeypatch, number):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"report\.json") as caught:
        write_text(tmp_path / "report.json", "{}")
    assert caught.value.errno == number
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is(tmp_path):
    with pytest.raises(VolsegError, match=r"there is no folder .*; make it first"):
        write_text(tmp_path / "none" / "report.json", "{}")


def test_the_folder_is_flushed_after_the_rename(tmp_path, monkeypatch):
    flushed, original = [], os.fsync

    def fsync(descriptor):
        flushed.append((os.fstat(descriptor).st_ino, (tmp_path / "report.json").exists()))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "report.json", "{}")
    assert flushed[-1] == (tmp_path.stat().st_ino, True)


def test_a_file_can_be_read_by_whom_the_umask_lets_read(tmp_path):
    """Also where its writer makes one of its own that nobody else can read, as that of safetensors does."""
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "weights") as temporary:
            own = tmp_path / "own"
            own.touch(0o600)
            os.replace(own, temporary)
        write_text(tmp_path / "report.json", "{}")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [0o640, 0o640]


def wrap(first, second):
    """Raise `second` while `first` is handled, as libraries do."""
    try:
        raise first
    except OSError:
        raise second  # noqa: B904


def test_a_library_s_own_error_is_the_system_s(tmp_path):
    """As safetensors has it, which is written in Rust; and a library that makes another error of it."""
    with pytest.raises(OSError, match=r"weights\.bin") as caught, replacing(tmp_path / "weights.bin"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match=r"mask\.nii") as caught, replacing(tmp_path / "mask.nii"):
        wrap(OSError(errno.EDQUOT, "Disk quota exceeded"), ValueError("could not write the header"))
    assert caught.value.errno == errno.EDQUOT
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_ours_stays_one(tmp_path):
    with pytest.raises(KeyError, match="colour"), replacing(tmp_path / "a.png"):
        wrap(FileNotFoundError(errno.ENOENT, "No such file", "cache"), KeyError("colour"))
    assert system_error(None) is None


def test_only_our_own_leftovers_are_removed(tmp_path):
    for name in (
        ".weights.4711.partial.safetensors",
        ".log.12.partial",
        ".film.partial.mp4",
        ".a.b.partial~",
        "x.1.partial",
    ):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".film.partial.mp4", ".a.b.partial~", "x.1.partial"}


def test_any_name_can_be_written():
    path = "größe".encode().decode("ascii", "surrogateescape")  # as Python has it where the locale is ASCII
    assert utf8(path) == "größe".encode()
    assert utf8(b"gr\xf6".decode("utf-8", "surrogateescape")) == rb"gr\xf6"
    assert utf8("\ud800") == rb"\ud800"
