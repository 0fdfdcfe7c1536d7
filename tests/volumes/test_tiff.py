"""TIFF: folders of slices and files of pages as tifffile, ImageJ, OME and SimpleITK have them."""

import io
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from volseg.api import info, ingest
from volseg.errors import ConfigError, VolumeError
from volseg.geometry import Box
from volseg.volumes.image_file import ImageFile, count_channels
from volseg.volumes.mask_source import open_labels
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.reading import open_volume

tifffile = pytest.importorskip("tifffile")
SHAPE = (5, 40, 50)
BOX = Box((1, 13, 7), (4, 35, 41))
SIZE = OpenOptions(voxel_size=(3.0, 2.0, 1.0))


def voxels(dtype="u2", shape=SHAPE):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def same(volume, array):
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), array)
    box = BOX if array.shape == SHAPE else Box((0, 1, 1), (1, 3, 3))
    np.testing.assert_array_equal(volume.read(box), array[box.slices])
    volume.close()
    np.testing.assert_array_equal(volume.read(box), array[box.slices])


@pytest.mark.parametrize(
    "how",
    [
        {}, {"bigtiff": True}, {"byteorder": ">"}, {"rowsperstrip": 7}, {"compression": "zlib"},
        {"compression": "zlib", "predictor": True, "rowsperstrip": 9}, {"tile": (16, 32)},
        {"tile": (16, 16), "compression": "zlib", "byteorder": ">"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_pages_of_a_file(tmp_path, how, dtype):
    if how.get("predictor") and dtype == "f4":
        how = how | {"predictor": False}
    tifffile.imwrite(tmp_path / "a.tif", voxels(dtype), **how)
    volume = open_volume(tmp_path / "a.tif", SIZE)
    assert (volume.dtype, volume.space.spacing) == (np.dtype(dtype), (3, 2, 1))
    same(volume, voxels(dtype))


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4"])
def test_lzw_is_decoded_without_more_libraries(tmp_path, dtype):
    pytest.importorskip("PIL")
    image = sitk.GetImageFromArray(voxels(dtype))
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "a.tif"))
    writer.UseCompressionOn()
    writer.SetCompressor("LZW")
    writer.Execute(image)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].compression == 5
    same(open_volume(tmp_path / "a.tif", SIZE), voxels(dtype))


def test_lzw_with_a_predictor_and_strips(tmp_path):
    from PIL import Image

    image = Image.fromarray(voxels()[0])
    image.save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo={317: 2})
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert (file.pages[0].compression, file.pages[0].predictor) == (5, 2)
    same(open_volume(tmp_path / "a.tif", SIZE), voxels()[:1])


def folder_of(folder, names, array=None, **how):
    folder.mkdir(exist_ok=True)
    array = voxels() if array is None else array
    for name, page in zip(names, array, strict=True):
        tifffile.imwrite(folder / name, page, **how)
    return folder


@pytest.mark.parametrize("how", [{}, {"compression": "zlib"}])
def test_a_folder_of_slices_in_natural_order(tmp_path, how):
    names = ["rec_2.tif", "rec_9.tif", "rec_10.TIF", "rec_11.tiff", "rec_100.tif"]
    folder = folder_of(tmp_path / "scan", names, **how)
    (folder / "._rec_2.tif").touch()
    (folder / "scan.log").touch()
    volume = open_volume(folder, SIZE)
    same(volume, voxels())
    assert volume.audit.used == tuple(names)
    assert [item.name for item in volume.audit.dropped] == ["._rec_2.tif", "scan.log"]
    assert any("no TIFF: scan.log" in text for text in volume.audit.warnings)


def test_gaps_in_the_numbers_are_said(tmp_path):
    folder = folder_of(tmp_path / "scan", [f"s{n:03d}.tif" for n in (1, 2, 3, 5, 6)])
    (said,) = open_volume(folder, SIZE).audit.warnings
    assert said == "the numbers in the names go on by 1, but not between 3 and 5: are slices missing?"
    even = folder_of(tmp_path / "even", [f"s{n:03d}.tif" for n in (2, 4, 6, 8, 10)])
    assert open_volume(even, SIZE).audit.warnings == ()


def test_slices_that_do_not_go_together(tmp_path):
    folder = folder_of(tmp_path / "scan", [f"{n}.tif" for n in range(5)])
    for page, words in (
        (voxels()[0, :-1], r"3\.tif: 39x50 pixels of uint16, but 0\.tif is 40x50 pixels of uint16"),
        (voxels("u1")[0], r"3\.tif: 40x50 pixels of uint8, but"),
        (voxels()[:2], r"3\.tif: 2 pages, in a folder of 5 TIFF files"),
        (np.zeros((40, 50, 3), "u1"), r"3\.tif: colour, or 3 values a pixel"),
    ):
        tifffile.imwrite(folder / "3.tif", page)
        with pytest.raises(VolumeError, match=words):
            open_volume(folder, SIZE)
    (folder / "3.tif").write_bytes(b"II*\0")
    with pytest.raises(VolumeError, match=r"3\.tif: not a readable TIFF file"):
        open_volume(folder, SIZE)


def test_sizes_from_imagej_and_ome(tmp_path):
    tifffile.imwrite(
        tmp_path / "ij.tif",
        voxels(),
        imagej=True,
        resolution=(50, 40),
        metadata={"axes": "ZYX", "spacing": 30, "unit": "um"},
    )
    volume = open_volume(tmp_path / "ij.tif")
    np.testing.assert_allclose(volume.space.spacing, (0.03, 0.025e-3, 0.02e-3))
    same(volume, voxels())
    sizes = {"axes": "ZYX", "PhysicalSizeX": 5, "PhysicalSizeY": 6, "PhysicalSizeZ": 7e-3, "PhysicalSizeZUnit": "mm"}
    tifffile.imwrite(tmp_path / "b.ome.tif", voxels(), metadata=sizes)
    np.testing.assert_allclose(open_volume(tmp_path / "b.ome.tif").space.spacing, (0.007, 0.006, 0.005))
    told = open_volume(tmp_path / "b.ome.tif", SIZE)
    assert told.space.spacing == (3, 2, 1)
    assert "--voxel-size 3x2x1 is taken" in told.audit.warnings[0]


def test_without_a_size_it_is_refused_and_the_option_mends_it(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", voxels(), resolution=(72, 72), resolutionunit="inch")
    with pytest.raises(VolumeError, match=r"does not say how large its voxels are; give --voxel-size"):
        info(tmp_path / "a.tif")
    facts = info(tmp_path / "a.tif", voxel_size="0.1x0.05x0.05")
    assert facts["spacing_mm"] == pytest.approx([0.1, 0.05, 0.05])
    with pytest.raises(ConfigError, match="--voxel-size x"):
        info(tmp_path / "a.tif", voxel_size="x")
    sitk.WriteImage(sitk.GetImageFromArray(voxels()), tmp_path / "a.nii")
    with pytest.raises(VolumeError, match="which says how large its voxels are; --voxel-size is for others"):
        info(tmp_path / "a.nii", voxel_size="1")


def test_it_lies_where_simpleitk_has_it(tmp_path):
    """An image of no directions, in TIFF, is the same scan as its copy that SimpleITK writes as NIfTI."""
    image = sitk.GetImageFromArray(voxels())
    image.SetSpacing((1, 2, 3))
    sitk.WriteImage(image, tmp_path / "a.nii.gz")
    tifffile.imwrite(tmp_path / "a.tif", voxels())
    assert open_volume(tmp_path / "a.nii.gz").space.matches(open_volume(tmp_path / "a.tif", SIZE).space)


def test_a_mask_without_a_size_has_its_image_s(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", voxels())
    tifffile.imwrite(tmp_path / "mask.tif", (voxels() > 100).astype("u1"))
    mask, _ = open_labels(tmp_path / "mask.tif", open_volume(tmp_path / "a.tif", SIZE))
    np.testing.assert_array_equal(mask.read(BOX), (voxels() > 100)[BOX.slices])
    report = ingest(tmp_path / "a.tif", tmp_path / "b.nii.gz", labels=tmp_path / "mask.tif", voxel_size=(3, 2, 1))
    assert report.spacing == pytest.approx((3, 2, 1))


def test_channels_and_other_axes(tmp_path):
    array = voxels(shape=(5, 2, 40, 50))
    tifffile.imwrite(tmp_path / "c.tif", array, imagej=True, metadata={"axes": "ZCYX"})
    assert count_channels(tmp_path / "c.tif") == 2
    np.testing.assert_array_equal(
        ImageFile(tmp_path / "c.tif", 1).open(SIZE).read(BOX), array[(slice(1, 4), 1, *BOX.slices[1:])]
    )
    with pytest.raises(VolumeError, match="2 channels of 5x40x50"):
        open_volume(tmp_path / "c.tif", SIZE)
    tifffile.imwrite(tmp_path / "t.tif", voxels(), imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite(tmp_path / "unnamed.tif", voxels(), imagej=True)
    for name, axis in (("t", "T"), ("unnamed", "C")):
        volume = open_volume(tmp_path / f"{name}.tif", SIZE)
        assert f"its axis {axis} (5) is taken for the slices" in volume.audit.warnings[0]
        same(volume, voxels())
    tifffile.imwrite(tmp_path / "tz.tif", array, imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(VolumeError, match="not of several"):
        open_volume(tmp_path / "tz.tif", SIZE)
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        file.write(voxels())
        file.write(voxels()[:, :20])
    with pytest.raises(VolumeError, match="2 images of different sizes"):
        open_volume(tmp_path / "two.tif", SIZE)


def test_single_bits_become_labels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", voxels() > 100, photometric="minisblack")
    volume = open_volume(tmp_path / "a.tif", SIZE)
    assert volume.dtype == np.uint8
    same(volume, (voxels() > 100).astype("u1"))


def test_a_codec_that_is_not_there_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", voxels()[:1], compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(34887)  # LERC
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        with pytest.raises(VolumeError, match="compressed by LERC, for which a library is missing; install it"):
            open_volume(tmp_path / "a.tif", SIZE)


def test_a_chain_of_pages_that_never_ends(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", voxels())
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        last, first = file.pages[-1].offset, file.pages[0].offset
    end = last + 2 + 12 * struct.unpack("<H", content[last : last + 2])[0]
    content[end : end + 4] = struct.pack("<I", first)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(VolumeError, match="page 5 is an earlier one again"):
        open_volume(tmp_path / "a.tif", SIZE)


@pytest.mark.parametrize("imagej", [False, True])
def test_fewer_pages_than_promised(tmp_path, imagej):
    options = {"imagej": True} if imagej else {"ome": True}
    tifffile.imwrite(tmp_path / "a.tif", voxels(), metadata={"axes": "ZYX"}, compression="zlib", **options)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        last = file.pages[2].offset
    end = last + 2 + 12 * struct.unpack("<H", content[last : last + 2])[0]
    content[end : end + 4] = bytes(4)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(VolumeError, match=r"truncated: 3 of 5 images|damaged in slice 3|axes|not a readable"):
        open_volume(tmp_path / "a.tif", SIZE).read(Box.whole(SHAPE))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_files_cut_short(tmp_path, compression):
    file = io.BytesIO()
    tifffile.imwrite(file, voxels(), compression=compression)
    whole = file.getvalue()
    for size in (len(whole) - 300, len(whole) // 2, 400, 20, 9):
        (tmp_path / "a.tif").write_bytes(whole[:size])
        with pytest.raises(VolumeError, match=r"a\.tif: (truncated|damaged|not a readable|axes)"):
            open_volume(tmp_path / "a.tif", SIZE).read(Box.whole(SHAPE))


def test_a_declared_size_beyond_all_bounds(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", voxels()[:1], compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags["ImageLength"].overwrite(2**30)
        file.pages[0].tags["RowsPerStrip"].overwrite(2**30)
    with pytest.raises(VolumeError, match=r"truncated: .* for 1073741824x50 pixels"):
        open_volume(tmp_path / "a.tif", SIZE)
