"""Writing volumes: read back by others, the same bytes on any number of ranks, and nothing left of failures."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from volseg.distributed.communicator import SerialCommunicator
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes import planes_output
from volseg.volumes.nifti import output as nifti_output
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Space
from volseg.volumes.writing import check_output, write_volume
from volseg.volumes.zarr import output as zarr_output

SHAPE = (70, 67, 130)
SERIAL = SerialCommunicator()


def turned():
    """An oblique grid."""
    a, b = np.cos(0.3), np.sin(0.3)
    affine = np.array([[-a, 0, b, 10], [0, -1, 0, 20], [b, 0, a, 30], [0, 0, 0, 1.0]]) @ np.diag([0.7, 0.8, 2.5, 1])
    return Space(SHAPE, affine)


def voxels(channels=None, dtype="i2"):
    rng = np.random.default_rng(3)
    shape = SHAPE if channels is None else (channels, *SHAPE)
    return (
        rng.normal(0, 300, shape).astype(dtype)
        if np.dtype(dtype).kind != "u"
        else rng.integers(0, 200, shape).astype(dtype)
    )


def producer(array, communicator):
    def produce(units):
        mine = units[communicator.rank]
        assert len(units) == communicator.size
        if mine is None:
            return None
        return (array if mine.channel is None else array[mine.channel])[mine.box.slices]

    return produce


def write(path, array, communicator=SERIAL, **named):
    channels = array.shape[0] if array.ndim == 4 else None
    write_volume(path, turned(), array.dtype, producer(array, communicator), communicator, channels=channels, **named)
    return path


def digest(path):
    """Of a file, or of all files of a folder and their names."""
    path = Path(path)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        if file.is_file():
            total.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return total.hexdigest()


@pytest.fixture
def shared(tmp_path, communicator):
    """One folder for all ranks."""
    return Path(communicator.broadcast(str(tmp_path)))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "i8", "f4", "f8"])
def test_nibabel_reads_what_is_written(tmp_path, suffix, dtype):
    path = write(tmp_path / f"scan{suffix}", voxels(dtype=dtype))
    image = nib.load(path)
    assert image.get_data_dtype() == np.dtype(dtype)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, voxels(dtype=dtype))
    np.testing.assert_allclose(image.affine, turned().affine, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), turned().affine, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_simpleitk_reads_what_is_written(tmp_path, suffix):
    path = write(tmp_path / f"scan{suffix}", voxels())
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels())
    for index in ((0, 0, 0), (129, 66, 69), (5, 6, 7)):
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        ours = turned().affine @ [*index, 1]
        np.testing.assert_allclose([-left, -posterior, superior], ours[:3], atol=1e-3)


def test_gzip_reads_what_is_written(tmp_path):
    path = write(tmp_path / "scan.nii.gz", voxels())
    plain = write(tmp_path / "scan.nii", voxels())
    assert gzip.decompress(path.read_bytes()) == plain.read_bytes()
    if shutil.which("gzip"):
        assert subprocess.run(["gzip", "-t", str(path)], check=False).returncode == 0


def test_channels_are_last_in_nifti_and_names_are_kept(tmp_path):
    array = voxels(3, "f4")
    path = write(tmp_path / "p.nii.gz", array, names=["background", "liver", "spleen"])
    image = nib.load(path)
    assert image.shape == (*SHAPE[::-1], 3)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, array)
    assert json.loads(image.header.extensions[0].get_content())["channels"] == ["background", "liver", "spleen"]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), array)


def test_a_sheared_affine_has_no_qform(tmp_path):
    sheared = turned().affine.copy()
    sheared[:3, 2] += 0.4 * sheared[:3, 1]
    space = Space((2, 3, 4), sheared)
    write_volume(tmp_path / "s.nii", space, "i2", lambda units: np.ones(units[0].box.shape, "i2"), SERIAL)
    header = nib.load(tmp_path / "s.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(nib.load(tmp_path / "s.nii").affine, sheared, atol=1e-5)


def test_a_long_side_makes_nifti2(tmp_path):
    space = Space((2, 1, 40000), np.eye(4))
    write_volume(tmp_path / "l.nii", space, "u1", lambda units: np.ones(units[0].box.shape, "u1"), SERIAL)
    assert isinstance(nib.load(tmp_path / "l.nii"), nib.Nifti2Image)
    assert open_volume(tmp_path / "l.nii").shape == (2, 1, 40000)


def test_units_tile_the_volume_in_file_order():
    units = planes_output.plane_units((100, 300, 200), np.dtype("i2"), 2)
    assert {unit.channel for unit in units} == {0, 1}
    covered = [(u.channel, d) for u in units for d in range(u.box.start[0], u.box.stop[0])]
    assert covered == [(c, d) for c in (0, 1) for d in range(100)]
    assert max(u.box.size * 2 for u in units) <= planes_output.UNIT_BYTES


def test_booleans_become_bytes_and_floats_are_never_cut_to_integers(tmp_path):
    space = Space((2, 3, 4), np.eye(4))
    write_volume(tmp_path / "b.nii", space, bool, lambda units: np.ones((2, 3, 4), bool), SERIAL)
    assert open_volume(tmp_path / "b.nii").dtype == np.uint8
    with pytest.raises(TypeError, match="same_kind"):
        write_volume(tmp_path / "c.nii", space, "u1", lambda units: np.ones((2, 3, 4), "f4"), SERIAL)
    assert [file.name for file in tmp_path.iterdir()] == ["b.nii"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".zarr"])
def test_an_existing_output_stays_unless_overwritten(tmp_path, suffix):
    path = write(tmp_path / f"scan{suffix}", voxels())
    before = digest(path)
    with pytest.raises(VolumeError, match="exists already; give --overwrite"):
        write(path, voxels() + 1)
    assert digest(path) == before
    write(path, voxels() + 1, overwrite=True)
    np.testing.assert_array_equal(open_volume(path).read(Box.whole(SHAPE)), voxels() + 1)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("scan.mgz", "cannot write that format"),
        (".nii", "cannot write that format"),
        ("missing/scan.nii", "no folder"),
        ("file/scan.nii", "no folder"),
        ("folder.nii", "is a folder"),
        ("folder.zarr", "is no zarr store"),
    ],
)
def test_outputs_that_cannot_be(tmp_path, name, word):
    (tmp_path / "file").write_text("")
    for folder in ("folder.nii", "folder.zarr"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "precious.txt").write_text("")
    with pytest.raises(VolumeError, match=word):
        check_output(tmp_path / name, overwrite=True)
    with pytest.raises(VolumeError, match=word):
        write_volume(tmp_path / name, turned(), "i2", lambda units: pytest.fail("work"), SERIAL, overwrite=True)
    assert (tmp_path / "folder.zarr" / "precious.txt").exists()


def test_an_unwritable_folder_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the root user may write anywhere
    with pytest.raises(VolumeError, match="is not writable"):
        write_volume(tmp_path / "scan.nii", turned(), "i2", lambda units: pytest.fail("work"), SERIAL)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".zarr"])
def test_a_full_disk_leaves_nothing(tmp_path, suffix, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / f"scan{suffix}", voxels())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".zarr"])
@pytest.mark.parametrize("channels", [None, 3])
def test_bytes_are_the_same_on_any_number_of_ranks(shared, communicator, suffix, channels):
    array = voxels(channels, "i2" if channels is None else "f4")
    path = shared / f"scan{suffix}"
    write(path, array, communicator)
    if communicator.is_root:
        assert [file.name for file in shared.iterdir()] == [path.name]
        alone = write(shared / f"alone{suffix}", array)
        if suffix == ".zarr":  # the group's metadata holds its own name
            for store in (path, alone):
                text = (store / "zarr.json").read_text()
                (store / "zarr.json").write_text(text.replace('"alone"', '"scan"'))
        assert digest(path) == digest(alone) if suffix == ".zarr" else path.read_bytes() == alone.read_bytes()
        if suffix != ".zarr":
            np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj).T, array)
            np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), array)
        elif channels is None:
            np.testing.assert_array_equal(open_volume(path).read(Box.whole(SHAPE)), array)
    communicator.barrier()


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".zarr"])
def test_an_error_on_one_rank_is_raised_on_all_and_leaves_nothing(shared, communicator, suffix, monkeypatch):
    monkeypatch.setattr(planes_output, "UNIT_BYTES", 100_000)
    calls = []

    def produce(units):
        calls.append(units)
        if len(calls) == 2 and communicator.rank == communicator.size - 1:
            raise VolumeError("no voxels today")
        mine = units[communicator.rank]
        return None if mine is None else np.zeros(mine.box.shape, "i2")

    with pytest.raises(VolumeError, match="no voxels today"):
        write_volume(shared / f"scan{suffix}", turned(), "i2", produce, communicator)
    communicator.barrier()
    assert list(shared.iterdir()) == []


@pytest.mark.parallel([2])
def test_an_output_that_cannot_be_is_told_on_all_ranks(shared, communicator):
    with pytest.raises(VolumeError, match="no folder"):
        write_volume(shared / "no" / "scan.nii", turned(), "i2", lambda units: pytest.fail("work"), communicator)


@pytest.mark.parallel([2])
@pytest.mark.parametrize("suffix", [".nii", ".zarr"])
def test_an_error_of_opening_on_one_rank_is_raised_on_all(shared, communicator, suffix, monkeypatch):
    def lost(self, temporary):
        raise PermissionError(13, "Permission denied")

    if communicator.rank == 1:
        monkeypatch.setattr(nifti_output.NiftiOutput, "open", lost)
        monkeypatch.setattr(zarr_output.ZarrOutput, "open", lost)
    with pytest.raises(VolumeError, match=r"cannot be written .Permission denied"):
        write(shared / f"scan{suffix}", voxels(), communicator)
    communicator.barrier()
    assert list(shared.iterdir()) == []


@pytest.mark.parallel([2])
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_writing_on_one_rank_is_raised_on_all(shared, communicator, failing, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(planes_output, "UNIT_BYTES", 100_000)
    if communicator.rank == failing:
        monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        write(shared / "scan.nii.gz", voxels(), communicator)
    communicator.barrier()
    assert list(shared.iterdir()) == []


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path, python):
    script = f"""
import os, numpy as np
from volseg.distributed.communicator import SerialCommunicator
from volseg.volumes.volume import Space
from volseg.volumes.writing import write_volume
calls = []
def produce(units):
    calls.append(1)
    if len(calls) == 3:
        os._exit(9)
    return np.ones(units[0].box.shape, "f4")
for suffix in (".nii.gz", ".nii", ".zarr"):
    if os.fork() == 0:
        write_volume({str(tmp_path)!r} + "/scan" + suffix, Space((200, 100, 100), np.eye(4)), "f4", produce,
                     SerialCommunicator())
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 9
"""
    run = python(["-c", script])
    assert run.returncode == 0, run.stderr
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == []
    for suffix in (".nii.gz", ".nii", ".zarr"):
        assert not (tmp_path / f"scan{suffix}").exists()
        write(tmp_path / f"scan{suffix}", voxels())


def test_a_killed_run_s_leftover_of_the_same_process_number_is_no_hindrance(tmp_path):
    (tmp_path / f".scan.nii.{os.getpid()}.part").touch()
    (tmp_path / f".scan.zarr.{os.getpid()}.part").mkdir()
    for suffix in (".nii", ".zarr"):
        write(tmp_path / f"scan{suffix}", voxels())


class Unpicklable(VolumeError):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


@pytest.mark.parallel([2])
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_that_cannot_be_sent_still_reaches_all_ranks(shared, communicator, failing):
    def produce(units):
        if communicator.rank == failing:
            raise Unpicklable("bad", "voxels")
        return None if units[communicator.rank] is None else np.zeros(units[communicator.rank].box.shape, "i2")

    with pytest.raises((Unpicklable, RuntimeError), match="bad voxels"):
        write_volume(shared / "scan.nii", turned(), "i2", produce, communicator)
    communicator.barrier()
    assert list(shared.iterdir()) == []


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_between_messages_ends_the_job_and_leaves_nothing(tmp_path, mpirun, failing):
    """The other rank waits inside `produce` for a message that never comes."""
    script = tmp_path / "script.py"
    folder = tmp_path / "out"
    folder.mkdir()
    script.write_text(f"""
import numpy as np
from volseg.cli.job import job
from volseg.errors import VolumeError
from volseg.volumes.volume import Space
from volseg.volumes.writing import write_volume

with job() as running:
    communicator = running.communicator
    def produce(units):
        if communicator.rank == {failing}:
            raise VolumeError("lost a block")
        communicator.send_receive([], [({failing}, np.zeros(4))])
    write_volume({str(folder / "scan.nii")!r}, Space((8, 8, 8), np.eye(4)), "f4", produce, communicator,
                 produce_communicates=True)
""")
    run = mpirun(2, [script], timeout=30)
    assert run.returncode == 2
    assert "lost a block" in run.stderr
    assert list(folder.iterdir()) == []
