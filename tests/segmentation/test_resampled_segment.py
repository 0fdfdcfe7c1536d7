"""Segmenting at the model's spacing: classes back on the scanner's grid, the same bits on any ranks and by any slab."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import SERIAL, ct_like, root_listings, save_nifti, untrained_run
from volseg.distributed.grid import ProcessGrid
from volseg.events import Caution
from volseg.geometry import Box
from volseg.models.bringing_back import bring_back
from volseg.models.stored import load_model
from volseg.nn.kernels.convolution import convolve
from volseg.partition.layout import Layout, padded_shape
from volseg.segmentation.filling import softmax
from volseg.segmentation.inference import segment_block
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.opening import open_scan
from volseg.segmentation.scan_image import ScanImage
from volseg.segmentation.segment import segment
from volseg.segmentation.verification import verify_partition
from volseg.volumes.interpolation import AxisMap, interpolate_axes
from volseg.volumes.resampling import axis_maps, resampled_space
from volseg.volumes.scan import lay_out, mask_boxes
from volseg.volumes.volume import Space
from volseg.volumes.writing import write_volume

# Finer than the model's 1 mm along one axis, coarser along another, equal (to 1 %) along the third; two flips.
MIXED = np.array([[-0.6, 0, 0, 9.0], [0, -1.004, 0, 4], [0, 0, 2.3, 1], [0, 0, 0, 1]])
SHAPE = (7, 17, 23)


def maps_between(native, model):
    return [
        AxisMap.of((m - 1) / 2 + (np.arange(n) - (n - 1) / 2) * m / n, m) for n, m in zip(native, model, strict=True)
    ]


def head(classes, channels=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(classes, channels, 1, 1, 1, generator=generator), torch.randn(classes, generator=generator)


def features(shape, channels=4):
    values = torch.randn(1, channels, *shape, generator=torch.Generator().manual_seed(2))
    return values.contiguous(memory_format=torch.channels_last_3d)


def whole_reference(x, weight, bias, maps):
    """Logits of the whole volume, each class interpolated at once."""
    logits = convolve(x, weight, bias, (1, 1, 1), (1, 1, 1), 1)[0].contiguous().numpy()
    return np.stack([interpolate_axes(values, maps) for values in logits])


@settings(deadline=None, max_examples=30)
@given(
    native=st.tuples(*[st.integers(1, 14)] * 3),
    model=st.tuples(*[st.integers(1, 9)] * 3),
    classes=st.sampled_from([2, 3, 11]),
    slab=st.sampled_from([1, 60, 2**20]),
)
def test_slab_by_slab_is_the_whole_bit_for_bit(native, model, classes, slab):
    weight, bias = head(classes)
    maps = maps_between(native, model)
    x = features(model)
    mask, kept = np.full(native, 99, np.uint8), np.full((classes, *native), np.nan, np.float32)
    bring_back(x, weight, bias, maps, mask, kept, slab_values=slab)
    expected = whole_reference(x, weight, bias, maps)
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(mask, expected.argmax(0))


def test_linear_interpolation_agrees_with_torch_s():
    x, (weight, bias) = features((6, 7, 8)), head(5)
    mask, kept = np.empty((12, 14, 16), np.uint8), np.empty((5, 12, 14, 16), np.float32)
    bring_back(x, weight, bias, maps_between(mask.shape, x.shape[2:]), mask, kept)
    logits = torch.nn.functional.conv3d(x, weight, bias)
    theirs = torch.nn.functional.interpolate(logits, scale_factor=2, mode="trilinear", align_corners=False)[0]
    np.testing.assert_allclose(kept, theirs.numpy(), atol=1e-5)


def test_equal_logits_go_to_the_smaller_class():
    weight, bias = torch.zeros(4, 4, 1, 1, 1), torch.tensor([0.0, 2.0, 2.0, 1.0])
    mask = np.empty((5, 5, 5), np.uint8)
    bring_back(features((3, 3, 3)), weight, bias, maps_between((5, 5, 5), (3, 3, 3)), mask)
    assert (mask == 1).all()


def test_more_than_256_classes():
    weight, bias = torch.zeros(300, 4, 1, 1, 1), torch.arange(300.0)
    mask = np.empty((2, 2, 2), np.uint16)
    bring_back(features((3, 3, 3)), weight, bias, maps_between((2, 2, 2), (3, 3, 3)), mask)
    assert (mask == 299).all()


@settings(deadline=None, max_examples=50)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.3, 0.77, 1.0, 1.5, 6.0])] * 3),
    dims=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_the_ranks_boxes_tile_the_mask_and_lie_where_their_blocks_do(shape, spacing, dims):
    native = Space(shape, np.diag([1.0, 1, 1, 1]))
    seen = resampled_space(native, spacing)
    padded = tuple(max(n, 4 * p) for n, p in zip(padded_shape(seen.shape, 4), dims, strict=True))
    layout, back = Layout.even(padded, dims, 4), axis_maps(seen, native)
    times = np.zeros(shape, dtype=int)
    for block, box in zip(layout.blocks(), mask_boxes(layout, shape, back), strict=True):
        assert Box.whole(shape).contains(box)
        times[box.slices] += 1
        if box.size:
            for axis, cut, first, last in zip(back, box.slices, block.start, block.stop, strict=True):
                assert first <= axis.low[cut].min()
                assert axis.low[cut].max() < last
    assert (times == 1).all()


def both_ways(shared, communicator, affine, shape, partition="auto", **options):
    """Digests of all that is written: by the root alone, and by all ranks."""
    job = SegmentationJob(shared / "scan.nii.gz", shared / "run", shared / "many" / "m.nii.gz", partition, **options)
    with communicator.together():
        if communicator.is_root:
            save_nifti(job.scan, ct_like(shape), affine)
            for name in ("one", "many"):
                shutil.rmtree(shared / name, ignore_errors=True)
                (shared / name).mkdir()
            segment(replace(job, output=shared / "one" / "m.nii.gz", partition="auto"), SERIAL)
    segment(job, communicator)
    return root_listings(communicator, shared / "one", shared / "many")


@pytest.mark.parallel([2, 3, 4, 8])
@pytest.mark.parametrize("spacing", ["model", (0.9, 1.7, 0.4)])
def test_masks_and_probabilities_have_the_same_bytes_on_any_number_of_ranks(shared, communicator, spacing):
    one, many = both_ways(
        shared, communicator, MIXED, SHAPE, spacing=spacing, probabilities=True, statistics=True, preview=True
    )
    assert len(one) == 4
    assert one == many


@pytest.mark.parallel(4)
@pytest.mark.parametrize("partition", ["4x1x1", "2x1x2"])
def test_the_grid_makes_no_difference(shared, communicator, partition):
    """A mask much coarser than what the network sees: some ranks have little of it, or nothing."""
    one, many = both_ways(shared, communicator, np.diag([4.0, 4.0, 9.0, 1]), (2, 4, 5), partition)
    assert one == many


@pytest.mark.parallel([1, 2, 4])
def test_partitioned_logits_are_compared_on_the_model_s_grid(shared, communicator):
    with communicator.together():
        if communicator.is_root:
            save_nifti(shared / "scan.nii", ct_like(SHAPE), MIXED)
    found = verify_partition(shared / "run", shared / "scan.nii", "auto", communicator)
    assert (found.largest_difference, found.mismatches, found.identical) == (0.0, 0, True)
    assert found.voxels == 16 * 17 * 14


@pytest.fixture
def run(tmp_path):
    return untrained_run(tmp_path / "run")


def test_the_mask_lies_on_the_scan_s_grid_and_is_that_of_the_whole_reference(tmp_path, run):
    scan = save_nifti(tmp_path / "scan.nii", ct_like(SHAPE), MIXED)
    mask_file, probability_file = segment(SegmentationJob(scan, run, probabilities=True), SERIAL).files
    mask, image = nib.load(mask_file), nib.load(scan)
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-6)
    found = nib.as_closest_canonical(mask)
    model, card = load_model(run)
    laid_out, grid = open_scan(scan, card, "auto", SERIAL)
    assert laid_out.space.shape == (16, 17, 14)
    assert laid_out.space.spacing == pytest.approx((1, 1.004, 1))
    x = seen_by_network(laid_out, card, grid)
    with torch.inference_mode():
        logits = model(x)[0, :, :16, :17, :14].contiguous().numpy()
    expected = np.stack([interpolate_axes(values, laid_out.back) for values in logits])
    first, second = np.sort(expected, axis=0)[:-3:-1]
    clear = first - second > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(found.dataobj).T[clear], expected.argmax(0)[clear])
    assert len(np.unique(np.asarray(mask.dataobj))) > 1
    values = np.asarray(nib.as_closest_canonical(nib.load(probability_file)).dataobj).T
    np.testing.assert_allclose(values, softmax(expected), atol=1e-4)


def test_nothing_is_resampled_within_one_per_cent_or_when_not_asked(tmp_path, run):
    model, card = load_model(run)
    near = save_nifti(tmp_path / "near.nii", ct_like(), np.diag([1.009, 0.992, 1.0, 1]))
    far = save_nifti(tmp_path / "far.nii", ct_like(), MIXED)
    for path, spacing in ((near, "model"), (far, "native")):
        scan, grid = open_scan(path, card, "auto", SERIAL, spacing)
        assert scan.back is None
        assert scan.channels is scan.images
        assert segment_block(model, scan, card, grid).mask.shape == scan.native.shape == scan.space.shape
    scan, _ = open_scan(far, card, "auto", SERIAL)
    assert scan.channels[0].audit.fixes == ("resampled from 2.3x1.004x0.6 to 1x1.004x1 mm, linear",)


def test_only_a_scan_left_at_another_spacing_is_warned_of(tmp_path, run):
    scan = save_nifti(tmp_path / "scan.nii", ct_like(), np.diag([1.0, 1.0, 3.0, 1.0]))
    for spacing, warnings in (("model", 0), ("native", 1)):
        events = []
        segment(SegmentationJob(scan, run, overwrite=True, spacing=spacing), SERIAL, events.append)
        assert sum(isinstance(event, Caution) for event in events) == warnings


def test_ingesting_at_the_spacing_first_shows_the_network_the_same_voxels(tmp_path, run):
    from volseg.volumes.reading import open_volume
    from volseg.volumes.resampling import resampled

    scan = save_nifti(tmp_path / "scan.nii.gz", ct_like(SHAPE), np.diag([0.6, 0.7, 2.3, 1.0]))
    volume = open_volume(scan)
    view = resampled(volume, resampled_space(volume.space, (1, 1, 1)), "linear")
    copy = tmp_path / "copy.zarr"
    write_volume(copy, view.space, view.dtype, lambda units: view.read(units[0].box), SERIAL)
    _, card = load_model(run)
    inputs = [seen_by_network(*_laid_out(path, card)) for path in (scan, copy)]
    assert torch.equal(*inputs)


def seen_by_network(scan, card, grid):
    """The network's input [1, C, d, h, w] on one rank."""
    rows = ScanImage(scan, card, grid, width=0).planes((0, scan.block.shape[0]), 0)
    return rows.permute(3, 0, 1, 2).unsqueeze(0).contiguous()


def _laid_out(path, card):
    scan, grid = open_scan(path, card, "auto", SERIAL)
    return scan, card, grid


def ball(space, radius):
    d, h, w = np.ogrid[tuple(slice(n) for n in space.shape)]
    z, y, x = (a * s + o for a, s, o in zip((d, h, w), space.spacing, space.affine[2::-1, 3], strict=True))
    return radius - np.sqrt(z**2 + y**2 + x**2)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_a_sphere_seen_at_3_mm_comes_back_rounder_than_by_the_nearest_voxel():
    native = Space((41, 41, 41), np.array([[1.0, 0, 0, -20.0], [0, 1, 0, -19.7], [0, 0, 1, -20.2], [0, 0, 0, 1]]))
    seen = resampled_space(native, (3, 3, 3))
    field = torch.from_numpy(ball(seen, 14.0)).float()[None, None]
    maps = axis_maps(seen, native)
    mask = np.empty(native.shape, np.uint8)
    bring_back(field, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1), torch.zeros(2), maps, mask)
    truth, nearest = ball(native, 14.0) > 0, field[0, 0].numpy()[np.ix_(*(axis.nearest for axis in maps))] > 0
    assert dice(mask == 1, truth) > 0.98
    assert 1 - dice(mask == 1, truth) < 0.4 * (1 - dice(nearest, truth))


def test_a_scan_of_two_channels_is_resampled_alike(tmp_path):
    run = untrained_run(tmp_path / "run", channels=("CT", "PET"))
    for channel in (0, 1):
        save_nifti(tmp_path / f"case_000{channel}.nii", ct_like(SHAPE, seed=channel), MIXED)
    job = SegmentationJob(tmp_path / "case_0000.nii", run, report=tmp_path / "r.json")
    assert nib.load(segment(job, SERIAL).files[0]).shape == SHAPE[::-1]
    assert json.loads(job.report.read_text())["grid"] == [1, 1, 1]
    grid = ProcessGrid(SERIAL, (1, 1, 1))
    from volseg.volumes.image_file import ImageFile
    from volseg.volumes.scan import open_channels

    files = [ImageFile(tmp_path / f"case_000{n}.nii") for n in (0, 1)]
    scan = lay_out(open_channels(files), grid, 4, (1, 1, 1))
    assert [view.shape for view in scan.channels] == [(16, 17, 14)] * 2
