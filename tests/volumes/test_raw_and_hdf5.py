"""Raw voxels, which a user describes, and data sets of HDF5 files."""

import sys
from pathlib import Path

import numpy as np
import pytest

from volseg.api import info
from volseg.errors import ConfigError, VolumeError
from volseg.geometry import Box
from volseg.segmentation.job import SegmentationJob, mask_path
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.reading import open_volume

SHAPE = (5, 7, 6)
BOX = Box((1, 2, 3), (4, 7, 6))
SIZE = OpenOptions(voxel_size=(3.0, 2.0, 1.0))


def voxels(dtype="u2"):
    return np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)


def raw(shape=SHAPE, dtype="uint16"):
    return OpenOptions(voxel_size=(3.0, 2.0, 1.0), shape=shape, dtype=dtype)


@pytest.mark.parametrize("name", ["scan.raw", "scan_5x7x6", "scan.vol"])
def test_raw_voxels_as_they_are_described(tmp_path, name):
    (tmp_path / name).write_bytes(voxels().astype("<u2").tobytes())
    volume = open_volume(tmp_path / name, raw())
    np.testing.assert_array_equal(volume.read(BOX), voxels()[BOX.slices])
    assert volume.space.spacing == (3, 2, 1)
    (tmp_path / name).write_bytes(voxels("f4").astype(">f4").tobytes())
    np.testing.assert_array_equal(open_volume(tmp_path / name, raw(dtype=">f4")).read(BOX), voxels("f4")[BOX.slices])


def test_raw_voxels_that_are_not_described(tmp_path):
    path = tmp_path / "scan.raw"
    path.write_bytes(voxels().tobytes())
    assert info(path, shape="5x7x6", dtype="uint16", voxel_size="0.05")["maximum"] == voxels().max()
    for options, words in (
        ({}, "give --shape D x H x W: --shape 512x512x512 --dtype uint16 --voxel-size 0.05"),
        ({"shape": "5x7x6"}, "give --dtype, such as uint16"),
        ({"shape": "5x7x6", "dtype": "uint16"}, "give --voxel-size"),
        ({"shape": "5x7x6", "dtype": "uint8", "voxel_size": "1"}, "420 bytes, but 5x7x6 voxels of uint8 are 210"),
        ({"shape": "5x7x6", "dtype": "complex64", "voxel_size": "1"}, "no type of numbers"),
        ({"shape": "5x7x6", "dtype": "no such", "voxel_size": "1"}, "no type of numbers"),
    ):
        with pytest.raises(VolumeError, match=words):
            info(path, **options)
    with pytest.raises(ConfigError, match="--shape 5x7"):
        info(path, shape="5x7", dtype="u1")
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n")
    with pytest.raises(VolumeError, match="--shape and --dtype are for raw voxels"):
        info(tmp_path / "a.nrrd", shape="5x7x6")


@pytest.fixture
def stored(tmp_path):
    h5py = pytest.importorskip("h5py")

    def write(name="a.h5", attribute=(3, 2, 1), **arrays):
        with h5py.File(tmp_path / name, "w") as file:
            for place, array in arrays.items():
                data = file.create_dataset(
                    place.replace("__", "/"), data=array, chunks=tuple(min(n, 4) for n in array.shape), compression=1
                )
                if attribute is not None:
                    data.attrs["element_size_um"] = attribute
        return tmp_path / name

    return write


def test_a_data_set_box_by_box(stored):
    path = stored(exported__data=voxels())
    for named in (path, f"{path}:/exported/data", f"{path}:exported/data"):
        volume = open_volume(named)
        np.testing.assert_array_equal(volume.read(BOX), voxels()[BOX.slices])
        volume.close()
        np.testing.assert_array_equal(volume.read(Box.whole(SHAPE)), voxels())
        np.testing.assert_allclose(volume.space.spacing, (0.003, 0.002, 0.001))
        assert volume.audit.inputs == (path,)
    strange = path.rename(path.with_name("strange"))
    np.testing.assert_array_equal(open_volume(strange).read(BOX), voxels()[BOX.slices])


def test_several_data_sets_and_none(stored):
    path = stored(attribute=None, raw=voxels(), labels=voxels("u1")[..., None], line=np.zeros(5))
    with pytest.raises(VolumeError, match=r"holds 2 arrays; give one of \S*a\.h5:/labels, \S*a\.h5:/raw"):
        open_volume(path)
    with pytest.raises(VolumeError, match=r"no array /other; give one of"):
        open_volume(f"{path}:/other", SIZE)
    with pytest.raises(VolumeError, match="give --voxel-size"):
        open_volume(f"{path}:/labels")
    np.testing.assert_array_equal(open_volume(f"{path}:/labels", SIZE).read(BOX), voxels("u1")[BOX.slices])
    with pytest.raises(VolumeError, match="an array of 5; volseg reads one volume of 3 axes"):
        open_volume(f"{path}:/line", SIZE)
    with pytest.raises(VolumeError, match="holds no array of three axes"):
        open_volume(stored("b.h5", line=np.zeros(5)))
    minc = stored("scan.mnc", **{"minc-2.0__image": voxels()})
    with pytest.raises(VolumeError, match=r"MINC, .*convert it with: mnc2nii"):
        open_volume(minc)
    with pytest.raises(VolumeError, match="no such file"):
        open_volume(f"{path.with_name('c.h5')}:/x")


def test_the_mask_of_a_data_set_lies_beside_its_file(stored, tmp_path):
    path = stored(exported__data=voxels())
    assert mask_path(SegmentationJob(Path(f"{path}:/exported/data"), tmp_path)) == tmp_path / "a_mask.nii.gz"


def test_damaged_files(stored, tmp_path):
    whole = stored(data=voxels()).read_bytes()
    for size in (len(whole) - 200, 600, 100):
        (tmp_path / "a.h5").write_bytes(whole[:size])
        with pytest.raises(VolumeError, match=r"a\.h5(:/data)?: (not a readable HDF5 file|damaged)"):
            open_volume(tmp_path / "a.h5").read(Box.whole(SHAPE))
    (tmp_path / "b.h5").write_bytes(b"<html>404")
    with pytest.raises(VolumeError, match="not a readable HDF5 file but a web page"):
        open_volume(tmp_path / "b.h5")


def test_without_h5py_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(VolumeError, match=r"HDF5 needs h5py, which is not installed: pip install 'volseg\[hdf5\]'"):
        open_volume(tmp_path / "a.h5")
