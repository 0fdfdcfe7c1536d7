"""Ingesting: every format in and out keeps voxels and grid; what is not fit is refused, and nothing is left."""

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from dicom_files import save, series_datasets, stored_values
from volseg.distributed.communicator import SerialCommunicator
from volseg.errors import VolumeError
from volseg.events import Caution, Progress, ignore
from volseg.geometry import Box
from volseg.volumes import ingest as ingesting
from volseg.volumes import planes_output
from volseg.volumes.ingest import IngestJob, labels_path
from volseg.volumes.ingest_report import report_rows
from volseg.volumes.kept_slices import SliceKeeper
from volseg.volumes.label_files import label_table_of
from volseg.volumes.label_table import LabelTable
from volseg.volumes.reading import open_volume
from volseg.volumes.writing import write_volume

SERIAL = SerialCommunicator()
AFFINE = np.array([[0, 0, 2.5, 5], [-0.7, 0, 0, 6], [0, -0.8, 0, 7], [0, 0, 0, 1.0]])


def ingest(source, output, communicator, listen=ignore, **options):
    labels = options.pop("labels", ())
    options["labels"] = (labels,) if isinstance(labels, Path) else labels
    return ingesting.ingest(IngestJob(source, output, **options), communicator, listen)


def nifti(folder, array, name="scan.nii.gz", affine=AFFINE):
    nib.save(nib.Nifti1Image(array.T, affine), folder / name)
    return folder / name


def scan(shape=(70, 30, 80), dtype="i2"):
    return np.random.default_rng(2).integers(-1000, 1000, shape).astype(dtype)


def everything(path):
    volume = open_volume(path)
    return volume.read(Box.whole(volume.shape))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".zarr"])
@pytest.mark.parametrize("source", ["nii", "nii.gz", "zarr", "dicom"])
def test_every_format_into_every_other(tmp_path, source, suffix):
    array = scan((6, 16, 20)) if source == "dicom" else scan()
    if source == "dicom":
        stored = stored_values()
        array = stored.astype("i2") - 1024
        path = save(series_datasets(stored), tmp_path / "series")
    elif source == "zarr":
        path = tmp_path / "source.zarr"
        ingest(nifti(tmp_path, array), path, SERIAL)
    else:
        path = nifti(tmp_path, array, f"scan.{source}")
    report = ingest(path, tmp_path / f"out{suffix}", SERIAL)
    np.testing.assert_array_equal(everything(report.output), array)
    there, here = open_volume(path).space, open_volume(report.output).space
    assert here.matches(there, 1e-3)
    assert (report.minimum, report.maximum) == (array.min(), array.max())
    assert (report.shape, report.dtype) == (array.shape, "int16")


def test_events_and_constant_volumes(tmp_path):
    events = []
    ingest(nifti(tmp_path, np.full((3, 4, 5), 7, "i2")), tmp_path / "out.nii", SERIAL, events.append)
    assert isinstance(events[0], Progress)
    assert any(isinstance(e, Caution) and "every voxel is 7" in e.text for e in events)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers(tmp_path, value):
    array = scan(dtype="f4")
    array[40, 7, 9] = array[40, 20, 3] = value
    with pytest.raises(VolumeError, match=r"2 voxels are NaN or infinite in slices .* at D x H x W 40x7x9"):
        ingest(nifti(tmp_path, array), tmp_path / "out.nii", SERIAL)
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_labels_go_beside(tmp_path):
    labels = (scan() > 0).astype("u1")
    report = ingest(
        nifti(tmp_path, scan()), tmp_path / "out.nii.gz", SERIAL, labels=nifti(tmp_path, labels, "truth.nii")
    )
    assert report.labels == tmp_path / "out_labels.nii.gz"
    np.testing.assert_array_equal(everything(report.labels), labels)
    assert open_volume(report.labels).dtype == np.uint8


@pytest.mark.parametrize("suffix", [".nii.gz", ".zarr"])
def test_labels_in_another_voxel_order(tmp_path, suffix):
    labels = (np.arange(70 * 30 * 80).reshape(70, 30, 80) % 251).astype("u1")
    turned = nib.as_closest_canonical(nib.Nifti1Image(labels.T, AFFINE))
    nib.save(turned, tmp_path / "truth.nii.gz")
    assert turned.shape != labels.T.shape
    report = ingest(nifti(tmp_path, scan()), tmp_path / f"out{suffix}", SERIAL, labels=tmp_path / "truth.nii.gz")
    np.testing.assert_array_equal(everything(report.labels), labels)


def test_labels_stored_as_floats(tmp_path):
    labels = (scan() % 5).astype("f4")
    image, truth = nifti(tmp_path, scan()), nifti(tmp_path, labels, "truth.nii")
    report = ingest(image, tmp_path / "out.nii", SERIAL, labels=truth)
    assert open_volume(report.labels).dtype == np.int16
    np.testing.assert_array_equal(everything(report.labels), labels)
    nifti(tmp_path, labels + 0.5, "half.nii")
    with pytest.raises(VolumeError, match="whole numbers"):
        ingest(image, tmp_path / "out2.nii", SERIAL, labels=tmp_path / "half.nii")


def test_labels_of_another_grid(tmp_path):
    image = nifti(tmp_path, scan())
    moved = AFFINE.copy()
    moved[0, 3] += 0.5
    cases = {
        "labels of 70x30x79 voxels": nifti(tmp_path, scan()[..., :79], "small.nii"),
        "up to 0.5 mm off": nifti(tmp_path, scan(), "moved.nii", moved),
    }
    for message, labels in cases.items():
        with pytest.raises(VolumeError, match=message):
            ingest(image, tmp_path / "out.nii", SERIAL, labels=labels)
        assert not (tmp_path / "out.nii").exists()


def test_outputs_are_checked_before_any_work(tmp_path):
    image = nifti(tmp_path, scan())
    (tmp_path / "out.nii").write_text("precious")
    with pytest.raises(VolumeError, match="exists already"):
        ingest(image, tmp_path / "out.nii", SERIAL)
    (tmp_path / "new_labels.nii").write_text("precious")
    with pytest.raises(VolumeError, match=r"new_labels\.nii: exists already"):
        ingest(image, tmp_path / "new.nii", SERIAL, labels=image)
    assert not (tmp_path / "new.nii").exists()
    ingest(image, tmp_path / "out.nii", SERIAL, overwrite=True)
    np.testing.assert_array_equal(everything(tmp_path / "out.nii"), scan())


def test_a_file_may_replace_itself(tmp_path):
    image = nifti(tmp_path, scan(), "scan.nii")
    ingest(image, image, SERIAL, overwrite=True)
    np.testing.assert_array_equal(everything(image), scan())


@pytest.mark.parametrize("mine", ["notes.txt", "results/dice.csv"])
def test_a_store_with_what_is_no_part_of_it_is_not_overwritten(tmp_path, mine):
    store, image = tmp_path / "scan.zarr", nifti(tmp_path, scan())
    ingest(image, store, SERIAL)
    ingest(image, store, SERIAL, overwrite=True)
    (store / mine).parent.mkdir(exist_ok=True)
    (store / mine).write_text("mine")
    with pytest.raises(VolumeError, match=r"holds (notes\.txt|results), which is no part of a zarr store"):
        ingest(image, store, SERIAL, overwrite=True)
    assert (store / mine).read_text() == "mine"


def test_a_store_with_labels_is_not_overwritten(tmp_path):
    store = tmp_path / "scan.zarr"
    ingest(nifti(tmp_path, scan()), store, SERIAL)
    (store / "labels" / "liver").mkdir(parents=True)
    (store / "labels" / "liver" / "zarr.json").write_text("{}")
    with pytest.raises(VolumeError, match=r"holds label images \(liver\), which would go with it"):
        ingest(nifti(tmp_path, scan()), store, SERIAL, overwrite=True)
    (store / "labels" / "liver" / "zarr.json").unlink()
    ingest(nifti(tmp_path, scan()), store, SERIAL, overwrite=True)


def test_labels_path():
    assert labels_path(Path("a/scan.v2.nii.gz")) == Path("a/scan.v2_labels.nii.gz")
    assert labels_path(Path("scan.zarr")) == Path("scan_labels.zarr")
    assert labels_path(Path("scan.nii.gz"), 2) == Path("scan_labels_reader2.nii.gz")


def test_shards_share_one_inflation_of_their_slices(tmp_path, monkeypatch):
    volume = open_volume(nifti(tmp_path, scan()))
    reads = []
    real = volume.read
    monkeypatch.setattr(volume, "read", lambda box: reads.append(box) or real(box))
    keeper = SliceKeeper(volume)
    for z in (0, 64):
        for x in (0, 64):
            box = Box((z, 0, x), (min(70, z + 64), 30, min(80, x + 64)))
            np.testing.assert_array_equal(keeper.read(box), scan()[box.slices])
    assert len(reads) == 2


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("suffix", [".nii.gz", ".zarr"])
def test_on_any_number_of_ranks(tmp_path, communicator, suffix, monkeypatch):
    monkeypatch.setattr(planes_output, "UNIT_BYTES", 50_000)
    folder = Path(communicator.broadcast(str(tmp_path)))
    if communicator.is_root:
        nifti(folder, scan())
    communicator.barrier()
    report = ingest(folder / "scan.nii.gz", folder / f"out{suffix}", communicator)
    assert (report.minimum, report.maximum) == (scan().min(), scan().max())
    np.testing.assert_array_equal(everything(report.output), scan())
    communicator.barrier()


@pytest.mark.parallel([2, 4])
def test_the_first_bad_voxel_is_named_whatever_the_ranks(tmp_path, communicator, monkeypatch):
    monkeypatch.setattr(planes_output, "UNIT_BYTES", 4 * 30 * 80 * 10)
    folder = Path(communicator.broadcast(str(tmp_path)))
    array = scan(dtype="f4")
    array[25, 1, 2] = array[35, 1, 2] = np.nan
    if communicator.is_root:
        nifti(folder, array)
    communicator.barrier()
    with pytest.raises(VolumeError, match=r"1 voxel is NaN or infinite in slices 20:30, .* 25x1x2"):
        ingest(folder / "scan.nii.gz", folder / "out.nii.gz", communicator)
    communicator.barrier()
    assert [file.name for file in folder.iterdir()] == ["scan.nii.gz"]


def test_real_ct_with_its_mask(tmp_path, data):
    folder = data / "abdomen_dicom"
    report = ingest(folder / "series", tmp_path / "ct.nii.gz", SERIAL, labels=folder / "labels_117.nii.gz")
    image, mask = sitk.ReadImage(str(report.output)), sitk.ReadImage(str(report.labels))
    assert image.GetSize() == mask.GetSize() == (512, 512, 20)
    np.testing.assert_allclose(image.GetOrigin(), mask.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(image.GetDirection(), mask.GetDirection(), atol=1e-6)
    hu, labels = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(mask)
    theirs = nib.load(folder / "labels_117.nii.gz")
    assert np.bincount(labels.ravel()).tolist() == np.bincount(np.asarray(theirs.dataobj).ravel()).tolist()
    # Organs lie where the CT shows tissue: were the rows upside down, many would lie in air.
    assert (hu[labels > 0] > -300).mean() > 0.95


def test_the_audit_accounts_for_every_file(tmp_path):
    folder = save(series_datasets(stored_values()), tmp_path / "study" / "series")
    (tmp_path / "study" / "notes.txt").write_text("no DICOM")
    report = ingest(tmp_path / "study", tmp_path / "out.nii.gz", SERIAL)
    audit = json.loads(report.report.read_text())
    assert report.report == tmp_path / "out_ingest.json"
    files = sorted(folder.iterdir())
    assert audit["image"]["used"] == [str(file) for file in files]
    assert audit["sha256"] == {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert [item["name"] for item in audit["image"]["dropped"]] == [str(tmp_path / "study" / "notes.txt")]
    assert audit["versions"]["volseg"]
    assert ("left out", "1 file: not DICOM") in report_rows(report)


def test_an_image_and_its_mask_resampled_alike(tmp_path):
    d, h, w = np.mgrid[:30, :40, :50]
    ball = ((d - 15) * 2.5) ** 2 + ((h - 20) * 0.8) ** 2 + ((w - 25) * 0.7) ** 2 < 12**2
    image, truth = nifti(tmp_path, (ball * 10000).astype("i2")), nifti(tmp_path, ball.astype("u1"), "truth.nii")
    report = ingest(image, tmp_path / "out.nii.gz", SERIAL, labels=truth, spacing=(1.0, 1.0, 1.0))
    assert report.shape == (75, 32, 35)
    values, labels = everything(report.output), everything(report.labels)
    assert ((labels == 1) != (values > 5000)).sum() <= 2  # a voxel at the half, rounded
    volume = labels.sum() / 1000
    assert volume == pytest.approx(4 / 3 * np.pi * 12**3 / 1000, rel=0.03)
    assert any("resampled" in fix for fix in report.audit.fixes)


def test_names_of_labels_come_along(tmp_path):
    image = nifti(tmp_path, scan())
    write_volume(
        tmp_path / "named.nii.gz",
        open_volume(image).space,
        "u1",
        lambda units: (scan() > 0)[units[0].box.slices].astype("u1"),
        SERIAL,
        labels=LabelTable({"liver": 1}, {1: (255, 0, 0)}),
    )
    report = ingest(image, tmp_path / "out.zarr", SERIAL, labels=tmp_path / "named.nii.gz")
    assert report.masks[0].names == {"liver": 1}
    table = label_table_of(report.labels)
    assert dict(table.names) == {"liver": 1}
    assert table.colour(1) == (255, 0, 0)


def test_bad_labels_leave_nothing(tmp_path):
    image = nifti(tmp_path, scan())
    half = nifti(tmp_path, scan().astype("f4") + 0.5, "half.nii")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VolumeError):
        ingest(image, tmp_path / "out.nii", SERIAL, labels=half)
    bad = scan().astype("f4")
    bad[-1, -1, -1] = np.nan
    with pytest.raises(VolumeError):
        ingest(nifti(tmp_path, bad), tmp_path / "out.nii", SERIAL, labels=nifti(tmp_path, abs(scan()), "whole.nii"))
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "whole.nii"])


def test_an_interruption_leaves_no_mask_without_its_image(tmp_path):
    image, labels = nifti(tmp_path, scan()), nifti(tmp_path, np.ones(scan().shape, np.uint8), "mask.nii")

    def interrupt(event):
        if getattr(event, "task", "") == "writing out.nii":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(image, tmp_path / "out.nii", SERIAL, interrupt, labels=labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.nii", "scan.nii.gz"]


def test_a_failed_overwrite_leaves_the_old_pair(tmp_path):
    ingest(nifti(tmp_path, scan()), tmp_path / "out.nii", SERIAL, labels=nifti(tmp_path, abs(scan()), "truth.nii"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    bad = scan().astype("f4")
    bad[-1, -1, -1] = np.nan
    other, labels = nifti(tmp_path, bad, "bad.nii"), nifti(tmp_path, abs(scan()) % 3, "other.nii")
    with pytest.raises(VolumeError, match="NaN"):
        ingest(other, tmp_path / "out.nii", SERIAL, labels=labels, overwrite=True)
    other.unlink()
    labels.unlink()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
