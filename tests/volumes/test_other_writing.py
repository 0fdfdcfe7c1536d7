"""NRRD, MetaImage and TIFF as they are written: independent readers have the same voxels at the same places."""

import gzip
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from volseg.distributed.communicator import SerialCommunicator
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes import planes_output
from volseg.volumes.canonical import canonical
from volseg.volumes.gzip_pieces import joined_crc
from volseg.volumes.image_file import ImageFile
from volseg.volumes.label_files import label_table_of
from volseg.volumes.label_table import LabelTable
from volseg.volumes.output import Content
from volseg.volumes.reading import open_volume
from volseg.volumes.tiff.output import header_bytes
from volseg.volumes.volume import Space
from volseg.volumes.writing import Intended, rehearse, write_volume

SHAPE = (9, 11, 14)
SERIAL = SerialCommunicator()
LABELS = LabelTable({"left kidney": 1, "tumour\n2": 3}, {1: (255, 0, 51)})
ENDINGS = (".nrrd", ".mha", ".tif")


def turned():
    """An oblique grid, an axis of which is flipped."""
    a, b = np.cos(0.3), np.sin(0.3)
    affine = np.array([[-a, 0, b, 10], [0, -1, 0, 20.125], [b, 0, a, 30], [0, 0, 0, 1.0]]) @ np.diag([0.7, 0.3, 2.5, 1])
    return Space(SHAPE, affine)


def voxels(dtype="i2", lead=()):
    return np.random.default_rng(3).integers(0, 120, (*lead, *SHAPE)).astype(dtype)


def write(path, array, communicator=SERIAL, **options):
    def produce(units):
        mine = units[communicator.rank]
        return None if mine is None else (array if mine.channel is None else array[mine.channel])[mine.box.slices]

    channels = array.shape[0] if array.ndim == 4 else None
    write_volume(path, turned(), array.dtype, produce, communicator, channels=channels, **options)
    return path


@pytest.fixture
def shared(tmp_path, communicator):
    """One folder for all ranks."""
    return Path(communicator.broadcast(str(tmp_path)))


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(planes_output, "UNIT_BYTES", 500)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f4"])
def test_what_is_written_is_read_back(tmp_path, ending, dtype):
    if ending == ".tif":
        pytest.importorskip("tifffile")
    volume = open_volume(write(tmp_path / f"a{ending}", voxels(dtype)))
    np.testing.assert_array_equal(volume.read(Box.whole(SHAPE)), voxels(dtype))
    np.testing.assert_allclose(volume.space.affine, turned().affine, rtol=0, atol=1e-12)
    assert volume.dtype == np.dtype(dtype)
    assert volume.audit.warnings == ()


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_simpleitk_reads_it_at_the_same_place(tmp_path, ending):
    write(tmp_path / f"a{ending}", voxels())
    image = sitk.ReadImage(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels())
    sitk.WriteImage(image, tmp_path / "b.nii.gz")
    copy = canonical(open_volume(tmp_path / "b.nii.gz"))
    own = canonical(open_volume(tmp_path / f"a{ending}"))
    assert own.space.matches(copy.space, 1e-4)
    np.testing.assert_array_equal(copy.read(Box.whole(copy.shape)), own.read(Box.whole(own.shape)))


@pytest.mark.parametrize("big", [False, True])
def test_tifffile_reads_it(tmp_path, big, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    if big:
        monkeypatch.setattr(header_bytes, "__defaults__", (1000,))
    write(tmp_path / "a.tif", voxels())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert (file.is_bigtiff, file.is_imagej, len(file.pages)) == (big, True, SHAPE[0])
        np.testing.assert_array_equal(file.asarray(), voxels())
        assert file.imagej_metadata["spacing"] == pytest.approx(2.5)
        across, down = (file.pages[3].tags[name].value for name in ("XResolution", "YResolution"))
        assert across[1] / across[0] == pytest.approx(0.7, rel=1e-6)
        assert down[1] / down[0] == pytest.approx(0.3, rel=1e-6)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "a.tif")), voxels())
    np.testing.assert_array_equal(open_volume(tmp_path / "a.tif").read(Box.whole(SHAPE)), voxels())


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_channels(tmp_path, ending):
    array = voxels("f4", (3,))
    path = write(tmp_path / f"p{ending}", array, names=("a", "b", "c"), fixes=("mended",))
    np.testing.assert_array_equal(ImageFile(path, 2).open().read(Box.whole(SHAPE)), array[2])
    assert sitk.GetArrayFromImage(sitk.ReadImage(path)).size == array.size
    with pytest.raises(VolumeError, match="one channel"):
        write(tmp_path / "p.tif", array)


def test_names_of_labels_for_slicer(tmp_path):
    path = write(tmp_path / "scan.seg.nrrd", voxels("u1") % 4, labels=LABELS)
    image = sitk.ReadImage(path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels("u1") % 4)
    content = path.read_bytes()  # one stream with a checksum over all, which gzip checks
    assert gzip.decompress(content[content.index(b"\n\n") + 2 :]) == (voxels("u1") % 4).tobytes()
    np.testing.assert_array_equal(open_volume(path).read(Box.whole(SHAPE)), voxels("u1") % 4)
    assert image.GetMetaData("Segment0_Name") == "left kidney"
    assert image.GetMetaData("Segment0_Color") == "1 0 0.2"
    assert image.GetMetaData("Segment1_LabelValue") == "3"
    table = label_table_of(path)
    assert table.names == {"left kidney": 1, "tumour 2": 3}
    assert table.colours[1] == (255, 0, 51)
    with pytest.raises(VolumeError, match=r"let the name end in \.nii\.gz, .*\.mha, \.tif or \.tiff"):
        write(tmp_path / "image.seg.mha.gz", voxels())


def test_what_a_format_does_not_keep_is_said_before(tmp_path):
    content = Content(turned(), np.dtype("u1"), labels=LABELS)
    for ending in (".mha", ".tif"):
        (said,) = rehearse([Intended(tmp_path / f"m{ending}", content)], overwrite=False)
        assert f"{ending} keeps no names of labels; .seg.nrrd" in said
    assert rehearse([Intended(tmp_path / "m.seg.nrrd", content)], overwrite=False) == []
    for ending in ENDINGS:
        with pytest.raises(VolumeError, match=r"holds no float16|integers or real numbers"):
            write(tmp_path / f"a{ending}", np.zeros(SHAPE, "f2") if ending != ".tif" else np.zeros(SHAPE, "c8"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spacing", [1e-6, 5e-5, 0.05, 1.0, 12.5])
def test_pixels_of_any_size_fit_the_tags(spacing):
    content = Content(Space((2, 3, 4), np.diag([spacing, spacing, spacing, 1])), np.dtype("u1"))
    header = header_bytes(content)
    tifffile = pytest.importorskip("tifffile")

    with tifffile.TiffFile(io.BytesIO(header + bytes(24))) as file:
        value = file.pages[0].tags["XResolution"].value
        assert value[1] / value[0] == pytest.approx(spacing, rel=1e-5)


def test_checksums_are_joined_as_zlib_joins_them():
    raw = np.random.default_rng(0).bytes(5000)
    for cut in (0, 1, 7, 2500, 4999, 5000):
        first, second = raw[:cut], raw[cut:]
        assert joined_crc(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(raw)


@pytest.mark.parallel([2, 4])
def test_bytes_are_the_same_on_any_number_of_ranks(shared, communicator):
    array = voxels("u1")
    for ending in (*ENDINGS, ".seg.nrrd"):
        labels = LABELS if ending == ".seg.nrrd" else None
        path = write(shared / f"a{ending}", array, communicator, labels=labels)
        if communicator.is_root:
            assert path.read_bytes() == write(shared / f"b{ending}", array, labels=labels).read_bytes()
    if communicator.is_root:
        assert len(list(shared.iterdir())) == 2 * (len(ENDINGS) + 1)
    communicator.barrier()
