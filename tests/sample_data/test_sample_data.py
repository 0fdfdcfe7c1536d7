"""The sample data in the repository: what its script makes, and readable as what the README says."""

import sys
from pathlib import Path

import numpy as np
import pytest

from volseg.geometry import Box
from volseg.volumes.checks import check_same_grid
from volseg.volumes.dataset import check_labels, read_dataset
from volseg.volumes.reading import open_volume

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
SERIES, SERIES_LABELS = SAMPLES / "phantom_dicom", SAMPLES / "phantom_dicom_labels.nii.gz"


def read(path):
    volume = open_volume(path)
    return volume.read(Box.whole(volume.shape))


@pytest.fixture(scope="module")
def phantom():
    """The script's module."""
    sys.path.insert(0, str(SAMPLES))
    try:
        import phantom

        yield phantom
    finally:
        sys.path.remove(str(SAMPLES))


@pytest.mark.parametrize(("name", "cases"), [("phantom", 4), ("ellipsoids", 4)])
def test_data_sets_read_and_every_case_holds_every_label(name, cases):
    dataset = read_dataset(SAMPLES / name)
    assert len(dataset.cases) == cases
    seen = set()
    for case in dataset.cases:
        check_same_grid(case.images[0].open(), open_volume(case.label))
        labels = read(case.label)
        check_labels(labels, dataset.labels, case.label)
        seen |= set(np.unique(labels).tolist())
        if name == "phantom":
            assert len(np.unique(labels)) == len(dataset.labels)
    assert seen == set(dataset.labels.values())


def test_the_series_lies_on_its_labels_grid_for_volseg_and_simpleitk():
    itk = pytest.importorskip("SimpleITK")
    assert open_volume(SERIES).space.matches(open_volume(SERIES_LABELS).space)
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(SERIES)))
    series, labels = reader.Execute(), itk.ReadImage(str(SERIES_LABELS))
    assert series.GetSize() == labels.GetSize()
    for part in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(series, part)(), getattr(labels, part)(), atol=1e-4)
    np.testing.assert_array_equal(itk.GetArrayFromImage(series), read(SERIES))


def test_the_series_is_the_phantom_that_was_never_trained_on(phantom):
    image, labels = phantom.make_phantom(4)
    assert np.abs(read(SERIES).astype(int) - image).max() <= 1  # another libm may round another way
    assert np.count_nonzero(read(SERIES_LABELS) != labels) < 20
    for case in read_dataset(SAMPLES / "phantom").cases:
        assert np.count_nonzero(read(case.label) != labels) > 5_000


def test_tissues_have_their_hounsfield_units(phantom):
    image, labels = read(SERIES), read(SERIES_LABELS)
    for name, expected in (("lungs", phantom.LUNG), ("liver", phantom.LIVER), ("spleen", phantom.SPLEEN)):
        assert np.median(image[labels == phantom.LABELS[name]]) == pytest.approx(expected, abs=25)
    assert 200 < np.median(image[labels == phantom.LABELS["spine"]]) < 500
    assert np.median(image[:, 0]) == pytest.approx(phantom.AIR, abs=5)


def test_the_liver_lies_on_the_patients_right(phantom):
    """In patient coordinates, whatever the storage order: liver right of the spleen, spine behind the lungs."""
    volume = open_volume(SERIES_LABELS)
    labels = read(SERIES_LABELS)

    def centre(name):
        k, j, i = (index.mean() for index in np.nonzero(labels == phantom.LABELS[name]))
        return (volume.space.affine @ [i, j, k, 1])[:3]  # RAS+

    assert centre("liver")[0] > 20 > -20 > centre("spleen")[0]
    assert centre("spine")[1] < centre("lungs")[1] - 30
    assert centre("lungs")[2] > centre("liver")[2] + 50


def test_it_stays_small():
    assert sum(p.stat().st_size for p in SAMPLES.rglob("*") if p.is_file()) < 8e6
