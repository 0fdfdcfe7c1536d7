"""Small files: whole or not at all, and whose fault a failure is."""

import errno
import os

import pytest

from volseg.errors import VolsegError
from volseg.files import replacing, write_text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_or_failing_disk_is_no_fault_of_the_user(tmp_path, monkeypatch, number):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"report\.json") as caught:
        write_text(tmp_path / "report.json", "{}")
    assert caught.value.errno == number
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is(tmp_path):
    with pytest.raises(VolsegError, match="choose a folder you can write to"):
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
