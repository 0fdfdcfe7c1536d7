"""DICOM SEG in: against the mask it was made from, against highdicom's own reading, and files that are refused."""

import copy
import zlib

import numpy as np
import pytest
from jpeg_ls import encode_array as jpeg_ls
from openjpeg.utils import encode_array
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from dicom_files import save, series_datasets, stored_values
from label_sources import Image, full_datasets, image_of, own_array, reordered, segmentation
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dicom.labels.segment_frames import DEFLATED_FRAMES
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.dicom.volume import open_dicom
from volseg.volumes.mask_source import open_labels
from volseg.volumes.volume import Space

SHAPE = (6, 15, 21)  # 315 bits a frame: frames do not begin on whole bytes
OBLIQUE = {"across": (0.8, 0.6, 0), "down": (0, 0, -1)}


def mask_of(labels=3, shape=SHAPE):
    mask = np.random.default_rng(4).integers(0, labels + 1, shape).astype(np.uint8)
    mask[[0, 4]] = 0  # slices that get no frame
    return mask


def series(**options):
    return full_datasets(series_datasets(stored_values(SHAPE), **options))


def saved(folder, datasets, mask, names=("liver", "spleen", "left kidney"), kind="BINARY", **more):
    segmentation(datasets, mask, list(names), kind, **more).save_as(folder / "seg.dcm")
    return folder / "seg.dcm"


def read(volume):
    return volume.read(Box.whole(volume.shape))


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("options", [{}, OBLIQUE])
def test_reads_what_highdicom_wrote(tmp_path, kind, options):
    datasets, mask = series(**options), mask_of()
    volume, table = open_labels(saved(tmp_path, datasets, mask, kind=kind), image_of(datasets))
    assert volume.dtype == np.uint8
    np.testing.assert_array_equal(read(volume), mask)
    box = Box((2, 3, 4), (5, 9, 20))
    np.testing.assert_array_equal(volume.read(box), mask[box.slices])
    assert dict(table.names) == {"liver": 1, "spleen": 2, "left kidney": 3}
    assert table.colour(1) == pytest.approx((0, 128, 255), abs=1)
    assert table.colour(3) == pytest.approx((255, 0, 0), abs=1)


@pytest.mark.parametrize("flips", [(), (0,), (2,), (0, 1, 2)])
def test_an_image_in_another_voxel_order(tmp_path, flips):
    datasets, mask = series(**OBLIQUE), mask_of()
    image = image_of(datasets)
    other = reordered(image, *flips)
    volume, _ = open_labels(saved(tmp_path, datasets, mask), other)
    assert volume.shape == other.shape
    np.testing.assert_allclose(volume.space.affine, other.space.affine, atol=1e-9)
    np.testing.assert_array_equal(own_array(volume, image.space), mask)


def test_frames_in_file_order_mean_nothing(tmp_path):
    datasets, mask = series(), mask_of()
    path = saved(tmp_path, datasets, mask)
    stored = dcmread(path)
    frames = list(zip(stored.PerFrameFunctionalGroupsSequence, stored.pixel_array, strict=True))
    np.random.default_rng(0).shuffle(frames)
    stored.PerFrameFunctionalGroupsSequence = [group for group, _ in frames]
    bits = np.packbits(np.concatenate([pixels.ravel() for _, pixels in frames]), bitorder="little").tobytes()
    stored.PixelData = bits + bytes(len(bits) % 2)
    stored.save_as(path)
    np.testing.assert_array_equal(read(open_labels(path, image_of(datasets))[0]), mask)


def test_a_seg_of_some_slices_of_a_longer_series(tmp_path):
    datasets, mask = series(), mask_of()
    path = saved(tmp_path, datasets[1:4], mask[1:4])
    expected = np.zeros_like(mask)
    expected[1:4] = mask[1:4]
    np.testing.assert_array_equal(read(open_labels(path, image_of(datasets))[0]), expected)


def test_a_seg_of_slices_that_the_image_lacks(tmp_path):
    datasets, mask = series(), mask_of()
    with pytest.raises(VolumeError, match=r"frame \d+, 15x21 pixels .* lies outside it: image.nii has 3x15x21 voxels"):
        open_labels(saved(tmp_path, datasets, mask), image_of(datasets[:3]))


def nested():
    """A small segment inside a large one, [slices, rows, columns, segments]; the small one comes first."""
    mask = np.zeros((*SHAPE, 3), np.uint8)
    mask[2, 7:9, 7:9, 0] = 1
    mask[1:5, 3:12, 3:19, 1] = 1
    mask[5, 1:3, 1:3, 2] = 1  # alone
    return mask


@pytest.mark.parametrize("flips", [(), (0, 2)])
def test_the_smallest_of_overlapping_segments_has_the_voxel(tmp_path, flips):
    datasets, mask = series(), nested()
    image = image_of(datasets)
    path = saved(tmp_path, datasets, mask, ["tumour", "liver", "cyst"])
    expected = np.where(mask[..., 0], 1, 2 * mask[..., 1] + 3 * mask[..., 2])
    volume, _ = open_labels(path, reordered(image, *flips) if flips else image)
    np.testing.assert_array_equal(own_array(volume, image.space), expected)
    words = "segments overlap, and a voxel of several goes to the smallest: tumour in liver"
    assert volume.audit.warnings == (words,)


def test_the_last_of_overlapping_segments_or_none(tmp_path):
    datasets, mask = series(), nested()
    path = saved(tmp_path, datasets, mask, ["tumour", "liver", "cyst"])
    volume, _ = open_labels(path, image_of(datasets), overlap="last")
    np.testing.assert_array_equal(read(volume), np.where(mask[..., 1], 2, mask[..., 0] + 3 * mask[..., 2]))
    assert volume.audit.warnings == ("segments overlap, and a voxel of several goes to the last: liver over tumour",)
    words = r"seg\.dcm: segments overlap, .*: liver and tumour; --overlap smallest gives .* --overlap last"
    with pytest.raises(VolumeError, match=words):
        open_labels(path, image_of(datasets), overlap="error")


def test_segments_beside_each_other_do_not_overlap(tmp_path):
    datasets, mask = series(), mask_of()
    volume, _ = open_labels(saved(tmp_path, datasets, mask), image_of(datasets), overlap="error")
    assert volume.audit.warnings == ()


def packed(path, by):
    """The SEG at `path` again, each frame or each segment beginning on a byte, as old software wrote it."""
    stored = dcmread(path)
    numbers = [int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
               for group in stored.PerFrameFunctionalGroupsSequence]  # fmt: skip
    groups = [[n] for n in range(len(numbers))]
    if by == "segment":
        groups = [[n for n, number in enumerate(numbers) if number == one] for one in sorted(set(numbers))]
    frames = stored.pixel_array
    parts = [np.packbits(frames[group].ravel(), bitorder="little").tobytes() for group in groups]
    stored.PixelData = b"".join(parts) + bytes(len(b"".join(parts)) % 2)
    stored.save_as(path)
    return path


@pytest.mark.parametrize("by", ["frame", "segment"])
def test_bits_packed_against_the_standard(tmp_path, by):
    datasets, mask = series(), mask_of(5)
    path = packed(saved(tmp_path, datasets, mask, list("abcde")), by)
    volume, _ = open_labels(path, image_of(datasets))
    np.testing.assert_array_equal(read(volume), mask)
    words = f"bits packed as {by}s that each begin on a byte, against the standard; read so, as the length of the "
    assert volume.audit.warnings == (words + "pixel data says",)


def test_a_length_that_fits_no_packing_of_bits(tmp_path):
    datasets, mask = series(), mask_of()
    path = saved(tmp_path, datasets, mask)
    stored = dcmread(path)
    stored.PixelData += bytes(14)
    stored.save_as(path)
    words = r"488 bytes of one bit a pixel, where its frames take 473 for frames that follow one another, or 480 for"
    with pytest.raises(VolumeError, match=words):
        open_labels(path, image_of(datasets))


def test_a_length_that_fits_two_packings_is_read_by_the_standard_and_said(tmp_path):
    datasets, mask = series(), mask_of(1)
    path = saved(tmp_path, datasets[1:3], mask[1:3], ["liver"])
    volume, _ = open_labels(path, image_of(datasets))
    np.testing.assert_array_equal(read(volume)[1:3], mask[1:3])
    assert "fits frames that follow one another, as read here, and frames that each" in volume.audit.warnings[0]


def corrected(folder, heights, tilt=0.0):
    """A CT whose slices lie at `heights` and drift `tilt` rows each, and its SEG of the mask."""
    datasets, mask = series(), mask_of()
    for number, (dataset, height) in enumerate(zip(datasets, heights, strict=True)):
        dataset.ImagePositionPatient = [-100, -120 + number * tilt * 0.8, 50 + height]
    options = DicomOptions(fix_tilt=bool(tilt), resample_gaps=not tilt)
    save(datasets, folder / "ct")
    return open_dicom(folder / "ct", options), saved(folder, datasets, mask), mask


@pytest.mark.parametrize("wide", [4.0, 3.2])
@pytest.mark.parametrize("resample", [False, True])
def test_a_seg_goes_with_its_interpolated_slices(tmp_path, wide, resample):
    """Slices 2 mm apart, then `wide` mm: every new slice has the labels of the nearest old one."""
    heights = np.array([0, 2, 4, 4 + wide, 4 + 2 * wide, 4 + 3 * wide])
    image, path, mask = corrected(tmp_path, heights)
    volume, _ = open_labels(path, image, resample=resample)
    places = image.space.spacing[0] * np.arange(image.shape[0])
    nearest = np.abs(places[:, None] - heights - 1e-6).argmin(axis=1)  # halfway the one before
    np.testing.assert_array_equal(read(volume), mask[nearest])
    box = Box((1, 3, 4), (5, 9, 20))
    np.testing.assert_array_equal(volume.read(box), mask[nearest][box.slices])
    assert volume.audit.fixes == ("labels corrected as their scan is, by the nearest voxel",)


@pytest.mark.parametrize("tilt", [1.0, -1.0, 0.7])
def test_a_seg_goes_with_its_sheared_slices(tmp_path, tilt):
    image, path, mask = corrected(tmp_path, 2.0 * np.arange(6), tilt)
    volume, _ = open_labels(path, image)
    array, corner = read(volume), min(0, np.floor(5 * tilt))
    for number, plane in enumerate(array):
        rows = np.ceil(np.arange(image.shape[1]) + corner - number * tilt - 0.5 - 1e-4).astype(int)
        inside = (rows >= 0) & (rows < SHAPE[1])
        np.testing.assert_array_equal(plane[inside], mask[number][rows[inside]])
        assert not plane[~inside].any()


def test_a_seg_of_the_corrected_grid_lies_there(tmp_path):
    """As `segment --resample-gaps` writes it: frames between the scanner's slices too."""
    image, _, _ = corrected(tmp_path, np.array([0, 2, 4, 8, 10, 14]))
    even = series()[:1] * 8
    even = [copy.deepcopy(dataset) for dataset in even]
    for number, dataset in enumerate(even):
        dataset.SOPInstanceUID, dataset.ImagePositionPatient = generate_uid(), [-100, -120, 50 + 2.0 * number]
    mask = np.random.default_rng(2).integers(0, 2, (8, *SHAPE[1:])).astype(np.uint8)
    volume, _ = open_labels(saved(tmp_path, even, mask, ["liver"]), image)
    np.testing.assert_array_equal(read(volume), mask)
    assert volume.audit.fixes == ()


def test_frames_that_fit_nothing_are_given_a_way_that_is_left(tmp_path):
    """Where --resample-labels was asked for already, the message does not name it again."""
    image, path, _ = corrected(tmp_path, np.array([0, 2, 4, 8, 10, 14]))
    stored = dcmread(path)
    for number, group in enumerate(stored.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence[0].ImagePositionPatient = [-100, -120, 50 + number**1.5]
    stored.save_as(path)
    with pytest.raises(VolumeError, match="on no even grid") as raised:
        open_labels(path, image, resample=True)
    assert "--resample-labels" not in str(raised.value)


def test_fractional_is_read_where_it_says_yes_or_no(tmp_path):
    datasets, mask = series(), mask_of(1)
    path = saved(tmp_path, datasets, mask.astype(np.float32), ["liver"], "FRACTIONAL")
    np.testing.assert_array_equal(read(open_labels(path, image_of(datasets))[0]), mask)
    path = saved(tmp_path, datasets, mask * np.float32(0.5), ["liver"], "FRACTIONAL")
    with pytest.raises(VolumeError, match=r"a fractional segmentation, with 128 of 255 in frame \d; store it as BIN"):
        read(open_labels(path, image_of(datasets))[0])


@pytest.mark.parametrize("syntax", [JPEGLSLossless])
def test_compressed_label_maps(tmp_path, syntax):
    datasets, mask = series(), mask_of()
    path = saved(tmp_path, datasets, mask, kind="LABELMAP", transfer_syntax_uid=syntax)
    np.testing.assert_array_equal(read(open_labels(path, image_of(datasets))[0]), mask)


def run_lengths(data):
    """RLE Lossless of one segment, in runs of copies and of other bytes."""
    out = b"".join(bytes([257 - len(run), run[0]]) if len(run) > 1 else bytes([0, run[0]])
                   for run in (bytes(part) for part in np.split(np.frombuffer(data, "u1"), _turns(data)))
                   )  # fmt: skip
    return (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56) + out


def _turns(data):
    """Where runs of at most 100 equal bytes end."""
    ends, begin = [], 0
    for n in range(1, len(data)):
        if data[n] != data[begin] or n - begin == 100:
            ends.append(n)
            begin = n
    return ends


def bits_of(frame):
    return np.packbits(frame.ravel(), bitorder="little").tobytes()


ONE_BIT = {
    "JPEG 2000": (JPEG2000Lossless, lambda frame: encode_array(frame, bits_stored=1, codec_format=0)),
    "JPEG-LS": (JPEGLSLossless, lambda frame: bytes(jpeg_ls(frame))),
    "RLE, a byte a pixel": (RLELossless, lambda frame: run_lengths(frame.tobytes())),
    "RLE, packed": (RLELossless, lambda frame: run_lengths(bits_of(frame))),
    "deflated frames": (DEFLATED_FRAMES, lambda frame: zlib.compress(bits_of(frame), wbits=-15)),
}


@pytest.mark.parametrize("name", ONE_BIT)
def test_compressed_frames_of_one_bit(tmp_path, name):
    syntax, encode = ONE_BIT[name]
    shape = (6, 41, 43)  # JPEG 2000 takes no less than 32 of each
    datasets, mask = full_datasets(series_datasets(stored_values(shape))), mask_of(2, shape)
    path = saved(tmp_path, datasets, mask, ["liver", "spleen"])
    stored = dcmread(path)
    frames = stored.pixel_array
    stored.PixelData = encapsulate([encode(np.ascontiguousarray(frame)) for frame in frames])
    stored.file_meta.TransferSyntaxUID = JPEG2000Lossless if syntax == DEFLATED_FRAMES else syntax
    stored["PixelData"].VR = "OB"
    stored["PixelData"].is_undefined_length = True
    dcmwrite(path, stored, enforce_file_format=True)
    if syntax == DEFLATED_FRAMES:  # pydicom does not know it yet
        path.write_bytes(path.read_bytes().replace(JPEG2000Lossless.encode(), syntax.encode() + b"\0"))
    volume, _ = open_labels(path, image_of(datasets))
    np.testing.assert_array_equal(read(volume), mask)
    assert volume.audit.warnings == ()


def test_positions_with_decimal_commas(tmp_path):
    datasets, mask = series(), mask_of()
    path = saved(tmp_path, datasets, mask)
    content = path.read_bytes()
    for number in range(50, 62, 2):
        content = content.replace(f"-120.000000\\{number}.000000".encode(), f"-120,000000\\{number},000000".encode())
    path.write_bytes(content)
    volume, _ = open_labels(path, image_of(datasets))
    np.testing.assert_array_equal(read(volume), mask)
    assert volume.audit.warnings == ("ImagePositionPatient has a decimal comma, read as a point",)


def test_a_label_map_in_palette_colours(tmp_path):
    datasets, mask = series(), mask_of()
    path = saved(tmp_path, datasets, mask, kind="LABELMAP")
    stored = dcmread(path)
    stored.PhotometricInterpretation = "PALETTE COLOR"
    stored.save_as(path)
    np.testing.assert_array_equal(read(open_labels(path, image_of(datasets))[0]), mask)


def test_values_that_volseg_wrote_come_back(tmp_path):
    datasets, mask = series(), mask_of()
    path = saved(tmp_path, datasets, mask)
    stored = dcmread(path)
    stored.Manufacturer = "volseg"
    for item, value in zip(stored.SegmentSequence, (7, 300, 2), strict=True):
        item.SegmentDescription = f"label {value} of the mask"
    stored.save_as(path)
    volume, table = open_labels(path, image_of(datasets))
    np.testing.assert_array_equal(read(volume), np.array([0, 7, 300, 2])[mask])
    assert dict(table.names) == {"liver": 7, "spleen": 300, "left kidney": 2}


def test_segments_of_one_name(tmp_path):
    datasets = series()
    volume, table = open_labels(saved(tmp_path, datasets, mask_of(), ["nodule"] * 3), image_of(datasets))
    assert dict(table.names) == {"nodule": 1, "nodule 2": 2, "nodule 3": 3}
    assert volume.audit.warnings == ("3 segments are called nodule: kept apart, as nodule, nodule 2, nodule 3",)


def test_another_grid_is_refused_and_named(tmp_path):
    datasets = series()
    image = image_of(datasets)
    affine = image.space.affine.copy()
    affine[0, 3] += 0.3
    shifted = Image(Space(image.shape, affine))
    with pytest.raises(
        VolumeError, match=r"15x21 pixels of 0\.8x0\.7 mm .* 0\.429 voxels off .* 2x0\.8x0\.7 mm; --resam"
    ):
        open_labels(saved(tmp_path, datasets, mask_of()), shifted)


def test_another_grid_by_resampling(tmp_path):
    """Onto a grid of every second column and row, whose centres the SEG's own voxels share."""
    datasets, mask = series(), mask_of()
    image = image_of(datasets)
    thin = Image(Space((6, 8, 11), image.space.affine @ np.diag([2.0, 2.0, 1.0, 1.0])))
    path = saved(tmp_path, datasets, mask)
    with pytest.raises(VolumeError, match="--resample-labels"):
        open_labels(path, thin)
    volume, _ = open_labels(path, thin, resample=True)
    expected = mask[:, ::2, ::2].copy()
    np.testing.assert_array_equal(read(volume)[1:4], expected[1:4])
    (line,) = volume.audit.fixes
    # Its own grid ends where its frames end: slices 1 to 5.
    assert (
        line == "labels resampled by nearest voxel from 5x15x21 voxels of 2x0.8x0.7 mm to 6x8x11 voxels of 2x1.6x1.4 mm"
    )


def test_truncated(tmp_path):
    datasets = series()
    path = saved(tmp_path, datasets, mask_of())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(VolumeError, match=r"damaged or incomplete|truncated"):
        read(open_labels(path, image_of(datasets))[0])


def test_a_header_that_lies_about_its_frames(tmp_path):
    datasets = series()
    path = saved(tmp_path, datasets, mask_of())
    stored = dcmread(path)
    stored.Rows, stored.Columns = 60_000, 60_000
    stored.save_as(path)
    with pytest.raises(VolumeError, match="60000 x 60000 pixels; is its header damaged"):
        open_labels(path, image_of(datasets))


@pytest.fixture
def liver():
    path = get_testdata_file("liver.dcm")
    if path is None:
        pytest.skip("pydicom-data is not installed: no liver.dcm")
    return path


def test_a_real_seg(liver):
    """dcmqi's liver of 2016: three frames, at -128.69, -127.69 and -126.69 mm, in a larger image."""
    pixel = 0.810547
    affine = np.diag([-pixel, -pixel, 1.0, 1.0])
    affine[:3, 3] = 235.2, 226.8, -130.69
    volume, table = open_labels(liver, Image(Space((8, 512, 512), affine)))
    ours = read(volume)
    theirs = dcmread(liver).pixel_array
    np.testing.assert_array_equal(ours[2:5], theirs)
    assert not ours[[0, 1, 5, 6, 7]].any()
    assert dict(table.names) == {"Liver": 1}
    assert table.colour(1) == (221, 130, 101)  # 3D Slicer's liver


def test_a_real_seg_that_contradicts_itself(liver):
    path = get_testdata_file("liver_1frame.dcm")
    with pytest.raises(VolumeError, match="1 frames of pixels, but 3 described"):
        open_labels(path, Image(Space((8, 512, 512), np.eye(4))))
