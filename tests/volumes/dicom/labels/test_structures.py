"""RTSTRUCT in: filled contours against analytic areas and matplotlib's point-in-polygon, and everything refused."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.uid import ImplicitVRLittleEndian

from dicom_files import save, series_datasets, stored_values
from label_sources import LPS_TO_RAS, Image, own_array, reordered, structures
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dicom.labels.raster import area, fill
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.dicom.volume import open_dicom
from volseg.volumes.mask_source import open_labels
from volseg.volumes.volume import Space

ORIGIN, SPACING = np.array([-40.0, -30.0, 100.0]), (2.0, 0.8, 0.5)  # LPS; D, H, W


def image(shape=(9, 80, 120), spacing=SPACING):
    affine = np.diag([*spacing[::-1], 1.0])
    affine[:3, 3] = ORIGIN
    return Image(Space(shape, LPS_TO_RAS @ affine))


def circle(z, centre=(-12.0, 3.0), radius=15.0, points=400):
    """LPS mm, in the plane of slice z."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    x, y = centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)
    return np.stack([x, y, np.full(points, ORIGIN[2] + z * SPACING[0])], axis=1)


def opened(folder, rois, target=None, **options):
    return open_labels(structures(rois, folder / "rs.dcm", **options), target or image())


def read(volume):
    return volume.read(Box.whole(volume.shape))


def volume_mm3(array, value=1):
    return int((array == value).sum()) * np.prod(SPACING)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(3, 12), st.integers(1, 3))
def test_fill_is_the_even_odd_rule_at_voxel_centres(seed, points, contours):
    """Star-shaped or self-crossing, inside, outside and across the window."""
    rng = np.random.default_rng(seed)
    polygons = [rng.uniform(-8, 28, (points, 2)) for _ in range(contours)]
    window, start = (17, 13), (2, 5)
    centres = np.stack(np.meshgrid(*(np.arange(n) + s for n, s in zip(window, start, strict=True)), indexing="ij"), -1)
    expected = np.zeros(window, bool)
    for polygon in polygons:
        closed = np.vstack([polygon, polygon[:1]])
        expected ^= Polygon(closed).contains_points(centres.reshape(-1, 2)).reshape(window)
    np.testing.assert_array_equal(fill(polygons, start, window), expected)


def test_neighbours_share_no_voxel_and_miss_none():
    """Squares with corners on voxel centres tile the plane."""
    total = np.zeros((12, 12), int)
    for row in range(0, 12, 4):
        for column in range(0, 12, 4):
            square = np.array([[row, column], [row + 4, column], [row + 4, column + 4], [row, column + 4]], float)
            total += fill([square], (0, 0), (12, 12))
    assert (total == 1).all()


def test_area_of_a_polygon():
    assert area([np.array([[0, 0], [3, 0], [3, 5], [0, 5.0]])]) == 15


def test_a_cylinder_has_its_volume_place_name_and_colour(tmp_path):
    volume, table = opened(tmp_path, [("liver", [circle(z) for z in range(2, 7)])])
    array = read(volume)
    assert volume_mm3(array) == pytest.approx(np.pi * 15**2 * 5 * 2.0, rel=0.01)
    assert np.flatnonzero(array.any(axis=(1, 2))).tolist() == [2, 3, 4, 5, 6]
    _, j, i = np.argwhere(array).mean(axis=0)
    np.testing.assert_allclose(ORIGIN[:2] + np.array([i * 0.5, j * 0.8]), [-12, 3], atol=0.1)
    assert dict(table.names) == {"liver": 1}
    assert table.colour(1) == (11, 2, 3)
    assert volume.audit.warnings == ()


def test_a_contour_inside_another_is_a_hole(tmp_path):
    rois = [("ring", [contour for z in (3, 4) for contour in (circle(z), circle(z, radius=7.0))])]
    array = read(opened(tmp_path, rois)[0])
    assert volume_mm3(array) == pytest.approx(np.pi * (15**2 - 7**2) * 2 * 2.0, rel=0.01)


def test_a_keyhole_is_a_hole(tmp_path):
    """One contour: round the outside, in over a line, backwards round the hole, and out over the same line."""
    outer, inner = circle(4), circle(4, radius=7.0)
    keyhole = np.vstack([outer, outer[:1], inner[:1], inner[::-1]])
    array = read(opened(tmp_path, [("ring", [keyhole])])[0])
    assert volume_mm3(array) == pytest.approx(np.pi * (15**2 - 7**2) * 2.0, rel=0.01)


def test_a_contour_that_is_there_twice(tmp_path):
    volume, _ = opened(tmp_path, [("liver", [circle(4), circle(4)])])
    assert volume_mm3(read(volume)) == pytest.approx(np.pi * 15**2 * 2.0, rel=0.01)
    assert volume.audit.warnings == ("ROI liver: 1 contours are there twice; each is used once",)


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    """A volume of two ROIs, one in the other, and its whole array."""
    rois = [("body", [circle(z, radius=20) for z in range(1, 8)]), ("liver", [circle(z, radius=9) for z in (3, 4)])]
    volume, _ = opened(tmp_path_factory.mktemp("nested"), rois)
    return volume, read(volume)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_any_box_is_a_part_of_the_whole(nested, data):
    volume, whole = nested
    ends = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in volume.shape]
    box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    np.testing.assert_array_equal(volume.read(box), whole[box.slices])


@pytest.mark.parametrize("flips", [(), (1,), (0, 2)])
def test_an_image_in_another_voxel_order(tmp_path, flips):
    """Its slices lie along another axis of the array."""
    rois = [("liver", [circle(z, radius=6 + z) for z in range(2, 7)])]
    here, _ = opened(tmp_path, rois)
    there, _ = opened(tmp_path, rois, reordered(image(), *flips))
    assert there.shape != here.shape
    np.testing.assert_array_equal(own_array(there, image().space), read(here))


@pytest.mark.parametrize(("shift", "slices"), [(0.4, [3, 4]), (-0.4, [3, 4]), (0.5, [4, 5]), (0.6, [4, 5])])
def test_contours_between_slices_go_to_the_nearest(tmp_path, shift, slices):
    array = read(opened(tmp_path, [("liver", [circle(3 + shift), circle(4 + shift)])])[0])
    found = np.flatnonzero(array.any(axis=(1, 2))).tolist()
    assert len(found) == 2
    assert found == slices or shift == 0.5


def test_contours_finer_than_slices(tmp_path):
    """Three planes a slice: the nearest counts; were they combined, they would undo each other."""
    planes = np.arange(2, 6.5, 1 / 3)
    array = read(opened(tmp_path, [("liver", [circle(z) for z in planes])])[0])
    assert volume_mm3(array) == pytest.approx(np.pi * 15**2 * 5 * 2.0, rel=0.01)


def test_contours_on_every_third_slice_fill_those_between(tmp_path):
    volume, _ = opened(tmp_path, [("liver", [circle(z) for z in (1, 4, 7)])])
    assert volume_mm3(read(volume)) == pytest.approx(np.pi * 15**2 * 9 * 2.0, rel=0.01)
    assert volume.audit.warnings == ("contours lie 3 slices apart; each slice between takes the nearest one's",)


def test_slices_left_out_stay_empty_and_are_told(tmp_path):
    volume, _ = opened(tmp_path, [("liver", [circle(z) for z in (1, 2, 3, 5, 6, 7)])])
    assert not read(volume)[4].any()
    assert volume.audit.warnings == ("ROI liver: 1 slices between its first and last have no contour; left empty",)


def test_the_smallest_of_overlapping_rois_wins_whatever_their_order(tmp_path):
    body, organ = ("body", [circle(z, radius=20) for z in range(9)]), ("liver", [circle(z, radius=8) for z in (3, 4)])
    for rois in ([body, organ], [organ, body]):
        volume, table = opened(tmp_path, rois)
        array = read(volume)
        assert volume_mm3(array, table.names["liver"]) == pytest.approx(np.pi * 8**2 * 2 * 2.0, rel=0.02)
        assert volume_mm3(array, table.names["body"]) == pytest.approx(
            (np.pi * 20**2 * 9 - np.pi * 64 * 2) * 2, rel=0.01
        )
        assert volume.audit.warnings == (
            "ROIs overlap, and a voxel of several goes to the smallest: liver in body",
        )  # fmt: skip


def test_rois_beside_each_other_do_not_overlap(tmp_path):
    rois = [(name, [circle(4, (x, 3.0), 7.9)]) for name, x in (("left", -20.0), ("right", -4.0))]
    volume, table = opened(tmp_path, rois)
    assert volume.audit.warnings == ()
    assert dict(table.names) == {"left": 1, "right": 2}
    assert set(np.unique(read(volume))) == {0, 1, 2}


def test_points_and_lines_are_left_out_and_told(tmp_path):
    path = structures([("isocentre", [circle(4)]), ("liver", [circle(4)])], tmp_path / "rs.dcm")
    stored = dcmread(path)
    stored.ROIContourSequence[1].ContourSequence[0].ContourGeometricType = "POINT"
    stored.save_as(path)
    volume, table = open_labels(path, image())
    assert dict(table.names) == {"liver": 1}
    (dropped,) = volume.audit.dropped
    assert (dropped.name, dropped.reason) == ("ROI isocentre", "its POINT contours enclose no voxel")
    with pytest.raises(VolumeError, match="1 ROIs, none with closed contours"):
        opened(tmp_path, [("isocentre", [circle(4)])], kind="POINT")


def test_contours_beyond_the_image(tmp_path):
    volume, _ = opened(tmp_path, [("liver", [circle(z) for z in range(6, 12)])])
    assert volume.audit.warnings == ("ROI liver reaches beyond the image (3 contour planes of 6)",)
    with pytest.raises(VolumeError, match=r"no contour meets image\.nii \(9x80x120 voxels\); is it of another series"):
        opened(tmp_path, [("liver", [circle(z) for z in range(20, 22)])])


def test_contours_across_the_slices(tmp_path):
    tilted = circle(4)
    tilted[:, 2] += 0.3 * tilted[:, 1]
    with pytest.raises(
        VolumeError, match=r"not parallel to the slices of image\.nii: one of ROI liver crosses 4\.5 slices"
    ):
        opened(tmp_path, [("liver", [tilted])])


def rewritten(path, change):
    """The RTSTRUCT at `path`, its data set changed."""
    stored = dcmread(path)
    change(stored)
    stored.save_as(path)
    return path


def with_data(path, data, contour=0):
    """A contour's data, as text that need be no numbers."""

    def change(stored):
        item = stored.ROIContourSequence[0].ContourSequence[contour]
        item["ContourData"] = RawDataElement(item["ContourData"].tag, "DS", len(data), data, 0, False, True)

    return rewritten(path, change)


LINE = np.linspace([-20, 0, 108], [-10, 7, 108], 5)


@pytest.mark.parametrize(
    ("contour", "reason"),
    [
        (circle(1)[:0], "of no point"),
        (circle(1)[:1], "of one point"),
        (circle(1)[:2], "of two points"),
        (LINE, "whose points lie on one line"),
        (np.repeat(LINE[:1], 4, axis=0), "whose points lie on one line"),
        (np.full((4, 3), np.nan), "of coordinates that are no numbers"),
    ],
)
def test_a_contour_that_encloses_nothing_is_left_out_and_named(tmp_path, contour, reason):
    expected = read(opened(tmp_path, [("liver", [circle(z) for z in (3, 4)])])[0])
    volume, table = opened(tmp_path, [("liver", [circle(3), circle(4), contour]), ("tip", [contour, contour])])
    np.testing.assert_array_equal(read(volume), expected)
    assert dict(table.names) == {"liver": 1}
    assert volume.audit.warnings == (
        f"ROI liver: 1 contour left out: 1 {reason}",
        f"ROI tip: 2 contours left out: 2 {reason}, all it has",
    )
    assert [item.name for item in volume.audit.dropped] == ["ROI tip"]
    with pytest.raises(VolumeError, match=f"1 ROIs, none with closed contours; .* 1 contour left out: 1 {reason}"):
        opened(tmp_path, [("tip", [contour])])


@pytest.mark.parametrize("data", [b"1\\2\\3\\4\\5\\6\\7\\8\\9\\10\\11", b"1\\2\\3\\x\\5\\6\\7\\8\\9", b""])
def test_a_damaged_contour_among_sound_ones(tmp_path, data):
    expected = read(opened(tmp_path, [("liver", [circle(4)])])[0])
    path = with_data(structures([("liver", [circle(4), circle(3)])], tmp_path / "rs.dcm"), data, contour=1)
    volume, _ = open_labels(path, image())
    np.testing.assert_array_equal(read(volume), expected)
    (warning,) = volume.audit.warnings
    assert warning.startswith("ROI liver: 1 contour left out: 1 of ")


def test_decimal_commas(tmp_path):
    expected = read(opened(tmp_path, [("liver", [circle(4)])])[0])
    text = "\\".join(f"{n:.4f}" for n in circle(4).ravel()).replace(".", ",")
    path = with_data(structures([("liver", [circle(4)])], tmp_path / "rs.dcm"), text.encode())
    volume, _ = open_labels(path, image())
    np.testing.assert_array_equal(read(volume), expected)
    assert volume.audit.warnings == ("ContourData has a decimal comma, read as a point",)


SAGITTAL = np.array([[-12, -8, 104], [-12, 12, 104], [-12, 12, 112], [-12, -8, 112.0]])


@pytest.mark.parametrize("flips", [(), (0, 2)])
def test_an_roi_off_the_slices_is_left_out_and_named(tmp_path, flips):
    axial = [circle(z) for z in (3, 4)]
    expected = read(opened(tmp_path, [("liver", axial)])[0])
    target = reordered(image(), *flips) if flips else image()
    volume, table = opened(tmp_path, [("plane", [SAGITTAL]), ("liver", [*axial, SAGITTAL])], target)
    np.testing.assert_array_equal(own_array(volume, image().space), expected)
    assert dict(table.names) == {"liver": 1}
    assert volume.audit.warnings[:2] == (
        "ROI plane: every contour not parallel to the slices (over up to 4 of them), left out",
        "ROI liver: 1 of 3 contours not parallel to the slices (over up to 4 of them), left out",
    )
    assert [item.name for item in volume.audit.dropped] == ["ROI plane"]


def test_one_roi_in_two_items_is_united(tmp_path):
    """Where the two overlap, nothing is cut out."""
    left, right = circle(4, (-20.0, 3.0), 8.0), circle(4, (-12.0, 3.0), 8.0)
    both = read(opened(tmp_path, [("a", [left])])[0]) | read(opened(tmp_path, [("a", [right])])[0])
    path = structures([("lung", [left]), ("other", [right])], tmp_path / "rs.dcm")

    def change(stored):
        for item in stored.ROIContourSequence:
            item.ReferencedROINumber = 11
        del stored.StructureSetROISequence[1]

    volume, table = open_labels(rewritten(path, change), image())
    np.testing.assert_array_equal(read(volume), both)
    assert dict(table.names) == {"lung": 1}
    assert volume.audit.warnings == ()


def test_rois_of_one_name_are_kept_apart(tmp_path):
    volume, table = opened(tmp_path, [("node", [circle(z)]) for z in (2, 4)])
    assert dict(table.names) == {"node": 1, "node 2": 2}
    assert set(np.unique(read(volume))) == {0, 1, 2}
    assert volume.audit.warnings == ("2 ROIs are called node: kept apart, as node, node 2",)


def test_contours_of_an_roi_that_is_not_listed(tmp_path):
    path = structures([("liver", [circle(2)]), ("x", [circle(5)])], tmp_path / "rs.dcm")
    volume, table = open_labels(rewritten(path, lambda stored: stored.StructureSetROISequence.pop()), image())
    assert dict(table.names) == {"liver": 1, "ROI 12": 2}
    assert volume.audit.warnings == (
        "ROI 12: contours of an ROI that the structure set does not list; taken by that name",
    )
    rewritten(path, lambda stored: setattr(stored.StructureSetROISequence[0], "ROINumber", 12))
    _, table = open_labels(path, image())
    assert dict(table.names) == {"liver": 1, "ROI 11": 2}


def test_an_roi_between_the_voxels(tmp_path):
    tiny = circle(4, (-12.2, 3.2), 0.05)
    volume, table = opened(tmp_path, [("liver", [circle(2)]), ("seed", [tiny])])
    assert dict(table.names) == {"liver": 1, "seed": 2}
    assert volume.audit.warnings == ("ROI seed: its contours enclose no voxel's centre, so its label has no voxel",)


def test_the_last_of_overlapping_rois_or_none(tmp_path):
    body, organ = ("body", [circle(z, radius=20) for z in range(9)]), ("liver", [circle(4, radius=8)])
    path = structures([organ, body], tmp_path / "rs.dcm")
    volume, _ = open_labels(path, image(), overlap="last")
    assert set(np.unique(read(volume))) == {0, 2}
    assert volume.audit.warnings == ("ROIs overlap, and a voxel of several goes to the last: body over liver",)
    with pytest.raises(
        VolumeError, match="ROIs overlap, and a mask holds one label a voxel: body and liver; --overlap"
    ):
        open_labels(path, image(), overlap="error")


def interpolated(folder, heights):
    """A CT whose slices lie at `heights` mm, brought onto an even grid."""
    datasets = series_datasets(stored_values((len(heights), 40, 60)), origin=ORIGIN, pixel=(0.8, 0.5))
    for dataset, height in zip(datasets, heights, strict=True):
        dataset.ImagePositionPatient = [*ORIGIN[:2], ORIGIN[2] + height]
    return open_dicom(save(datasets, folder / "ct"), DicomOptions(resample_gaps=True))


@pytest.mark.parametrize("wide", [4.0, 3.2])
def test_contours_go_with_interpolated_slices(tmp_path, wide):
    """No slice is left empty between those that contours were drawn on, and those without one stay empty."""
    heights = np.array([0, 2, 4, 6, 6 + wide, 6 + 2 * wide, 6 + 3 * wide])
    target = interpolated(tmp_path, heights)
    drawn = [2, 3, 4, 5]
    volume, _ = opened(tmp_path, [("liver", [circle(heights[n] / 2, (-25.0, -14.0), 4 + n) for n in drawn])], target)
    places = target.space.spacing[0] * np.arange(target.shape[0])
    nearest = np.abs(places[:, None] - heights - 1e-6).argmin(axis=1)
    array = read(volume)
    for index, number in enumerate(nearest):
        size = np.pi * (4 + number) ** 2 / 0.4 if number in drawn else 0
        assert array[index].sum() == pytest.approx(size, rel=0.06)
    assert volume.audit.warnings == ()


@pytest.mark.parametrize("drift", [1.6, -1.1])
def test_contours_go_with_sheared_slices(tmp_path, drift):
    """A tilted gantry's slices begin `drift` mm farther on each; contours stay where the patient has them."""
    datasets = series_datasets(stored_values((7, 60, 90)), origin=ORIGIN, pixel=(0.8, 0.5))
    for number, dataset in enumerate(datasets):
        dataset.ImagePositionPatient = [ORIGIN[0], ORIGIN[1] + number * drift, ORIGIN[2] + 2 * number]
    target = open_dicom(save(datasets, tmp_path / "ct"), DicomOptions(fix_tilt=True))
    volume, _ = opened(tmp_path, [("liver", [circle(z, (-20.0, -8.0), 7) for z in range(1, 6)])], target)
    array = read(volume)
    assert np.flatnonzero(array.any(axis=(1, 2))).tolist() == [1, 2, 3, 4, 5]
    for index in range(1, 6):
        assert array[index].sum() == pytest.approx(np.pi * 49 / 0.4, rel=0.03)
        h, w = np.argwhere(array[index]).mean(axis=0)
        centre = LPS_TO_RAS @ target.space.affine @ [w, h, index, 1]
        np.testing.assert_allclose(centre[:2], [-20, -8], atol=0.1)


def test_an_implicit_file(tmp_path):
    expected = read(opened(tmp_path, [("liver", [circle(4)])])[0])
    path = structures([("liver", [circle(4), circle(4)[:1]])], tmp_path / "rs.dcm")
    stored = dcmread(path)
    stored.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    stored.save_as(path, implicit_vr=True, little_endian=True)
    volume, _ = open_labels(path, image())
    np.testing.assert_array_equal(read(volume), expected)
    assert volume.audit.warnings == ("ROI liver: 1 contour left out: 1 of one point",)


def test_contours_drawn_on_the_corrected_grid(tmp_path):
    target = interpolated(tmp_path, np.array([0, 2, 4, 8, 10, 14]))
    volume, _ = opened(tmp_path, [("liver", [circle(z, (-25.0, -14.0), 3 + z) for z in range(1, 7)])], target)
    for index, plane in enumerate(read(volume)):
        assert plane.sum() == pytest.approx(np.pi * (3 + index) ** 2 / 0.4 if 1 <= index <= 6 else 0, rel=0.06)


def test_contours_of_astronomic_size_cost_nothing(tmp_path):
    """A square of 10^14 mm round the image: the fill stays within the window."""
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 1e14
    began = time.process_time()
    assert fill([square], (0, 0), (50, 60)).all()
    assert time.process_time() - began < 1


def test_a_real_structure_set():
    """pydicom's: a phantom of 400 x 300 mm on three planes, and two isocentres, which are points."""
    affine = np.diag([4.0, 4.0, 10.0, 1.0])
    affine[:3, 3] = -300, -300, -400
    volume, table = open_labels(get_testdata_file("rtstruct.dcm"), Image(Space((80, 150, 150), LPS_TO_RAS @ affine)))
    array = read(volume)
    assert dict(table.names) == {"patient": 1}
    assert table.colour(1) == (220, 160, 120)
    assert array.sum() * 160.0 == 3 * 400 * 300 * 10
    assert np.flatnonzero(array.any(axis=(1, 2))).tolist() == [20, 21, 22]
    assert [dropped.name for dropped in volume.audit.dropped] == ["ROI Isocenter 1", "ROI Isocenter 2"]
