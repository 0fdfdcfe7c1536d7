"""Which mask is compared with which: prediction folders of nnU-Net, sets without images, names of all kinds."""

import json
import shutil

import pytest

from data_sets import NAMES, image, labels, nnunet_folder, save
from volseg.errors import VolumeError
from volseg.segmentation.pairing import pair_masks, passed_over


def names(pairs):
    return [(prediction.name, reference.name) for prediction, reference in pairs]


def masks(folder, *files):
    for file in files:
        save(folder / file, labels(0)[:2])
    return folder


def test_folders_as_nnunet_leaves_them(tmp_path):
    """A dataset.json beside predictions makes no data set of them."""
    description = {"channel_names": {"0": "CT"}, "labels": NAMES, "file_ending": ".nii.gz", "numTraining": 9}
    for side in ("a", "b"):
        masks(tmp_path / side, "x.nii.gz", "y.nii.gz")
        for file in ("dataset.json", "plans.json", "predict_from_raw_data_args.json", "summary.json"):
            (tmp_path / side / file).write_text(json.dumps(description))
        (tmp_path / side / "x.npz").touch()
    assert names(pair_masks(tmp_path / "a", tmp_path / "b")) == [("x.nii.gz", "x.nii.gz"), ("y.nii.gz", "y.nii.gz")]


@pytest.mark.parametrize("lost", ["all images", "one image", "the folder of images"])
def test_a_data_set_needs_no_images(tmp_path, lost):
    folder = nnunet_folder(tmp_path / "set", cases=2)
    shutil.copytree(folder / "labelsTr", tmp_path / "pred")
    if lost == "the folder of images":
        shutil.rmtree(folder / "imagesTr")
    else:
        for path in list((folder / "imagesTr").iterdir())[: 1 if lost == "one image" else 2]:
            path.unlink()
    assert len(pair_masks(tmp_path / "pred", folder)) == 2
    assert len(pair_masks(tmp_path / "pred", folder / "labelsTr")) == 2


@pytest.mark.parametrize(
    ("predicted", "true"),
    [
        ("case_0000.nii.gz", "case.nii"),
        ("case.nii", "case_0000.nii.gz"),
        ("case_0000_mask.nii.gz", "case_seg.nii.gz"),
        ("CASE.NII.GZ", "case.nii.gz"),
        ("case_seg.nii.gz", "case-label.nii"),
    ],
)
def test_names_that_can_only_mean_one_case_are_paired(tmp_path, predicted, true):
    masks(tmp_path / "pred", predicted.replace("NII.GZ", "nii.gz"), "other.nii.gz")
    if predicted.isupper():
        (tmp_path / "pred" / "CASE.nii.gz").rename(tmp_path / "pred" / predicted)
    masks(tmp_path / "ref", true, "other.nii.gz")
    assert (predicted, true) in names(pair_masks(tmp_path / "pred", tmp_path / "ref"))


def test_a_name_that_may_mean_two_cases_is_refused(tmp_path):
    masks(tmp_path / "pred", "case.nii.gz")
    masks(tmp_path / "ref", "case_seg.nii.gz", "Case.nii.gz")
    with pytest.raises(VolumeError, match=r"case.nii.gz: belongs to (case_seg|Case) or to (case_seg|Case)"):
        pair_masks(tmp_path / "pred", tmp_path / "ref", partial=True)


def test_masks_beside_their_scans_and_labels_beside_their_images(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "set" / f"{name}.nii.gz", image(0)[:2])
        masks(tmp_path / "set", f"{name}_labels.nii.gz", f"{name}_mask.nii.gz")
    expected = [("a_mask.nii.gz", "a_labels.nii.gz"), ("b_mask.nii.gz", "b_labels.nii.gz")]
    assert names(pair_masks(tmp_path / "set", tmp_path / "set")) == expected


def test_what_is_not_compared_is_said(tmp_path):
    folder = nnunet_folder(tmp_path / "set", cases=1)
    (folder / "labelsTr" / "case_9.mnc").touch()
    assert "case_9.mnc" in passed_over(folder)[0]
    assert passed_over(folder / "imagesTr") == []
