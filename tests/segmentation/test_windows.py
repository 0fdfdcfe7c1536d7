"""Sliding windows: where they lie, what they weigh, the same bits on any ranks, and the logits of a plain loop."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import nibabel as nib
import numpy as np
import pytest
import torch

from tiny import SERIAL, ct_like, digest, save_nifti, untrained_run
from volseg.distributed.communicator import Communicator
from volseg.errors import ConfigError, PartitionError
from volseg.models.origin import Origin
from volseg.models.stored import WEIGHTS, fold_path, load_model, load_tensors, save_tensors
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.segment import segment
from volseg.segmentation.windows.options import WindowOptions
from volseg.segmentation.windows.places import importance, window_boxes
from volseg.segmentation.windows.planning import grid_of_columns
from volseg.volumes.regions import Region

SHAPE = (21, 26, 19)
WINDOW = (8, 12, 8)


def imported(run, **values):
    """An untrained run whose model says that it comes from another tool."""
    folder = untrained_run(run)
    tensors, card = load_tensors(folder / WEIGHTS)
    origin = Origin(**({"tool": "nnunet", "source": "a test", "window": WINDOW, "order": "stored"} | values))
    save_tensors(folder / WEIGHTS, tensors, replace(card, origin=origin))
    for number in origin.folds[1:]:
        other = {name: tensor * (1 + 0.1 * number) for name, tensor in tensors.items()}
        save_tensors(fold_path(folder, number, origin.folds), other, replace(card, origin=origin))
    return folder


def starts(length: int, side: int, step: float) -> list[int]:
    """nnU-Net's `compute_steps_for_sliding_window`, for one axis."""
    count = int(np.ceil((length - side) / (side * step))) + 1
    apart = (length - side) / (count - 1) if count > 1 else 1e9
    return [int(np.round(apart * n)) for n in range(count)]


def gaussian(size: tuple[int, int, int]) -> np.ndarray:
    """nnU-Net's `compute_gaussian`, in half precision."""
    ndimage = pytest.importorskip("scipy.ndimage")
    spot = np.zeros(size)
    spot[tuple(n // 2 for n in size)] = 1
    found = ndimage.gaussian_filter(spot, [n / 8 for n in size], 0, mode="constant", cval=0)
    found = (found / (found.max() / 10)).astype(np.float16)
    found[found == 0] = found[found > 0].min()
    return found.astype(np.float32)


@pytest.mark.parametrize("size", [(8, 12, 8), (40, 64, 56), (5, 7, 1), (96, 96, 96)])
def test_weights_are_nnunets(size) -> None:
    expected = gaussian(size)
    np.testing.assert_allclose(importance(size), expected, rtol=1e-3)  # of half precision the last bit
    assert (importance(size) > 0).all()


@pytest.mark.parametrize("step", [0.5, 0.8, 1.0, 0.3])
@pytest.mark.parametrize("shape", [(21, 26, 19), (8, 12, 8), (9, 12, 100), (110, 64, 40)])
def test_windows_lie_where_nnunets_do(shape, step) -> None:
    expected = list(product(*(starts(n, side, step) for n, side in zip(shape, WINDOW, strict=True))))
    assert [box.start for box in window_boxes(shape, WINDOW, step)] == expected


def test_a_volume_thinner_than_the_window_lies_in_its_middle() -> None:
    (box,) = window_boxes((5, 12, 8), WINDOW, 0.5)
    assert (box.start, box.stop) == ((-1, 0, 0), (7, 12, 8))


def reference(model, x: np.ndarray, mirrored: tuple[int, ...] = ()) -> np.ndarray:
    """Logits [K, d, h, w] by the loop that nnU-Net runs, in single precision."""
    below = [(max(n, side) - n) // 2 for n, side in zip(x.shape[1:], WINDOW, strict=True)]
    ends = [(b, max(n, side) - n - b) for b, n, side in zip(below, x.shape[1:], WINDOW, strict=True)]
    padded = np.pad(x, [(0, 0), *ends])
    total = np.zeros((3, *padded.shape[1:]), np.float32)
    shares = np.zeros(padded.shape[1:], np.float32)
    weights = gaussian(WINDOW)
    choices = product((False, True), repeat=len(mirrored))
    flips = [[axis + 2 for axis, on in zip(mirrored, bits, strict=True) if on] for bits in choices]
    for start in product(*(starts(n, side, 0.5) for n, side in zip(padded.shape[1:], WINDOW, strict=True))):
        cut = tuple(slice(a, a + side) for a, side in zip(start, WINDOW, strict=True))
        patch = torch.from_numpy(padded[(slice(None), *cut)].copy())[None]
        with torch.no_grad():
            found = sum(model(patch.flip(axes)).flip(axes) for axes in flips) / len(flips)
        total[(slice(None), *cut)] += found[0].numpy() * weights
        shares[cut] += weights
    inside = tuple(slice(b, b + n) for b, n in zip(below, x.shape[1:], strict=True))
    return (total / shares)[(slice(None), *inside)]


def normalised(voxels: np.ndarray) -> np.ndarray:
    """What `untrained_run` does to CT, [1, d, h, w]."""
    return ((np.clip(voxels.astype(np.float32), -200, 300) - 20) / 150)[None]


def probabilities_of(path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj).transpose(3, 2, 1, 0)


@pytest.mark.parametrize("shape", [SHAPE, (5, 26, 7), (13, 9, 40)])
@pytest.mark.parametrize("mirrored", [(), (0, 2)])
def test_logits_are_those_of_a_plain_loop(shape, mirrored, tmp_path) -> None:
    run = imported(tmp_path / "run", mirrored=(0, 2))
    voxels = ct_like(shape)
    scan = save_nifti(tmp_path / "scan.nii.gz", voxels)
    view = WindowOptions(mirror=bool(mirrored))
    report = segment(SegmentationJob(scan, run, probabilities=True, view=view, report=tmp_path / "r.json"), SERIAL)
    model, _ = load_model(run)
    expected = torch.softmax(torch.from_numpy(reference(model, normalised(voxels), mirrored)), 0).numpy()
    got = probabilities_of(tmp_path / "scan_mask_probabilities.nii.gz")
    np.testing.assert_allclose(got, expected, atol=2e-3)
    mask = np.asarray(nib.load(tmp_path / "scan_mask.nii.gz").dataobj).T
    assert np.array_equal(mask, got.argmax(0))
    facts = json.loads((tmp_path / "r.json").read_text())["windows"]
    assert (facts["size"], facts["mirrored"]) == (list(WINDOW), list(mirrored))
    assert report.windows is not None
    assert report.seen == shape


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 1.3, 0.8)])
def test_the_same_bits_on_any_ranks(spacing, communicator: Communicator, shared) -> None:
    with communicator.together():
        if communicator.is_root:
            imported(shared / "model", cubic=True, crop=True, transpose=(1, 0, 2), folds=(0, 1), mirrored=(1,))
            voxels = np.pad(ct_like((14, 17, 13)), ((2, 1), (0, 3), (4, 0)))
            save_nifti(shared / "scan.nii.gz", voxels, np.diag([*spacing[::-1], 1.0]))
            for name, view in (("a", WindowOptions()), ("b", WindowOptions(mirror=True, folds="all", step=0.7))):
                job = SegmentationJob(
                    shared / "scan.nii.gz", shared / "model", shared / f"{name}.nii.gz", probabilities=True, view=view
                )
                segment(job, SERIAL)
    for name, view in (("a", WindowOptions()), ("b", WindowOptions(mirror=True, folds="all", step=0.7))):
        job = SegmentationJob(
            shared / "scan.nii.gz", shared / "model", shared / f"{name}_ranks.nii.gz", probabilities=True, view=view
        )
        segment(job, communicator)
        with communicator.together():
            if communicator.is_root:
                for ending in (".nii.gz", "_probabilities.nii.gz"):
                    assert digest(shared / f"{name}_ranks{ending}") == digest(shared / f"{name}{ending}")


def test_folds_average_logits(tmp_path) -> None:
    run = imported(tmp_path / "run", folds=(0, 1))
    voxels = ct_like(SHAPE)
    scan = save_nifti(tmp_path / "scan.nii.gz", voxels)
    segment(SegmentationJob(scan, run, probabilities=True, view=WindowOptions(folds="all")), SERIAL)
    both = [load_model(fold_path(run, fold, (0, 1)))[0] for fold in (0, 1)]
    mean = sum(reference(model, normalised(voxels)) for model in both) / 2
    got = probabilities_of(tmp_path / "scan_mask_probabilities.nii.gz")
    np.testing.assert_allclose(got, torch.softmax(torch.from_numpy(mean), 0).numpy(), atol=2e-3)


def test_regions_lie_on_top_of_each_other(tmp_path) -> None:
    run = imported(tmp_path / "run")
    tensors, card = load_tensors(run / WEIGHTS)
    regions = (Region("whole", (1, 2, 7), 1), Region("core", (2, 7), 7), Region("rest", (2,), 2))
    labels = {"background": 0, "edema": 1, "core": 7, "rest": 2}
    save_tensors(run / WEIGHTS, tensors, replace(card, regions=regions, labels=labels))
    scan = save_nifti(tmp_path / "scan.nii.gz", ct_like(SHAPE))
    segment(SegmentationJob(scan, run, probabilities=True), SERIAL)
    logits = reference(load_model(run)[0], normalised(ct_like(SHAPE)))
    expected = np.zeros(SHAPE, np.uint8)
    for values, region in zip(logits, regions, strict=True):
        expected[values > 0] = region.written
    mask = np.asarray(nib.load(tmp_path / "scan_mask.nii.gz").dataobj).T
    assert (mask == expected).mean() > 0.999
    shares = probabilities_of(tmp_path / "scan_mask_probabilities.nii.gz")
    np.testing.assert_allclose(shares, 1 / (1 + np.exp(-logits)), atol=2e-3)


def test_own_models_take_windows_only_where_asked(tmp_path) -> None:
    run = untrained_run(tmp_path / "run")
    scan = save_nifti(tmp_path / "scan.nii.gz", ct_like(SHAPE))
    assert segment(SegmentationJob(scan, run), SERIAL).windows is None
    windows = segment(
        SegmentationJob(scan, run, overwrite=True, view=WindowOptions(window=(12, 12, 12))), SERIAL
    ).windows
    assert windows is not None
    assert (windows.size, windows.step) == ((12, 12, 12), 0.5)


def test_whole_is_the_whole_volume_and_warns(tmp_path) -> None:
    run = imported(tmp_path / "run")
    scan = save_nifti(tmp_path / "scan.nii.gz", ct_like(SHAPE))
    report = segment(SegmentationJob(scan, run, view=WindowOptions(whole=True)), SERIAL)
    assert report.windows is None
    assert "train --from" in report.warnings[0]
    plain = untrained_run(tmp_path / "plain")
    segment(SegmentationJob(scan, plain, tmp_path / "plain.nii.gz"), SERIAL)
    masks = [np.asarray(nib.load(tmp_path / name).dataobj) for name in ("scan_mask.nii.gz", "plain.nii.gz")]
    assert np.array_equal(*masks)


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (WindowOptions(window=(10, 12, 8)), "multiples of 4, such as 8x12x8"),
        (WindowOptions(step=0.0), "above 0 and at most 1"),
        (WindowOptions(whole=True, window=WINDOW), "one of the two"),
        (WindowOptions(whole=True, mirror=True), "mirrored any axis"),
        (WindowOptions(whole=True, step=0.5), "goes with windows"),
        (WindowOptions(mirror=True), "mirrored any axis"),
        (WindowOptions(folds="some"), "all, first, or numbers"),
    ],
)
def test_what_cannot_be_is_refused(view, reason, tmp_path) -> None:
    run = imported(tmp_path / "run")
    scan = save_nifti(tmp_path / "scan.nii.gz", ct_like(SHAPE))
    with pytest.raises(ConfigError, match=reason):
        segment(SegmentationJob(scan, run, view=view), SERIAL)
    assert not (tmp_path / "scan_mask.nii.gz").exists()


def test_a_limit_that_windows_do_not_fit_is_refused_with_a_number(tmp_path) -> None:
    run = imported(tmp_path / "run")
    scan = save_nifti(tmp_path / "scan.nii.gz", ct_like(SHAPE))
    with pytest.raises(PartitionError, match=r"windows of 8x12x8 over .* need .* GiB a rank, more than"):
        segment(SegmentationJob(scan, run, memory_limit=2**20), SERIAL)


def test_planes_are_cut_into_the_most_even_columns() -> None:
    assert grid_of_columns("auto", (100, 512, 512), 4) == (1, 2, 2)
    assert grid_of_columns("auto", (100, 512, 512), 3) == (1, 1, 3)
    assert grid_of_columns("auto", (100, 2, 512), 8) == (1, 1, 8)
    with pytest.raises(PartitionError, match="along D"):
        grid_of_columns("2x1x1", (100, 512, 512), 2)
