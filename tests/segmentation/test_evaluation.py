"""Agreement of masks: figures against plain set arithmetic, nnU-Net's summary, pairing by name."""

import json
from math import isnan

import numpy as np
import pytest

from volseg.distributed.communicator import SerialCommunicator
from volseg.errors import VolumeError
from volseg.segmentation.evaluation import compare, foreground_labels, summarise, write_summary
from volseg.segmentation.pairing import pair_masks
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Space
from volseg.volumes.writing import write_volume

SHAPE = (37, 9, 11)  # several slabs, the last one short
AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def save(path, array, affine=AFFINE):
    write_volume(
        path,
        Space(array.shape, affine),
        array.dtype,
        lambda units: None if units[0] is None else array[units[0].box.slices],
        SerialCommunicator(),
    )
    return path


@pytest.fixture
def masks(tmp_path):
    rng = np.random.default_rng(1)
    reference = rng.integers(0, 4, size=SHAPE).astype(np.uint8)
    prediction = np.where(rng.uniform(size=SHAPE) < 0.7, reference, rng.integers(0, 4, size=SHAPE)).astype(np.uint8)
    save(tmp_path / "pred.nii.gz", prediction)
    save(tmp_path / "ref.nii.gz", reference)
    return tmp_path, prediction, reference


def compare_files(prediction, reference):
    return compare(open_volume(prediction), open_volume(reference))


def test_figures_are_those_of_the_sets(masks):
    folder, prediction, reference = masks
    case = compare_files(folder / "pred.nii.gz", folder / "ref.nii.gz")
    assert foreground_labels([case]) == [1, 2, 3]
    assert case.voxel_ml == pytest.approx(0.02)
    for label in range(4):
        p, r = prediction == label, reference == label
        both, either = np.count_nonzero(p & r), np.count_nonzero(p | r)
        assert case.metrics(label) == {
            "Dice": pytest.approx(2 * both / (p.sum() + r.sum())),
            "IoU": pytest.approx(both / either),
            "TP": both,
            "FP": np.count_nonzero(p & ~r),
            "FN": np.count_nonzero(~p & r),
            "TN": np.count_nonzero(~p & ~r),
            "n_pred": p.sum(),
            "n_ref": r.sum(),
        }


def test_formats_and_types_do_not_matter(masks):
    folder, prediction, _ = masks
    save(folder / "pred.zarr", prediction.astype(np.int32))
    save(folder / "float.nii", prediction.astype(np.float32))
    expected = compare_files(folder / "pred.nii.gz", folder / "ref.nii.gz").confusion
    for name in ("pred.zarr", "float.nii"):
        np.testing.assert_array_equal(compare_files(folder / name, folder / "ref.nii.gz").confusion, expected)


def test_a_label_in_neither_mask_is_nan_and_left_out_of_the_mean(masks):
    folder, _, _ = masks
    case = compare_files(folder / "pred.nii.gz", folder / "ref.nii.gz")
    absent = case.metrics(9)
    assert isnan(absent["Dice"])
    assert isnan(absent["IoU"])
    assert absent["TN"] == np.prod(SHAPE)
    with_absent, without = (summarise([case], labels) for labels in ([1, 2, 9], [1, 2]))
    assert with_absent["foreground_mean"]["Dice"] == without["foreground_mean"]["Dice"]


def test_a_label_in_one_mask_only_scores_zero(tmp_path):
    one = np.zeros((4, 4, 4), np.uint8)
    one[0, 0, 0] = 5
    case = compare_files(save(tmp_path / "p.nii", one), save(tmp_path / "r.nii", np.zeros_like(one)))
    assert case.metrics(5)["Dice"] == 0.0
    assert case.metrics(5)["FP"] == 1


def test_summary_has_nnunets_schema(masks):
    folder, _, _ = masks
    cases = [
        compare_files(folder / "pred.nii.gz", folder / "ref.nii.gz"),
        compare_files(folder / "ref.nii.gz", folder / "ref.nii.gz"),
    ]
    write_summary(folder / "summary.json", summarise(cases, [1, 2]))
    summary = json.loads((folder / "summary.json").read_text())
    keys = {"Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref"}
    assert set(summary) == {"foreground_mean", "mean", "metric_per_case"}
    assert set(summary["foreground_mean"]) == keys
    assert set(summary["mean"]) == {"1", "2"}
    assert len(summary["metric_per_case"]) == 2
    for entry in summary["metric_per_case"]:
        assert set(entry) == {"metrics", "prediction_file", "reference_file"}
        assert {k: set(v) for k, v in entry["metrics"].items()} == {"1": keys, "2": keys}
    dice = [cases[0].metrics(k)["Dice"] for k in (1, 2)]
    assert summary["mean"]["1"]["Dice"] == pytest.approx((dice[0] + 1) / 2)
    assert summary["foreground_mean"]["Dice"] == pytest.approx((sum(dice) / 2 + 1) / 2)


def test_masks_of_different_grids_are_refused(tmp_path):
    mask = np.zeros((4, 5, 6), np.uint8)
    a = save(tmp_path / "a.nii", mask)
    with pytest.raises(VolumeError, match=r"a\.nii: a prediction of 4x5x6 voxels .*, but .*b\.nii has 4x5x7; compare"):
        compare_files(a, save(tmp_path / "b.nii", np.zeros((4, 5, 7), np.uint8)))
    moved = AFFINE.copy()
    moved[0, 3] = 1.0
    with pytest.raises(VolumeError, match="but at another place: up to 1 mm off"):
        compare_files(a, save(tmp_path / "c.nii", mask, moved))


@pytest.mark.parametrize(
    ("value", "dtype", "message"), [(0.5, np.float32, "fractions"), (3000, np.int16, "an image"), (-1, np.int16, "-1")]
)
def test_an_image_is_no_mask(tmp_path, value, dtype, message):
    mask = np.zeros((4, 5, 6), np.uint8)
    image = mask.astype(dtype)
    image[3, 2, 1] = value
    with pytest.raises(VolumeError, match=message):
        compare_files(save(tmp_path / "p.nii", image), save(tmp_path / "r.nii", mask))


@pytest.fixture
def folders(tmp_path):
    """Predictions as volseg names them by default, references as nnU-Net does."""
    for name in ("pred/a_0000_mask.nii.gz", "pred/b.nii", "pred/c_mask.zarr/x", "pred/b_probabilities.nii.gz",
                 "ref/a.nii.gz", "ref/b.nii.gz", "ref/c.nii.gz", "ref/.a.nii.gz"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "pred", tmp_path / "ref"


def test_folders_are_paired_by_name(folders):
    pred, ref = folders
    assert pair_masks(pred, ref) == [
        (pred / "a_0000_mask.nii.gz", ref / "a.nii.gz"),
        (pred / "b.nii", ref / "b.nii.gz"),
        (pred / "c_mask.zarr", ref / "c.nii.gz"),
    ]


def test_unpaired_masks_are_named(folders):
    pred, ref = folders
    (ref / "d.nii.gz").touch()
    with pytest.raises(VolumeError, match="no prediction for 1 of 4 references, the first is d"):
        pair_masks(pred, ref)
    assert len(pair_masks(pred, ref, partial=True)) == 3
    (pred / "e.nii.gz").touch()
    with pytest.raises(VolumeError, match=r"e\.nii\.gz: no reference of that name"):
        pair_masks(pred, ref, partial=True)
    (pred / "e.nii.gz").unlink()
    (pred / "b_mask.nii.gz").touch()
    with pytest.raises(VolumeError, match="both belong to"):
        pair_masks(pred, ref, partial=True)


def test_a_file_is_not_compared_with_a_folder(folders):
    pred, ref = folders
    with pytest.raises(VolumeError, match="two masks or two folders"):
        pair_masks(pred / "b.nii", ref)
    with pytest.raises(VolumeError, match="no such file"):
        pair_masks(pred / "none.nii", ref)
    assert pair_masks(pred / "b.nii", ref / "a.nii.gz") == [(pred / "b.nii", ref / "a.nii.gz")]


def test_a_folder_without_masks_is_named(tmp_path, folders):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolumeError, match="holds no mask"):
        pair_masks(tmp_path / "empty", folders[1])


def test_voxels_that_nobody_labelled_do_not_count(tmp_path):
    true, found = (np.random.default_rng(seed).integers(0, 3, SHAPE).astype(np.uint8) for seed in (0, 1))
    true[:, 4:] = 9
    case = compare(
        open_volume(save(tmp_path / "pred.nii.gz", found)), open_volume(save(tmp_path / "ref.nii.gz", true)), 9
    )
    assert case.found_labels == {0, 1, 2}
    tp = ((true == 1) & (found == 1)).sum()
    n_pred, n_ref = (found[:, :4] == 1).sum(), (true == 1).sum()
    assert case.metrics(1)["Dice"] == pytest.approx(2 * tp / (n_pred + n_ref))
    assert case.confusion.sum() == (true != 9).sum()


def test_masks_in_different_voxel_orders_are_compared(masks):
    folder, prediction, _ = masks
    flipped = AFFINE.copy()
    flipped[1, 1], flipped[1, 3] = -2.0, 2.0 * (SHAPE[1] - 1)
    save(folder / "turned.nii.gz", np.ascontiguousarray(prediction[:, ::-1]), flipped)
    expected = compare_files(folder / "pred.nii.gz", folder / "ref.nii.gz").confusion
    np.testing.assert_array_equal(compare_files(folder / "turned.nii.gz", folder / "ref.nii.gz").confusion, expected)
