"""Whole-volume segmentation: the same bytes on any number of ranks, on the scan's own grid, for every kind of scan."""

import csv
import errno
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tiny import SERIAL, SHAPE, ct_like, digest, root_listings, save_nifti, untrained_run
from volseg.errors import PartitionError, VolumeError
from volseg.events import Caution
from volseg.segmentation.job import SegmentationJob, channel_files, mask_path, plan_outputs
from volseg.segmentation.postprocessing import Cleaning
from volseg.segmentation.report import write_report
from volseg.segmentation.scale import SLICES
from volseg.segmentation.segment import segment
from volseg.segmentation.verification import verify_partition
from volseg.volumes import planes_output
from volseg.volumes.image_file import ImageFile
from volseg.volumes.inflate import SeekableGzip
from volseg.volumes.label_files import label_table_of
from volseg.volumes.label_table import LabelTable
from volseg.volumes.nifti import output as nifti_output
from volseg.volumes.nifti import reading
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Space
from volseg.volumes.writing import write_volume

REPOSITORY = Path(__file__).resolve().parents[2]
# Voxel axes (i, j, k) run to the patient's Inferior, Left, Posterior: permuted and flipped against RAS+; spacing 1.
ILP = np.array([[0, -1, 0, 50], [0, 0, -1, -20], [-1, 0, 0, 30], [0, 0, 0, 1.0]])


@pytest.fixture
def run(tmp_path):
    return untrained_run(tmp_path / "run")


def save_zarr(path, array, affine):
    space = Space(array.shape, affine)
    write_volume(path, space, array.dtype, lambda units: array[units[0].box.slices], SERIAL)
    return path


def both_ways(shared, communicator, scan, suffix, **options):
    """Digests of all that is written: by the root alone, and by all ranks."""
    job = SegmentationJob(scan, shared / "run", shared / "many" / f"m{suffix}", **options)
    with communicator.together():
        if communicator.is_root:
            for name in ("one", "many"):
                shutil.rmtree(shared / name, ignore_errors=True)
                (shared / name).mkdir()
            segment(replace(job, output=shared / "one" / f"m{suffix}"), SERIAL)
    segment(job, communicator)
    return root_listings(communicator, shared / "one", shared / "many")


@pytest.mark.parallel([2, 3, 4, 8])
@pytest.mark.parametrize("suffix", [".nii.gz", ".zarr"])
def test_mask_and_probabilities_have_the_same_bytes_on_any_number_of_ranks(shared, communicator, suffix):
    scan = shared / "scan.nii.gz"
    with communicator.together():
        if communicator.is_root:
            save_nifti(scan, ct_like(), ILP)
    one, many = both_ways(shared, communicator, scan, suffix, probabilities=True, statistics=True, preview=True)
    assert {f"m{suffix}", f"m_probabilities{suffix}", "m_statistics.csv", "m_preview.png"} <= set(one)
    assert one == many


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_other_networks_have_the_same_bytes_too(shared, communicator, norm):
    from tiny import MODEL
    from volseg.config import Config
    from volseg.models.stored import WEIGHTS, load_model, save_tensors
    from volseg.models.unet import UNet

    with communicator.together():
        if communicator.is_root:
            _, card = load_model(shared / "run")
            up = {"group": "trilinear", "batch": "nearest", "none": "transpose"}[norm]
            model = UNet(replace(MODEL.for_data(1, 3), norm=norm, up=up, base_channels=8, kernel_size=5))
            save_tensors(
                shared / "run" / WEIGHTS, model.state_dict(), replace(card, config=Config(model.config), network=None)
            )
            save_nifti(shared / "scan.nii", ct_like())
    one, many = both_ways(shared, communicator, shared / "scan.nii", ".nii", probabilities=True)
    assert one == many


@pytest.mark.parallel(4)
@pytest.mark.parametrize("partition", ["4x1x1", "1x4x1", "1x2x2"])
def test_the_grid_makes_no_difference(shared, communicator, partition):
    with communicator.together():
        if communicator.is_root:
            save_nifti(shared / "scan.nii", ct_like())
    one, many = both_ways_of_grids(shared, communicator, partition)
    assert one == many


def both_ways_of_grids(shared, communicator, partition):
    scan = shared / "scan.nii"
    with communicator.together():
        if communicator.is_root:
            segment(SegmentationJob(scan, shared / "run", shared / "one.nii"), SERIAL)
    segment(SegmentationJob(scan, shared / "run", shared / "many.nii", partition=partition), communicator)
    return digest(shared / "one.nii"), digest(shared / "many.nii")


@pytest.mark.parallel([1, 2, 4])
def test_each_rank_reads_its_block_and_a_voxel_around_it_slab_by_slab(shared, communicator, monkeypatch):
    from volseg.volumes import stored

    monkeypatch.setattr("volseg.partition.slabs._ROLLING_FLOATS", 1)
    with communicator.together():
        if communicator.is_root:
            save_nifti(shared / "scan.nii", ct_like())
    boxes, original = [], stored.PlainVolume.read

    def read(self, box):
        boxes.append(box)
        return original(self, box)

    monkeypatch.setattr(stored.PlainVolume, "read", read)
    segment(SegmentationJob(shared / "scan.nii", shared / "run", partition=f"1x{communicator.size}x1"), communicator)
    sampled, boxes = boxes[:-2], boxes[-2:]  # before the network, whether values are Hounsfield units
    assert {box.shape[0] for box in sampled} <= {1}
    assert sum(communicator.gather_all(len(sampled))) == min(SLICES, SHAPE[0])
    assert [box.shape[0] for box in boxes] == [9, 4]  # planes of a slab and one behind it; no plane twice
    assert [box.start[0] for box in boxes] == [0, 9]
    own = {(box.start[1:], box.stop[1:]) for box in boxes}
    assert len(own) == 1
    ((h0, _), (h1, w1)) = own.pop()
    assert w1 == SHAPE[2]
    ends = communicator.gather_all((h0, h1))
    assert (ends[0][0], ends[-1][1]) == (0, SHAPE[1])
    assert all(before[1] - after[0] == 2 for before, after in pairwise(ends))


@pytest.mark.parallel([2, 4])
def test_no_rank_ever_holds_the_whole_mask(shared, communicator, monkeypatch):
    """What a rank is handed to write is one unit at a time, and no two ranks write the same voxels."""
    from volseg.volumes import writing

    monkeypatch.setattr(planes_output, "UNIT_BYTES", SHAPE[1] * SHAPE[2] * 2)
    handed, original = [], writing._checked

    def checked(unit, voxels):
        handed.append(voxels.size)
        return original(unit, voxels)

    monkeypatch.setattr(writing, "_checked", checked)
    with communicator.together():
        if communicator.is_root:
            save_nifti(shared / "scan.nii", ct_like())
    segment(SegmentationJob(shared / "scan.nii", shared / "run"), communicator)
    everyone = communicator.gather_all(handed)
    assert sum(map(sum, everyone)) == np.prod(SHAPE)
    assert max(map(max, everyone)) <= 2 * SHAPE[1] * SHAPE[2]
    assert max(map(sum, everyone)) <= 2 * np.prod(SHAPE) / communicator.size


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_the_mask_lies_on_the_scan_s_own_grid(tmp_path, run, suffix):
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    affine = turn @ ILP @ np.diag([0.9, 1.1, 1.2, 1])
    scan = save_nifti(tmp_path / f"scan{suffix}", ct_like(), affine)
    report = segment(SegmentationJob(scan, run), SERIAL)
    assert report.files == (tmp_path / "scan_mask.nii.gz",)
    mask, image = nib.load(report.files[0]), nib.load(scan)
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}
    ours, theirs = sitk.ReadImage(str(report.files[0])), sitk.ReadImage(str(scan))
    for get in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(ours, get)(), getattr(theirs, get)(), atol=1e-4)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAR", "PIR", "ILP"])
def test_another_voxel_order_gives_the_same_anatomy(tmp_path, run, codes):
    """The same scan in another orientation: its mask, turned back, is voxel for voxel the first one's."""
    scan = save_nifti(tmp_path / "scan.nii", ct_like(), np.diag([1.0, 1.0, 1.0, 1]))
    image = nib.load(scan)
    there = nib.orientations.axcodes2ornt(tuple(codes))
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), there))
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    nib.save(turned, tmp_path / "turned.nii")
    for name in ("scan", "turned"):
        segment(SegmentationJob(tmp_path / f"{name}.nii", run), SERIAL)
    straight = np.asarray(nib.load(tmp_path / "scan_mask.nii.gz").dataobj)
    back = nib.as_closest_canonical(nib.load(tmp_path / "turned_mask.nii.gz"))
    np.testing.assert_array_equal(np.asarray(back.dataobj), straight)
    assert len(np.unique(straight)) > 1


def test_zarr_and_nifti_of_one_scan_give_one_mask(tmp_path, run):
    save_nifti(tmp_path / "a.nii", ct_like(), np.diag([0.9, 1.0, 1.1, 1.0]))
    save_zarr(tmp_path / "b.zarr", ct_like(), np.diag([0.9, 1.0, 1.1, 1.0]))
    segment(SegmentationJob(tmp_path / "a.nii", run, tmp_path / "a_mask.zarr"), SERIAL)
    segment(SegmentationJob(tmp_path / "b.zarr", run), SERIAL)
    mask = np.asarray(nib.load(tmp_path / "b_mask.nii.gz").dataobj).T
    stored = open_volume(tmp_path / "a_mask.zarr")
    np.testing.assert_array_equal(np.concatenate([slab for _, slab in stored.slabs()]), mask)


def test_probabilities_add_up_and_their_largest_is_the_mask(tmp_path, run):
    scan = save_nifti(tmp_path / "scan.nii", ct_like(), ILP)
    report = segment(SegmentationJob(scan, run, probabilities=True), SERIAL)
    mask, probabilities = (nib.load(path) for path in report.files)
    assert report.files[1].name == "scan_mask_probabilities.nii.gz"
    assert probabilities.shape == (*nib.load(scan).shape, 3)
    assert probabilities.get_data_dtype() == np.float32
    np.testing.assert_allclose(probabilities.affine, nib.load(scan).affine)
    values = np.asarray(probabilities.dataobj)
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(values.argmax(-1), np.asarray(mask.dataobj))
    names = json.loads(probabilities.header.extensions[0].get_content())["channels"]
    assert names == ["background", "class_1", "class_2"]


def test_statistics_count_the_mask_s_voxels(tmp_path, run):
    scan = save_nifti(tmp_path / "scan.nii", ct_like(), np.diag([0.9, 1.0, 1.2, 1.0]))
    report = segment(SegmentationJob(scan, run, statistics=True, preview=True), SERIAL)
    mask = np.asarray(nib.load(report.files[0]).dataobj)
    with report.files[1].open(newline="") as file:
        rows = {int(row["label"]): row for row in csv.DictReader(file)}
    for label in (1, 2):
        voxels = int((mask == label).sum())
        assert int(rows[label]["voxels"]) == voxels
        assert float(rows[label]["ml"]) == pytest.approx(voxels * 0.9 * 1.2 / 1000, abs=1e-6)
    assert report.files[2].name == "scan_mask_preview.png"
    assert report.files[2].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    write_report(tmp_path / "r.json", report)
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["labels"][0]["voxels"] == int(rows[1]["voxels"])
    assert [rank["threads"] for rank in written["placement"]] == [torch.get_num_threads()]
    assert written["communication"]["seconds_by_rank"] == [0]
    assert set(written["time"]["seconds_by_rank"]) >= {"convolution", "norm", "input and output", "head and loss"}
    assert sum(map(sum, written["time"]["seconds_by_rank"].values())) == pytest.approx(report.seconds, abs=0.1)
    assert written["time"]["load_balance"] == 1


PHASES = ["preparation", "network", "components", "mask", "statistics", "preview"]


@pytest.mark.parallel([1, 2])
def test_a_trace_has_the_phases_of_each_rank(shared, communicator):
    with communicator.together():
        if communicator.is_root:
            save_nifti(shared / "scan.nii.gz", ct_like())
    job = SegmentationJob(
        shared / "scan.nii.gz", shared / "run", shared / "m.nii.gz", cleaning=Cleaning(keep_largest=True),
        statistics=True, trace=shared / "t.json",
    )  # fmt: skip
    report = segment(job, communicator)
    assert shared / "t.json" in report.files
    assert list(report.phases)[: len(PHASES)] == PHASES
    if communicator.is_root:
        events = [event for event in json.loads((shared / "t.json").read_text())["traceEvents"] if event["ph"] == "X"]
        for rank in range(communicator.size):
            own = [event for event in events if event["pid"] == rank]
            assert [event["name"] for event in own if event["cat"] == "phase"] == PHASES
            assert {"input and output", "components and statistics", "moving blocks"} <= {e["cat"] for e in own}


def test_cleaned_split_and_measured(tmp_path, run):
    scan = save_nifti(tmp_path / "scan.nii", ct_like(), np.diag([0.9, 1.0, 1.2, 1.0]))
    job = SegmentationJob(scan, run, tmp_path / "m.nii.gz", split=True, statistics=True)
    plain = segment(job, SERIAL)
    cleaned = segment(replace(job, output=tmp_path / "c.nii.gz", cleaning=Cleaning(keep_largest=True)), SERIAL)
    assert [file.name for file in cleaned.files[:3]] == ["c.nii.gz", "c_class_1.nii.gz", "c_class_2.nii.gz"]
    before, after = (np.asarray(nib.load(r.files[0]).dataobj) for r in (plain, cleaned))
    values = np.asarray(nib.load(scan).dataobj)
    assert any(row.removed for row in cleaned.removed)
    for label in (1, 2):
        parts = cc3d.connected_components(np.ascontiguousarray(label == before.T), connectivity=26)
        sizes = np.bincount(parts.ravel())[1:]
        np.testing.assert_array_equal(label == after.T, parts == 1 + sizes.argmax())
        one = nib.load(cleaned.files[label])
        np.testing.assert_array_equal(np.asarray(one.dataobj), after == label)
        assert dict(label_table_of(cleaned.files[label]).names) == {f"class_{label}": 1}
        row = cleaned.statistics[label - 1]
        assert row.mean_hu == pytest.approx(values[after == label].mean())
        assert row.ml == pytest.approx((after == label).sum() * 0.9 * 1.2 / 1000)
    assert dict(label_table_of(cleaned.files[0]).names)["class_2"] == 2


def test_masks_and_probabilities_appear_together_or_not_at_all(tmp_path, run, monkeypatch):
    scan = save_nifti(tmp_path / "scan.nii", ct_like())
    before = sorted(tmp_path.iterdir())
    encode = nifti_output.NiftiOutput.encode

    def full(self, unit, voxels):
        if voxels.dtype == np.float32:
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode(self, unit, voxels)

    monkeypatch.setattr(nifti_output.NiftiOutput, "encode", full)
    with pytest.raises(OSError, match="No space"):
        segment(SegmentationJob(scan, run, split=True, probabilities=True), SERIAL)
    assert sorted(tmp_path.iterdir()) == before


def test_a_scan_too_large_for_the_machine_is_refused_before_any_work(tmp_path, run):
    scan = save_nifti(tmp_path / "scan.nii", ct_like())
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        PartitionError, match=r"do not fit .* GiB a rank \(what is free\): in-place needs .*, recompute needs"
    ):
        segment(SegmentationJob(scan, run, spacing=(0.003, 0.003, 0.003)), SERIAL)
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_of_two_channels_takes_both_files_of_the_case(tmp_path):
    run = untrained_run(tmp_path / "run", channels=("CT", "PET"))
    for channel in (0, 1):
        save_nifti(tmp_path / f"case_000{channel}.nii", ct_like(seed=channel))
    first = segment(SegmentationJob(tmp_path / "case_0000.nii", run), SERIAL)
    before = digest(first.files[0])
    save_nifti(tmp_path / "case_0001.nii", ct_like(seed=7))
    again = segment(SegmentationJob(tmp_path / "case_0000.nii", run, overwrite=True), SERIAL)
    assert digest(again.files[0]) != before
    (tmp_path / "case_0001.nii").unlink()
    with pytest.raises(VolumeError, match=r"1 image channel\(s\), but the model was trained with 2 \(CT, PET\)"):
        segment(SegmentationJob(tmp_path / "case_0000.nii", run, overwrite=True), SERIAL)
    assert channel_files(tmp_path / "case_0000.nii", 2) == [ImageFile(tmp_path / "case_0000.nii")]
    save_nifti(tmp_path / "case_0001.nii", ct_like((5, 6, 7)))
    with pytest.raises(VolumeError, match="another grid"):
        segment(SegmentationJob(tmp_path / "case_0000.nii", run, overwrite=True), SERIAL)


def test_names_of_what_is_written(tmp_path, monkeypatch):
    def names(scan, output=None, **options):
        job = SegmentationJob(
            Path(scan), Path("run"), output, probabilities=True, statistics=True, preview=True, **options
        )
        labels = LabelTable({"background": 0, "liver": 1, "left lung": 2})
        return [str(path) for path in plan_outputs(job, labels).values()]

    assert names("/x/a.nii.gz", Path("o/m.ZARR")) == [
        "o/m.ZARR", "o/m_probabilities.zarr", "o/m_statistics.csv", "o/m_preview.png",
    ]  # fmt: skip
    assert names("/x/a.zip", Path("s.zarr/labels/m"), split=True) == [
        "s.zarr/labels/m", "s.zarr/labels/m_liver", "s.zarr/labels/m_left_lung", "s_m_probabilities.nii.gz",
        "s_m_statistics.csv", "s_m_preview.png",
    ]  # fmt: skip
    assert names("/x/a.zip")[0] == "/x/a_mask.nii.gz"
    (tmp_path / "series").mkdir()
    monkeypatch.chdir(tmp_path / "series")
    assert names(".")[0] == str(tmp_path / "series_mask.nii.gz")


def test_the_scan_itself_is_never_overwritten(tmp_path, run):
    scan = save_nifti(tmp_path / "scan.nii", ct_like())
    before = digest(scan)
    with pytest.raises(VolumeError, match="is the scan itself"):
        segment(SegmentationJob(scan, run, scan, overwrite=True), SERIAL)
    assert digest(scan) == before


def test_outputs_of_one_name_and_impossible_reports_are_refused(tmp_path, run):
    scan = save_nifti(tmp_path / "scan.nii", ct_like())
    mask = tmp_path / "m.nii.gz"
    for report, message in (
        (mask, "would hold both mask and report"),
        (tmp_path / "m_statistics.csv", "would hold both statistics and report"),
        (tmp_path / "none" / "r.json", "make it first"),
        (tmp_path / "run", "is a folder"),
        (scan, "is the scan itself"),
    ):
        job = SegmentationJob(scan, run, mask, statistics=True, report=report, overwrite=True)
        with pytest.raises(VolumeError, match=message):
            segment(job, SERIAL)
    assert not mask.exists()


def test_no_channel_of_the_scan_is_overwritten(tmp_path):
    run = untrained_run(tmp_path / "run", channels=("CT", "PET"))
    first, second = (save_nifti(tmp_path / f"case_000{channel}.nii", ct_like(seed=channel)) for channel in (0, 1))
    before = digest(second)
    with pytest.raises(VolumeError, match="is the scan itself"):
        segment(SegmentationJob(first, run, second, overwrite=True), SERIAL)
    assert digest(second) == before


def test_another_spacing_than_in_training_is_warned_of(tmp_path, run):
    events = []
    segment(SegmentationJob(save_nifti(tmp_path / "a.nii", ct_like()), run), SERIAL, events.append)
    assert not any(isinstance(event, Caution) for event in events)
    thick = save_nifti(tmp_path / "b.nii", ct_like(), np.diag([1.0, 1.0, 3.0, 1.0]))
    segment(SegmentationJob(thick, run, spacing="native"), SERIAL, events.append)
    cautions = [event.text for event in events if isinstance(event, Caution)]
    assert len(cautions) == 1
    assert "3 x 1 x 1 mm" in cautions[0]


@pytest.mark.parallel([1, 2, 4])
def test_logits_are_those_of_one_rank(shared, communicator):
    with communicator.together():
        if communicator.is_root:
            save_nifti(shared / "scan.nii", ct_like(), ILP)
    found = verify_partition(shared / "run", shared / "scan.nii", "auto", communicator)
    assert (found.largest_difference, found.mismatches, found.identical) == (0.0, 0, True)
    assert found.voxels == np.prod(SHAPE)
    assert np.prod(found.grid) == communicator.size


@pytest.mark.parallel(2)
def test_a_wrong_halo_is_noticed(shared, communicator, monkeypatch):
    """A partition that forgets its neighbours: the very fault that the comparison is for."""
    from volseg.nn import convolution

    with communicator.together():
        if communicator.is_root:
            save_nifti(shared / "scan.nii", ct_like())
    original = type(communicator).send_receive

    def forget(self, sends, receives):
        original(self, sends, receives)
        for _, buffer in receives:
            if buffer.dtype == np.float32:
                buffer[...] = 0

    assert convolution is not None
    monkeypatch.setattr(type(communicator), "send_receive", forget)
    found = verify_partition(shared / "run", shared / "scan.nii", "auto", communicator)
    assert not found.identical
    assert found.largest_difference > 1e-3


@pytest.mark.parallel([2, 4])
def test_one_mask_of_a_real_ct_and_of_a_dicom_series(shared, communicator, data):
    """An abdomen of 122 x 101 x 112 voxels: no side is a multiple of 16."""
    for scan, suffix in (
        (data / "abdomen_ct" / "ct.nii.gz", ".nii.gz"),
        (REPOSITORY / "sample_data/phantom_dicom", ".nii"),
    ):
        options = {"probabilities": suffix == ".nii", "spacing": "native"}  # at 1 mm 27 times the voxels
        one, many = both_ways(shared, communicator, scan, suffix, **options)
        assert one == many


def test_the_mask_of_a_dicom_series_lies_on_the_series_grid(tmp_path, run, data):
    """SimpleITK's own reading of the series is the reference."""
    series = data / "abdomen_dicom" / "series"
    report = segment(SegmentationJob(series, run, tmp_path / "mask.nii.gz"), SERIAL)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    scan, mask = reader.Execute(), sitk.ReadImage(str(report.files[0]))
    assert mask.GetSize() == scan.GetSize()
    last = [n - 1 for n in scan.GetSize()]
    for index in ([0, 0, 0], last, [last[0], 0, 0], [0, last[1], 0]):
        np.testing.assert_allclose(
            mask.TransformIndexToPhysicalPoint(index), scan.TransformIndexToPhysicalPoint(index), atol=1e-2
        )
    assert nib.load(report.files[0]).shape == scan.GetSize()
    assert len(np.unique(sitk.GetArrayFromImage(mask))) > 1


def test_more_ranks_than_the_scan_can_hold_are_refused(tmp_path, run):
    from volseg.planning.planner import choose_grid

    with pytest.raises(PartitionError, match="largest grid is 4x5x4; 80 ranks would work"):
        choose_grid(SHAPE, 83, 4)


@pytest.mark.parametrize(("statistics", "passes"), [(False, 2), (True, 3)])
def test_a_compressed_scan_is_opened_once_and_inflated_once_a_look(tmp_path, run, monkeypatch, statistics, passes):
    """The looks: some slices for their scale, the network's pass over all, and the intensities of the labels."""
    opened, inflated = [], []
    read_header, inflate = reading.read_header, SeekableGzip._inflate

    def counted_header(path, channel):
        opened.append(path)
        return read_header(path, channel)

    def counted_inflate(self, most):
        piece = inflate(self, most)
        inflated.append(len(piece))
        return piece

    monkeypatch.setattr(reading, "read_header", counted_header)
    monkeypatch.setattr(SeekableGzip, "_inflate", counted_inflate)
    scan, shape = tmp_path / "scan.nii.gz", (40, 64, 64)
    save_nifti(scan, ct_like(shape))
    segment(SegmentationJob(scan, run, statistics=statistics), SERIAL)
    voxel_bytes = 2 * 40 * 64 * 64
    assert opened == [scan]
    assert (passes - 0.1) * voxel_bytes < sum(inflated) < (passes + 0.02) * voxel_bytes


def test_names_in_capitals_are_read_as_what_they_are(tmp_path):
    for channel in range(2):
        (tmp_path / f"case_000{channel}.NII.GZ").touch()
    scan = tmp_path / "case_0000.NII.GZ"
    assert channel_files(scan, 2) == [ImageFile(tmp_path / f"case_000{channel}.NII.GZ") for channel in range(2)]
    assert mask_path(SegmentationJob(scan, tmp_path)) == tmp_path / "case_0000_mask.nii.gz"
