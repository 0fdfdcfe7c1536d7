"""A DICOM SEG or RTSTRUCT against a NIfTI mask, or another SEG: on one grid, by the names of their labels."""

import json

import nibabel as nib
import numpy as np
import pytest

from dicom_files import series_datasets, stored_values
from label_sources import full_datasets, image_of, segmentation, structures
from tiny import SERIAL
from volseg.errors import VolumeError
from volseg.events import Caution
from volseg.segmentation.comparison import EvaluationJob, evaluate
from volseg.segmentation.mask_pair import joined
from volseg.volumes.volume import Space

SHAPE = (6, 15, 21)
NAMES = ["liver", "spleen"]


def masks():
    """What was drawn, and what was found: some voxels differ, and the frames of neither cover those of the other."""
    true = np.zeros(SHAPE, np.uint8)
    true[1:5, 3:9, 4:12], true[2:4, 10:13, 14:18] = 1, 2
    found = np.roll(true, 1, axis=0)
    return true, found


def dice(true, found, value):
    both = ((true == value) & (found == value)).sum()
    return 2 * both / ((true == value).sum() + (found == value).sum())


def nifti(path, array, datasets, order="as they are"):
    affine = image_of(datasets).space.affine
    stored = nib.Nifti1Image(np.ascontiguousarray(array.T), affine)
    if order != "as they are":
        stored = nib.as_closest_canonical(stored)
    nib.save(stored, path)
    return path


def seg(path, array, datasets, names=NAMES):
    segmentation(datasets, array, list(names)).save_as(path)
    return path


def compared(prediction, reference, labels=None):
    said = []
    names = None
    if labels is not None:
        names = prediction.parent / "names.json"
        names.write_text(json.dumps(labels))
    result = evaluate(EvaluationJob(prediction, reference, names), SERIAL, said.append)
    return result, [event.text for event in said if isinstance(event, Caution)]


@pytest.mark.parametrize("order", ["as they are", "canonical"])
@pytest.mark.parametrize("sides", ["SEG, NIfTI", "NIfTI, SEG", "SEG, SEG"])
def test_a_seg_is_compared_as_the_mask_that_it_is(tmp_path, sides, order):
    datasets = full_datasets(series_datasets(stored_values(SHAPE)))
    true, found = masks()
    paths = []
    for name, array, kind in zip(("pred", "ref"), (found, true), sides.split(", "), strict=True):
        if kind == "SEG":
            paths.append(seg(tmp_path / f"{name}.dcm", array, datasets))
        else:
            paths.append(nifti(tmp_path / f"{name}.nii.gz", array, datasets, order))
    result, said = compared(*paths, {"liver": 1, "spleen": 2})
    assert result.dice == {"liver": pytest.approx(dice(true, found, 1)), "spleen": pytest.approx(dice(true, found, 2))}
    assert said == []


def test_folders_of_seg_files_are_paired_by_name(tmp_path):
    datasets = full_datasets(series_datasets(stored_values(SHAPE)))
    true, found = masks()
    (tmp_path / "pred").mkdir()
    (tmp_path / "ref").mkdir()
    seg(tmp_path / "pred" / "a.dcm", found, datasets)
    nifti(tmp_path / "ref" / "a.nii.gz", true, datasets)
    assert compared(tmp_path / "pred", tmp_path / "ref")[0].dice["label 1"] == pytest.approx(dice(true, found, 1))
    assert len(compared(tmp_path / "pred", tmp_path / "ref" / "a.nii.gz")[0].cases) == 1  # a DICOM folder of one SEG


def test_labels_go_by_their_names_where_both_sides_have_them(tmp_path):
    datasets = full_datasets(series_datasets(stored_values(SHAPE)))
    true, found = masks()
    swapped = np.array([0, 2, 1], np.uint8)[found]
    prediction = seg(tmp_path / "pred.dcm", swapped, datasets, ("Spleen", "liver"))
    reference = nifti(tmp_path / "ref.nii.gz", true, datasets)
    result, said = compared(prediction, reference, {"liver": 1, "spleen": 2})
    assert result.dice["liver"] == pytest.approx(dice(true, found, 1))
    assert said == []
    result, said = compared(prediction, reference, {"liver": 1})
    assert result.dice == {"liver": pytest.approx(dice(true, found, 1))}
    assert "its labels Spleen are none of those compared, and left out" in said[0]
    _, said = compared(prediction, reference, {"kidney": 1, "lung": 2})
    assert "none of its labels (Spleen, liver) has a name that is compared; they go by their values" in said[0]


def test_a_structure_set_lies_on_the_other_mask_s_grid(tmp_path):
    datasets = full_datasets(series_datasets(stored_values(SHAPE)))
    true = np.zeros(SHAPE, np.uint8)
    true[1:5, 3:9, 4:12] = 1
    image = image_of(datasets)
    contours = []
    for d in range(1, 5):  # around the centres of rows 3..8 and columns 4..11
        corners = np.array([[w, h, d, 1] for h, w in ((2.5, 3.5), (2.5, 11.5), (8.5, 11.5), (8.5, 3.5))])
        contours.append((corners @ image.space.affine.T)[:, :3] * (-1, -1, 1))
    prediction = structures([("liver", contours)], tmp_path / "rt.dcm")
    result, _ = compared(prediction, nifti(tmp_path / "ref.nii.gz", true, datasets), {"liver": 1})
    assert result.dice == {"liver": 1.0}
    with pytest.raises(VolumeError, match="no grid to compare them on"):
        compared(prediction, prediction)


def test_slices_of_both_are_joined():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    above = affine.copy()
    above[2, 3] = 6.0
    space = joined(Space((5, 4, 4), affine), Space((5, 4, 4), above))
    assert space.shape == (8, 4, 4)
    np.testing.assert_allclose(space.affine, affine)
    space = joined(Space((5, 4, 4), above), Space((5, 4, 4), affine))
    assert space.shape == (8, 4, 4)
    np.testing.assert_allclose(space.affine, affine)
    assert joined(Space((5, 4, 4), above), Space((5, 4, 3), affine)).shape == (5, 4, 4)


def test_a_seg_of_another_scan_says_what_brings_it_there(tmp_path):
    datasets = full_datasets(series_datasets(stored_values(SHAPE)))
    true, found = masks()
    reference = nifti(tmp_path / "ref.nii.gz", true, datasets)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE[::-1], np.uint8), np.diag([3.0, 3.0, 3.0, 1.0])), reference)
    prediction = seg(tmp_path / "pred.dcm", found, datasets)
    with pytest.raises(VolumeError, match=r"compare masks of one scan.*ingest SCAN .*--labels .*--resample-labels$"):
        compared(prediction, reference)
