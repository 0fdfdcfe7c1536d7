"""Files that are no volume, or have another's name: what they are, and a remedy that works."""

import bz2
import gzip
import io
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dicom_files import save, series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.mask_source import open_labels
from volseg.volumes.reading import open_volume

VOXELS = np.arange(120, dtype=np.int16).reshape(4, 5, 6)  # D, H, W


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "ct.nii"
    nib.save(nib.Nifti1Image(VOXELS.T, np.diag([0.7, 0.8, 2.5, 1])), path)
    return path.read_bytes()


def voxels(path):
    volume = open_volume(path)
    return volume, volume.read(Box.whole(volume.shape))


@pytest.mark.parametrize(
    ("name", "packed", "word"),
    [
        ("ct.nii.gz", False, "not compressed.*rename it ct.nii$"),
        ("ct.nii", True, "gzip.*rename it ct.nii.gz"),
        ("ct.NII.GZ", True, None),
        ("ct.gz", True, None),
        ("ct.nii.gz.part", True, "gzip"),
        ("ct", False, None),
    ],
)
def test_nifti_is_told_by_its_contents(tmp_path, plain, name, packed, word):
    (tmp_path / name).write_bytes(gzip.compress(plain) if packed else plain)
    volume, values = voxels(tmp_path / name)
    np.testing.assert_array_equal(values, VOXELS)
    assert re.search(word, volume.audit.warnings[0]) if word else volume.audit.warnings == ()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", r"empty \(0 bytes\); copy or download"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345678\n",
            r"LFS.*12,345,678.*git lfs pull",
        ),
        (b"/annex/objects/MD5E-s123--abc.nii.gz\n", "git annex get"),
        (b"\n<!DOCTYPE html><html>404 Not Found</html>", "a web page.*download"),
        (b"\xef\xbb\xbf<HTML><body>login", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (b'{"message": "Not Found"}', "text, which begins .*Not Found"),
        (bytes(5000), "zeros"),
        (gzip.compress(b"<html>", mtime=0), "gzip of what is a web page"),
        (b"\x1f\x8b", "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (bytes(128) + b"DICM" + bytes(50), "a DICOM file"),
        (b"\x93NUMPY\x01\0", "NumPy"),
    ],
)
def test_what_it_is_under_the_name_of_nifti(tmp_path, content, word):
    for name in ("ct.nii.gz", "ct.nii"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VolumeError, match=word) as raised:
            open_volume(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_a_file_that_was_cut(tmp_path, plain):
    for name, content in (("a.nii.gz", gzip.compress(plain)[:-60]), ("b.nii", plain[:-60]), ("c.nii", plain[:200])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VolumeError, match="copy or download it again"):
            voxels(tmp_path / name)


def remedy(path, opener=open_volume):
    """The command that the message gives, run; the file that it made."""
    before = set(path.parent.iterdir())
    with pytest.raises(VolumeError) as raised:
        opener(path)
    command = re.search(r"(?:unpack it|unpack it once|convert it(?: \(.*?\))?): (.*)$", str(raised.value))[1]
    program = command.split()[0]
    if shutil.which(program) is None and program != "python":
        pytest.skip(f"no {program}")
    command = re.sub("^python", sys.executable, command)
    subprocess.run(command, shell=True, check=True, cwd=path.parent, capture_output=True)
    made = set(path.parent.rglob("*.nii*")) - before - {path}
    return next(iter(made))


def zipped(plain):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("inside/ct_of_zip.nii", plain)
    return file.getvalue()


def tarred(plain):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("ct_of_tar.nii")
        member.size = len(plain)
        archive.addfile(member, io.BytesIO(plain))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("twice.nii.gz", lambda plain: gzip.compress(gzip.compress(plain))),
        ("ct.nii.bz2", bz2.compress),
        ("ct.nii.gz", bz2.compress),
        ("ct.nii.xz", lambda plain: lzma.compress(plain)),
        ("my scan.nii.gz", zipped),
        ("ct.nii", tarred),
    ],
)
def test_the_command_unpacks_it(tmp_path, plain, name, pack):
    (tmp_path / name).write_bytes(pack(plain))
    np.testing.assert_array_equal(voxels(remedy(tmp_path / name))[1], VOXELS)


@pytest.mark.parametrize("name", ["a b.mgz", "ct.mgh"])
def test_the_command_converts_it(tmp_path, plain, name):
    (tmp_path / "source.nii").write_bytes(plain)
    nib.save(nib.MGHImage.from_image(nib.load(tmp_path / "source.nii")), tmp_path / name)
    if shutil.which("nib-convert") is None:
        pytest.skip("no nib-convert")
    (tmp_path / "source.nii").rename(tmp_path / "source")
    volume, values = voxels(remedy(tmp_path / name))
    np.testing.assert_array_equal(values, VOXELS)
    np.testing.assert_allclose(volume.space.spacing, (2.5, 0.8, 0.7), rtol=1e-6)


def test_labels_of_another_format_are_named_too(tmp_path, plain):
    (tmp_path / "ct.nii").write_bytes(plain)
    (tmp_path / "seg.gipl").write_bytes(b"\x93NUMPY\x01\0")
    with pytest.raises(VolumeError, match="a NumPy array"):
        open_labels(tmp_path / "seg.gipl", open_volume(tmp_path / "ct.nii"))


def test_dicom_is_not_taken_for_anything_else(tmp_path):
    save(series_datasets(stored_values((3, 8, 10))), tmp_path / "s")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for file in (tmp_path / "s").iterdir():
            archive.write(file, file.name)
    assert open_volume(tmp_path / "s.zip").shape == (3, 8, 10)


def test_links_to_nowhere(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to(".git/annex/objects/x")
    with pytest.raises(VolumeError, match=r"a link to \.git/annex/objects/x, which is not there; .*git annex get"):
        open_volume(Path(tmp_path / "a.nii.gz"))
