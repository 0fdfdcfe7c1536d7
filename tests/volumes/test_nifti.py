"""Reading NIfTI against nibabel: every dtype, scaling, byte order and layout, and files that are no good."""

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.reading import open_volume

NIBABEL_DATA = Path(nib.__file__).parent / "tests" / "data"
AFFINE = np.array([[-0.7, 0, 0, 90], [0, 0.7, 0, -126], [0, 0, 2.5, -72], [0, 0, 0, 1.0]])


def values(dtype, shape=(7, 6, 5)):
    rng = np.random.default_rng(1)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype.newbyteorder("="), endpoint=True).astype(dtype)


def saved(folder, array, name="scan.nii", affine=AFFINE, kind=nib.Nifti1Image, slope=None, inter=None, order="<"):
    header = kind.header_class(endianness=order)
    header.set_data_dtype(array.dtype.newbyteorder(order))
    image = kind(array, affine, header)
    if slope is not None:
        image.header.set_slope_inter(slope, inter)
    nib.save(image, folder / name)
    return folder / name


def read(path):
    volume = open_volume(path)
    array = volume.read(Box.whole(volume.shape))
    assert array.dtype == volume.dtype
    assert array.flags.c_contiguous
    return volume, array


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.img", "scan.hdr"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_reads_every_dtype_as_nibabel_does(tmp_path, dtype, order, name):
    array = values(dtype)
    kind = nib.Nifti1Image if name.startswith("scan.nii") else nib.Nifti1Pair
    path = saved(tmp_path, array, name, order=order, kind=kind)
    volume, ours = read(path)
    assert volume.dtype == (np.float32 if array.dtype.kind == "f" else array.dtype)
    np.testing.assert_array_equal(ours, np.asarray(nib.load(path).dataobj).T.astype(volume.dtype))
    np.testing.assert_allclose(volume.space.affine, AFFINE, rtol=1e-6)
    assert volume.space.spacing == pytest.approx((2.5, 0.7, 0.7))


def test_reads_nifti2(tmp_path):
    path = saved(tmp_path, values("i2"), kind=nib.Nifti2Image)
    np.testing.assert_array_equal(read(path)[1], values("i2").T)


@pytest.mark.parametrize(
    ("raw", "slope", "inter", "expected"),
    [
        ("u1", 1.0, -128.0, np.int16),
        ("u1", 3.0, 7.0, np.int16),
        ("i2", 1.0, -1024.0, np.int32),
        ("u2", 2.0, -1024.0, np.int32),
        ("i4", 1.0, -1024.0, np.int64),
        ("i2", 0.5, 0.0, np.float32),
        ("i2", 1.0, 0.25, np.float32),
        ("f4", 2.0, 1.0, np.float32),
    ],
)
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_scaling_is_exact_where_integers_hold_it(tmp_path, raw, slope, inter, expected, name):
    path = saved(tmp_path, values(raw), name)
    content = bytearray(gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes())
    struct.pack_into("<ff", content, 112, slope, inter)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    volume, ours = read(path)
    assert volume.dtype == expected
    np.testing.assert_allclose(ours, values(raw).T.astype(np.float64) * slope + inter, rtol=1e-6)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_any_boxes_in_any_order(tmp_path, name, data):
    array = values("i2", (9, 8, 7))
    path = tmp_path / name
    if not path.exists():
        saved(tmp_path, array, name)
    volume = open_volume(path)
    for _ in range(3):
        ends = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in volume.shape]
        box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
        np.testing.assert_array_equal(volume.read(box), array.T[box.slices])


def test_slabs_inflate_the_file_once(tmp_path, monkeypatch):
    volume = open_volume(saved(tmp_path, values("i2", (8, 8, 30)), "scan.nii.gz"))
    opened = []
    real = gzip.GzipFile

    def counting(*arguments, **named):
        opened.append(1)
        return real(*arguments, **named)

    monkeypatch.setattr(gzip, "GzipFile", counting)
    slabs = list(volume.slabs(4))
    assert len(opened) == 1
    assert [box.start[0] for box, _ in slabs] == list(range(0, 30, 4))
    np.testing.assert_array_equal(np.concatenate([a for _, a in slabs]), values("i2", (8, 8, 30)).T)


def test_trailing_axes_of_one_are_dropped(tmp_path):
    path = saved(tmp_path, values("i2").reshape(7, 6, 5, 1, 1))
    np.testing.assert_array_equal(read(path)[1], values("i2").T)


@pytest.mark.parametrize(("shape", "word"), [((4, 5), "2-D"), ((4, 5, 3, 2), "4-D"), ((4, 5, 3, 1, 2), "5-D")])
def test_refuses_other_dimensions(tmp_path, shape, word):
    path = saved(tmp_path, values("i2", shape))
    with pytest.raises(VolumeError, match=f"{word} image"):
        open_volume(path)


def test_refuses_colours_and_complex(tmp_path):
    colours = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for array, word in ((colours, "RGB"), (np.zeros((3, 4, 5), "c8"), "complex")):
        with pytest.raises(VolumeError, match=word):
            open_volume(saved(tmp_path, array))


def test_refuses_what_is_not_there(tmp_path):
    with pytest.raises(VolumeError, match=r"nothing\.nii: no such file"):
        open_volume(tmp_path / "nothing.nii")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("content", [b"", b"no image", bytes(1000), gzip.compress(b"no image")])
def test_refuses_what_is_no_nifti(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VolumeError, match="not a readable NIfTI"):
        open_volume(tmp_path / name)


def test_truncated_nii_is_found_before_reading(tmp_path):
    path = saved(tmp_path, values("i2"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VolumeError, match=r"truncated: 771 bytes, its header promises 772"):
        open_volume(path)


def test_truncated_gz_is_found_by_the_read_that_meets_it(tmp_path):
    path = saved(tmp_path, values("i2", (20, 20, 20)), "scan.nii.gz")
    path.write_bytes(path.read_bytes()[:6000])
    volume = open_volume(path)
    volume.read(Box((0, 0, 0), (1, 20, 20)))
    with pytest.raises(VolumeError, match=r"truncated after \d+ of 20 slices"):
        volume.read(Box.whole(volume.shape))


def test_gz_that_ends_well_but_early(tmp_path):
    path = saved(tmp_path, values("i2"), "scan.nii.gz")
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(VolumeError, match="truncated after 4 of 5 slices"):
        read(path)


def test_gz_with_a_flipped_bit(tmp_path):
    path = saved(tmp_path, np.zeros((30, 30, 30), "i2"), "scan.nii.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum
    path.write_bytes(content)
    with pytest.raises(VolumeError, match="damaged"):
        read(path)


def test_refuses_an_affine_without_volume(tmp_path):
    path = saved(tmp_path, values("i2"))
    content = bytearray(path.read_bytes())
    struct.pack_into("<4f", content, 296, 0, 0, 0, 0)  # the second row of the sform
    path.write_bytes(content)
    with pytest.raises(VolumeError, match="maps no voxel grid"):
        open_volume(path)


@pytest.mark.parametrize("name", ["anatomical.nii", "standard.nii.gz", "reoriented_anat_moved.nii"])
def test_nibabels_own_files(name):
    volume, ours = read(NIBABEL_DATA / name)
    image = nib.load(NIBABEL_DATA / name)
    np.testing.assert_allclose(ours, image.get_fdata().T, rtol=1e-6)
    np.testing.assert_array_equal(volume.space.affine, image.affine)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("functional.nii", "4-D"),
        ("example4d.nii.gz", "4-D"),
        ("example_nifti2.nii.gz", "4-D"),
        ("analyze.hdr", "not NIfTI|not a readable"),
        ("nifti2.hdr", "other half, nifti2.img, is missing"),
    ],
)
def test_nibabels_own_files_that_are_refused(name, word):
    with pytest.raises(VolumeError, match=word):
        open_volume(NIBABEL_DATA / name)


def test_real_ct(data):
    path = data / "abdomen_ct" / "ct.nii.gz"
    volume, ours = read(path)
    assert volume.shape == (112, 101, 122)
    np.testing.assert_array_equal(ours, np.asarray(nib.load(path).dataobj).T)


def test_other_files_are_refused_with_a_remedy(tmp_path):
    (tmp_path / "scan.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(VolumeError, match="unpack it"):
        open_volume(tmp_path / "scan.zip")
    (tmp_path / "scan.png").write_bytes(b"\x89PNG")
    with pytest.raises(VolumeError, match=r"give \.nii"):
        open_volume(tmp_path / "scan.png")
