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


def test_slabs_inflate_the_file_once(tmp_path):
    array = values("i2", (8, 8, 30))
    volume = open_volume(saved(tmp_path, array, "scan.nii.gz"))
    slabs = list(volume.slabs(4))
    assert volume.contents.inflated == 352 + array.nbytes
    assert [box.start[0] for box, _ in slabs] == list(range(0, 30, 4))
    np.testing.assert_array_equal(np.concatenate([a for _, a in slabs]), array.T)


def test_parts_of_planes_in_rising_order_inflate_once_too(tmp_path):
    """As ranks read their blocks: rows and columns of some slices, then of the next."""
    array = values("i2", (8, 12, 30))
    volume = open_volume(saved(tmp_path, array, "scan.nii.gz"))
    for start in range(0, 30, 5):
        box = Box((start, 3, 2), (start + 5, 9, 7))
        np.testing.assert_array_equal(volume.read(box), array.T[box.slices])
    assert volume.contents.inflated <= 352 + array.nbytes


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
@pytest.mark.parametrize("content", [b"", b"no image", bytes(1000), gzip.compress(b"no image", mtime=0)])
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


READ = {  # file: warnings
    "anatomical.nii": [],
    "reoriented_anat_moved.nii": [],
    "resampled_anat_moved.nii": [],
    "standard.nii.gz": [],
}
REFUSED = {
    "analyze.hdr": r"an Analyze 7\.5 image, not NIfTI; it cannot say which side is left",
    "example4d.nii.gz": r"a 4-D image \(128x96x24x2\) of 2 volumes",
    "example_nifti2.nii.gz": r"a 4-D image \(32x20x12x2\) of 2 volumes",
    "functional.nii": r"a 4-D image \(17x21x3x20\) of 20 volumes",
    "nifti1.hdr": r"its other half, nifti1\.img, is missing",
    "nifti2.hdr": r"its other half, nifti2\.img, is missing",
    "row_major.dconn.nii": "a CIFTI-2 file, which holds no volume",
}


def test_every_file_that_nibabel_brings_has_its_row():
    found = {path.name for path in NIBABEL_DATA.iterdir() if path.name.endswith((".nii", ".nii.gz", ".hdr", ".img"))}
    assert found <= READ.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", READ)
def test_nibabels_files_read_as_nibabel_reads_them(name):
    volume, ours = read(NIBABEL_DATA / name)
    image = nib.load(NIBABEL_DATA / name)
    np.testing.assert_allclose(ours, image.get_fdata().T, rtol=1e-6)
    np.testing.assert_array_equal(volume.space.affine, image.affine)
    assert list(volume.audit.warnings) == READ[name]
    assert volume.audit.inputs == (NIBABEL_DATA / name,)


@pytest.mark.parametrize("name", REFUSED)
def test_nibabels_files_that_are_refused(name):
    with pytest.raises(VolumeError, match=REFUSED[name]):
        open_volume(NIBABEL_DATA / name)


@pytest.mark.parametrize("name", ["example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"])
def test_one_volume_of_nibabels_four_dimensional_files(tmp_path, name):
    """NIfTI-2, a slope, and qform and sform that differ by rounding, in the 3-D form that volseg asks for."""
    image = nib.four_to_three(nib.load(NIBABEL_DATA / name))[0]
    nib.save(image, tmp_path / "one.nii.gz")
    volume, ours = read(tmp_path / "one.nii.gz")
    expected = nib.load(tmp_path / "one.nii.gz")
    np.testing.assert_allclose(ours, expected.get_fdata().T, rtol=1e-6)
    np.testing.assert_array_equal(volume.space.affine, expected.affine)
    assert volume.audit.warnings == ()


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


def patched(path, patches):
    """The file with `struct` values packed in: (offset, format, values)."""
    content = bytearray(path.read_bytes())
    for offset, form, *numbers in patches:
        struct.pack_into(form, content, offset, *numbers)
    path.write_bytes(content)
    return path


SFORM_CODE, QFORM_CODE, UNITS, SLOPE, VOX_OFFSET, DIM, PIXDIM = 254, 252, 123, 112, 108, 40, 76


@pytest.mark.parametrize(("slope", "inter"), [(0.0, 0.0), (0.0, 5.0), (float("nan"), 0.0)])
def test_a_slope_that_is_none(tmp_path, slope, inter):
    path = patched(saved(tmp_path, values("i2")), [(SLOPE, "<ff", slope, inter)])
    volume, ours = read(path)
    assert volume.dtype == np.int16
    np.testing.assert_array_equal(ours, values("i2").T)


def test_int64_beyond_float_is_exact(tmp_path):
    array = np.full((3, 4, 5), 2**53 + 1, np.int64)
    np.testing.assert_array_equal(read(saved(tmp_path, array))[1], array.T)


def test_what_precision_is_kept_is_told(tmp_path):
    plain = open_volume(saved(tmp_path, values("f8"), "f8.nii")).audit
    assert ("stored as", "float64") in plain.facts
    assert ("read as", "float32") in plain.facts
    scaled = open_volume(patched(saved(tmp_path, values("i4"), "i4.nii"), [(SLOPE, "<ff", 0.5, 0.0)])).audit
    assert scaled.warnings == ("int32 voxels are scaled by fractions and read as float32, which holds 24 bits",)


def image_with(folder, qform, sform, qcode=1, scode=1):
    image = nib.Nifti1Image(values("i2"), None)
    image.header.set_qform(qform, code=qcode)
    image.header.set_sform(sform, code=scode)
    nib.save(image, folder / "scan.nii")
    return open_volume(folder / "scan.nii")


def moved(by):
    affine = AFFINE.copy()
    affine[0, 3] += by
    return affine


def test_the_sform_is_used_where_both_are_set(tmp_path):
    volume = image_with(tmp_path, moved(3.25), AFFINE)
    np.testing.assert_allclose(volume.space.affine, AFFINE, rtol=1e-6)
    assert volume.audit.warnings == ("sform and qform lie up to 3.25 mm apart; the sform is used",)
    assert ("position from", "sform") in volume.audit.facts


def test_the_qform_is_used_where_the_sform_has_no_code(tmp_path):
    volume = image_with(tmp_path, moved(3.25), AFFINE, scode=0)
    np.testing.assert_allclose(volume.space.affine, moved(3.25), rtol=1e-6)
    assert volume.audit.warnings == ()


def test_forms_that_differ_by_rounding_are_no_matter(tmp_path):
    assert image_with(tmp_path, moved(0.05), AFFINE).audit.warnings == ()


def test_without_either_form_the_orientation_is_a_guess(tmp_path):
    volume = image_with(tmp_path, AFFINE, AFFINE, qcode=0, scode=0)
    np.testing.assert_array_equal(volume.space.affine, nib.load(volume.path).affine)
    (line,) = volume.audit.warnings
    assert line.startswith("neither sform nor qform is set")
    assert "LAS order" in line


def test_pixdim_that_contradicts_the_sform(tmp_path):
    path = patched(saved(tmp_path, values("i2")), [(PIXDIM + 12, "<f", 5.0), (QFORM_CODE, "<h", 0)])
    volume = open_volume(path)
    assert volume.space.spacing == pytest.approx((2.5, 0.7, 0.7))
    assert volume.audit.warnings == (
        "pixdim says voxels of 0.7x0.7x5, the sform 0.7x0.7x2.5 (i, j, k); the sform is used",
    )


def test_a_damaged_qform_beside_a_sform(tmp_path):
    path = patched(saved(tmp_path, values("i2")), [(QFORM_CODE, "<h", 1), (256, "<fff", 2.0, 2.0, 2.0)])
    assert open_volume(path).audit.warnings == ("the qform is damaged; the sform is used",)


@pytest.mark.parametrize(("code", "name", "factor"), [(1, "metres", 1000), (3, "microns", 1e-3)])
def test_other_units_become_millimetres(tmp_path, code, name, factor):
    volume = open_volume(patched(saved(tmp_path, values("i2")), [(UNITS, "<B", code + 8)]))
    np.testing.assert_allclose(volume.space.affine[:3], AFFINE[:3] * factor, rtol=1e-6)
    (line,) = volume.audit.warnings
    assert line.startswith(f"the header is in {name}; converted to mm")


@pytest.mark.parametrize("code", [0, 2, 5])
def test_unknown_units_are_millimetres(tmp_path, code):
    volume = open_volume(patched(saved(tmp_path, values("i2")), [(UNITS, "<B", code)]))
    np.testing.assert_allclose(volume.space.affine, AFFINE, rtol=1e-6)
    assert [line[-20:] for line in volume.audit.warnings] == (["code 5; taken to be mm"[-20:]] if code == 5 else [])


@pytest.mark.parametrize("name", ["long.nii", "long.nii.gz"])
def test_a_side_beyond_nifti_1(tmp_path, name):
    array = (np.arange(40_000 * 2 * 3) % 1000).astype("i2").reshape(40_000, 2, 3)
    path = saved(tmp_path, array, name, kind=nib.Nifti2Image)
    volume, ours = read(path)
    assert volume.shape == (3, 2, 40_000)
    np.testing.assert_array_equal(ours, array.T)


@pytest.mark.parametrize("half", ["scan.hdr", "scan.img"])
def test_a_pair_names_both_its_files(tmp_path, half):
    saved(tmp_path, values("i2"), "scan.img", kind=nib.Nifti1Pair)
    assert open_volume(tmp_path / half).audit.inputs == (tmp_path / "scan.hdr", tmp_path / "scan.img")


def test_analyze_is_refused_with_both_halves(tmp_path):
    nib.save(nib.AnalyzeImage(values("i2"), AFFINE), tmp_path / "old.img")
    with pytest.raises(VolumeError, match=r"Analyze 7\.5"):
        open_volume(tmp_path / "old.hdr")


@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_promises_more_than_the_file_can_hold(tmp_path, packed):
    path = patched(saved(tmp_path, values("i2")), [(DIM, "<4h", 3, 32767, 32767, 32767)])
    if packed:
        (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / "scan.nii.gz"
    with pytest.raises(VolumeError, match=r"truncated: \d+ bytes, its header promises 703"):
        open_volume(path)


def test_an_offset_far_away_takes_no_memory(tmp_path):
    path = patched(saved(tmp_path, np.zeros((3, 4, 5), "i2")), [(VOX_OFFSET, "<f", 1e6)])
    (tmp_path / "far.nii.gz").write_bytes(gzip.compress(path.read_bytes() + bytes(2_000_000)))
    volume, ours = read(tmp_path / "far.nii.gz")
    assert not ours.any()
    assert volume.contents.inflated > 1_000_000


def test_an_extension_that_claims_gigabytes_is_not_read(tmp_path):
    content = bytearray(saved(tmp_path, values("i2")).read_bytes())
    extension = struct.pack("<4B2i", 1, 0, 0, 0, 2**31 - 16, 6)
    struct.pack_into("<f", content, VOX_OFFSET, 368.0)
    (tmp_path / "claims.nii").write_bytes(content[:348] + extension + bytes(8) + content[352:])
    np.testing.assert_array_equal(read(tmp_path / "claims.nii")[1], values("i2").T)


def test_a_gz_that_never_ends_is_left(tmp_path):
    path = saved(tmp_path, values("i2"))
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(path.read_bytes() + bytes(200 << 20), 9))
    with pytest.raises(VolumeError, match="goes on for more than 16 MiB"):
        read(tmp_path / "bomb.nii.gz")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("form", ["qform", "none", "sform"])
@pytest.mark.parametrize(("size", "refused"), [(0.0, True), (np.nan, True), (-2.5, False)])
def test_voxel_sizes_that_are_none(tmp_path, kind, form, size, refused, capfd):
    image = kind(values("i2").T, np.diag([0.7, 0.7, 2.5, 1.0]))
    image.set_qform(image.affine, code=int(form == "qform"))
    image.set_sform(image.affine, code=int(form == "sform"))
    path = tmp_path / "scan.nii"
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    at, number = (76 + 12, "<f4") if kind is nib.Nifti1Image else (104 + 24, "<f8")
    raw[at : at + int(number[-1])] = np.array(size, number).tobytes()
    path.write_bytes(raw)
    if refused and form != "sform":
        with pytest.raises(VolumeError, match=r"voxels of 0\.7x0\.7x(0|nan) mm \(pixdim.*fslchpixdim"):
            open_volume(path)
    else:
        volume = open_volume(path)
        assert volume.space.spacing == pytest.approx((2.5, 0.7, 0.7))
        assert any("pixdim says voxels of 0.7x0.7x" in text for text in volume.audit.warnings) or form == "sform"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("offset", [0, 8, 348, 350])
def test_voxels_do_not_begin_within_the_header(tmp_path, name, offset, capfd):
    """As nifti1_io reads it: behind the header, whatever vox_offset says."""
    voxels = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    image = bytearray(nib.Nifti1Image(voxels.T, np.diag([2, 3, 4, 1])).to_bytes())
    image[108:112] = np.float32(offset).tobytes()
    (tmp_path / name).write_bytes(gzip.compress(image) if name.endswith(".gz") else image)
    volume = open_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), volume.shape)), voxels)
    assert any(f"vox_offset is {offset}, within the header" in line for line in volume.audit.warnings)
    assert capfd.readouterr() == ("", "")


def test_a_vox_offset_that_is_no_number_is_refused(tmp_path, capfd):
    image = bytearray(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)).to_bytes())
    image[108:112] = np.float32(np.nan).tobytes()
    (tmp_path / "v.nii").write_bytes(image)
    with pytest.raises(VolumeError, match="vox_offset"):
        open_volume(tmp_path / "v.nii")
    assert capfd.readouterr() == ("", "")
