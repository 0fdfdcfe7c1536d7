"""What can refuse an output refuses before the work: room, names, limits, what is there already."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from volseg.distributed.communicator import SerialCommunicator
from volseg.errors import VolumeError
from volseg.segmentation.job import SegmentationJob, mask_path
from volseg.volumes import trial
from volseg.volumes.generation import Recipe, generate_dataset
from volseg.volumes.label_table import LabelTable
from volseg.volumes.output import Content
from volseg.volumes.trial import try_place
from volseg.volumes.volume import Space
from volseg.volumes.writing import Intended, check_output, check_small_output, rehearse, write_volume

LABELS = LabelTable({"background": 0, "liver": 1})


def content(shape=(10, 20, 30), dtype="i2", **named):
    return Content(Space(shape, np.eye(4)), np.dtype(dtype), **named)


def free(monkeypatch, size):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 0, size))


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz", "m.zarr"])
def test_room_is_looked_for_and_both_numbers_are_said(tmp_path, monkeypatch, name):
    free(monkeypatch, 100)
    with pytest.raises(VolumeError, match=r"about .* will be needed, and the disk of .* has 100 bytes free; free some"):
        rehearse([Intended(tmp_path / name, content())], False)
    free(monkeypatch, 20_000)
    rehearse([Intended(tmp_path / name, content())] if name != "m.nii" else [], False)
    assert list(tmp_path.iterdir()) == []


def test_all_outputs_of_a_disk_count_together(tmp_path, monkeypatch):
    volumes = [Intended(tmp_path / f"{n}.nii", content()) for n in "ab"]
    free(monkeypatch, 20_000)  # one takes 12 kB
    with pytest.raises(VolumeError, match=r"a\.nii and 1 more: about 24\.1 KiB"):
        rehearse(volumes, False)
    rehearse(volumes[:1], False)
    with pytest.raises(VolumeError, match="and 1 more"):
        rehearse(volumes[:1], False, {tmp_path / "m_state": 10_000})


@pytest.mark.parametrize("check", [check_output, check_small_output])
def test_a_name_too_long_for_the_disk(tmp_path, check):
    with pytest.raises(VolumeError, match=r"a name of 256 bytes is too long for .*; give a shorter one"):
        check(tmp_path / ("ü" * 124 + "x" + ".nii.gz"))
    check(tmp_path / ("ü" * 100 + ".nii.gz"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.EROFS, "a disk that can only be read; choose another"),
        (errno.EDQUOT, "12.0 KiB will be needed, and .* has no room"),
        (errno.EFBIG, "takes no file of 12.0 KiB"),
        (errno.EACCES, "is not writable; choose another"),
        (errno.EIO, "cannot be written .*; choose another folder"),
    ],
)
def test_what_only_the_file_system_knows(tmp_path, monkeypatch, number, word):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(trial.os, "ftruncate", refuse)
    with pytest.raises(VolumeError, match=word):
        try_place(tmp_path / "m.nii", 12 << 10)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path):
    (tmp_path / "m.nii").write_text("precious")
    rehearse([Intended(tmp_path / "m.nii", content())], True)
    assert (tmp_path / "m.nii").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_label_on_another_grid_than_its_store_is_refused_before_the_work(tmp_path):
    space = Space((4, 5, 6), np.eye(4))
    write_volume(tmp_path / "s.zarr", space, "i2", lambda units: np.zeros(units[0].box.shape, "i2"),
                 SerialCommunicator())  # fmt: skip
    label = tmp_path / "s.zarr" / "labels" / "liver"
    rehearse([Intended(label, Content(space, np.dtype("u1"), labels=LABELS))], False)
    with pytest.raises(VolumeError, match="not on the grid of the image"):
        rehearse([Intended(label, content(dtype="u1", labels=LABELS))], False)


def test_an_axis_too_long_for_nifti_1_is_said(tmp_path):
    said = rehearse([Intended(tmp_path / "m.nii.gz", content((1, 2, 40_000)))], False)
    assert "NIfTI-2" in said[0]
    assert "40000" in said[0]


def test_a_data_set_too_large_for_the_disk(tmp_path, monkeypatch):
    free(monkeypatch, 1 << 20)
    with pytest.raises(VolumeError, match="will be needed, and the disk"):
        generate_dataset(tmp_path / "new" / "set", Recipe((100, 100, 100), 8), SerialCommunicator())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scan", "output", "mask"),
    [
        ("in/case_0_0000.nii.gz", "out", "out/case_0.nii.gz"),
        ("in/SCAN.NII.GZ", "out", "out/SCAN.nii.gz"),
        ("in/SCAN.NII.GZ", None, "in/SCAN_mask.nii.gz"),
        ("in/a.Nii", None, "in/a_mask.nii.gz"),
        ("in/a.ZIP", None, "in/a_mask.nii.gz"),
        ("in/a.nii", "in", "in/a_mask.nii.gz"),
        ("in/a.nii", "out/b.nii", "out/b.nii"),
        ("in/a.nii", "d.nii", "d.nii"),
    ],
)
def test_where_the_mask_goes(tmp_path, monkeypatch, scan, output, mask):
    monkeypatch.chdir(tmp_path)
    for folder in ("in", "out", "d.nii"):
        (tmp_path / folder).mkdir()
    job = SegmentationJob(Path(scan), Path("run"), None if output is None else Path(output))
    assert mask_path(job).absolute() == tmp_path / mask
