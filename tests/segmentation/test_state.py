"""``segment --continue``: what an interrupted run leaves, and how the next one goes on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tiny import MODEL, SERIAL, ct_like, digest, root_listings, save_nifti, untrained_run
from volseg.events import Caution, Message
from volseg.models import streamed
from volseg.precision import BFLOAT16, FLOAT32
from volseg.program.schedule import IN_PLACE, RECOMPUTE, SPILL
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.segment import segment


class Interrupted(Exception):
    """Stands for a kill."""


def interrupted(job, communicator, monkeypatch, where):
    """Run a job until the head, or until a layer is to be computed."""
    with monkeypatch.context() as patch:
        if where == "head":
            patch.setattr("volseg.segmentation.inference.BlockNetwork.logit_slabs", broken_logits)
        else:
            original = streamed.StreamedNetwork._during

            def during(self, label):
                if label == where:
                    raise Interrupted
                return original(self, label)

            patch.setattr(streamed.StreamedNetwork, "_during", during)
        with pytest.raises(Interrupted):
            segment(job, communicator)


def broken_logits(self):
    for _ in self.streamed.logit_slabs(self.image, self.scan.layout):
        raise Interrupted
    yield


def layers_of(report):
    return set(report.phases["network_by_layer"])


@pytest.mark.parametrize("schedule", [IN_PLACE, RECOMPUTE, SPILL])
def test_so_it_does_with_strided_convolutions_and_interpolation(schedule, tmp_path, monkeypatch):
    settings = replace(MODEL, down="stride", up="trilinear")
    scan, run = (
        save_nifti(tmp_path / "scan.nii", ct_like((21, 18, 15))),
        untrained_run(tmp_path / "r", settings=settings),
    )
    segment(SegmentationJob(scan, run, tmp_path / "whole.nii.gz"), SERIAL)
    interrupted(SegmentationJob(scan, run, schedule=RECOMPUTE, go_on=True), SERIAL, monkeypatch, "decoder 0.2")
    report = segment(SegmentationJob(scan, run, schedule=schedule, go_on=True), SERIAL)
    assert not any(label.startswith(("encoder 1", "up 0", "encoder 2")) for label in layers_of(report))
    assert digest(tmp_path / "scan_mask.nii.gz") == digest(tmp_path / "whole.nii.gz")


@pytest.mark.parametrize("first", [IN_PLACE, RECOMPUTE])
@pytest.mark.parametrize("second", [IN_PLACE, RECOMPUTE, SPILL])
def test_a_run_goes_on_behind_the_coarse_levels_by_any_schedule(first, second, tmp_path, monkeypatch):
    scan, run = save_nifti(tmp_path / "scan.nii", ct_like((21, 18, 15))), untrained_run(tmp_path / "run")
    interrupted(SegmentationJob(scan, run, schedule=first, go_on=True), SERIAL, monkeypatch, "head")
    state = tmp_path / "scan_mask_state"
    assert (state / "state.json").exists()
    events = []
    report = segment(SegmentationJob(scan, run, schedule=second, go_on=True), SERIAL, events.append)
    assert any("going on from" in event.text for event in events if isinstance(event, Message))
    assert not any(label.startswith(("encoder 1", "decoder 1", "encoder 2")) for label in layers_of(report))
    if first is second is RECOMPUTE:
        assert layers_of(report) == {"head"}
    plain = segment(SegmentationJob(scan, run, tmp_path / "plain.nii.gz"), SERIAL)
    assert digest(report.files[0]) == digest(plain.files[0])
    assert not state.exists()


def test_bfloat16_goes_on_with_its_bits_and_another_precision_starts_anew(tmp_path, monkeypatch):
    scan, run = save_nifti(tmp_path / "scan.nii", ct_like((21, 18, 15))), untrained_run(tmp_path / "run")
    half = SegmentationJob(scan, run, schedule=RECOMPUTE, go_on=True, precision=BFLOAT16, probabilities=True)
    interrupted(half, SERIAL, monkeypatch, "head")
    report = segment(replace(half, schedule=IN_PLACE), SERIAL)
    assert not any(label.startswith(("encoder 1", "decoder 1", "encoder 2")) for label in layers_of(report))
    alone = segment(replace(half, output=tmp_path / "plain.nii.gz", go_on=False), SERIAL)
    assert [digest(file) for file in report.files] == [digest(file) for file in alone.files]
    interrupted(replace(half, overwrite=True), SERIAL, monkeypatch, "head")
    events = []
    segment(replace(half, overwrite=True, precision=FLOAT32), SERIAL, events.append)
    said = [event.text for event in events if isinstance(event, Caution)]
    assert any("belongs to another scan, model, spacing or precision; starting anew" in text for text in said)


def test_the_coefficients_that_are_kept_say_which_activation_is_theirs(tmp_path, monkeypatch):
    """A file that does not say so is from before there were others."""
    for name in ("silu", "relu"):
        scan = save_nifti(tmp_path / f"{name}.nii", ct_like())
        run = untrained_run(tmp_path / name, settings=replace(MODEL, activation=name))
        job = SegmentationJob(scan, run, go_on=True)
        interrupted(job, SERIAL, monkeypatch, "head")
        kept = tmp_path / f"{name}_mask_state" / "state.json"
        content = json.loads(kept.read_text())
        assert {values[3] for values in content["affines"].values()} == {"silu" if name == "silu" else "leaky_relu"}
        if name == "relu":
            content["affines"] = {key: values[:3] for key, values in content["affines"].items()}
            kept.write_text(json.dumps(content))
        report = segment(SegmentationJob(scan, run, go_on=True, schedule=RECOMPUTE), SERIAL)
        assert "encoder 1.1" not in layers_of(report)
        plain = segment(SegmentationJob(scan, run, tmp_path / f"{name}.nii.gz"), SERIAL)
        assert digest(report.files[0]) == digest(plain.files[0])


def test_before_the_coarse_levels_are_done_nothing_is_kept(tmp_path, monkeypatch):
    scan, run = save_nifti(tmp_path / "scan.nii", ct_like()), untrained_run(tmp_path / "run")
    job = SegmentationJob(scan, run, go_on=True)
    interrupted(job, SERIAL, monkeypatch, "decoder 1.1")
    assert not (tmp_path / "scan_mask_state").exists()
    assert "encoder 1.1" in layers_of(segment(job, SERIAL))


@pytest.mark.parametrize("change", ["scan", "model", "spacing", "damage", "missing", "shortened"])
def test_a_state_of_something_else_is_not_used(change, tmp_path, monkeypatch):
    scan, run = save_nifti(tmp_path / "scan.nii", ct_like()), untrained_run(tmp_path / "run")
    job = SegmentationJob(scan, run, go_on=True)
    interrupted(job, SERIAL, monkeypatch, "head")
    state = tmp_path / "scan_mask_state"
    if change == "scan":
        save_nifti(scan, ct_like(seed=5))
    elif change == "model":
        job = SegmentationJob(scan, untrained_run(tmp_path / "other", seed=4), go_on=True)
    elif change == "spacing":
        job = SegmentationJob(scan, run, go_on=True, spacing=(1.0, 1.0, 1.2))
    elif change == "damage":
        content = json.loads((state / "state.json").read_text())
        content["affines"]["coarse"] = [1]
        (state / "state.json").write_text(json.dumps(content))
    elif change == "shortened":
        file = next(state.glob("*.npy"))
        np.save(file, np.load(file)[:-1])
    else:
        next(state.glob("*.npy")).unlink()
    events = []
    report = segment(job, SERIAL, events.append)
    assert "encoder 1.1" in layers_of(report)
    warnings = [event.text for event in events if isinstance(event, Caution) and "starting anew" in event.text]
    assert len(warnings) == 1
    assert ("belongs to another" in warnings[0]) == (change in ("scan", "model", "spacing"))
    expected = segment(SegmentationJob(job.scan, job.model, tmp_path / "expected.nii.gz", spacing=job.spacing), SERIAL)
    assert digest(report.files[0]) == digest(expected.files[0])


@pytest.mark.parallel([2, 4])
def test_another_number_of_ranks_goes_on(shared, communicator, monkeypatch):
    job = SegmentationJob(shared / "scan.nii", shared / "run", shared / "many" / "m.nii", go_on=True)
    with communicator.together():
        if communicator.is_root:
            for name in ("one", "many"):
                (shared / name).mkdir()
            save_nifti(job.scan, ct_like((21, 18, 15)))
            segment(SegmentationJob(job.scan, job.model, shared / "one" / "m.nii"), SERIAL)
            interrupted(job, SERIAL, monkeypatch, "head")
    report = segment(job, communicator)
    assert not any(label.startswith("encoder 1") for label in layers_of(report))
    one, many = root_listings(communicator, shared / "one", shared / "many")
    assert one == many


def test_blocks_of_two_runs_are_never_taken_for_one_s(tmp_path, monkeypatch):
    """A run of another model overwrites the block, and is killed before it says whose it is."""
    scan, run = save_nifti(tmp_path / "scan.nii", ct_like()), untrained_run(tmp_path / "run")
    other = untrained_run(tmp_path / "other", seed=4)
    interrupted(SegmentationJob(scan, run, go_on=True), SERIAL, monkeypatch, "head")
    with monkeypatch.context() as patch:
        patch.setattr("volseg.segmentation.state.write_text", raise_interrupted)
        with pytest.raises(Interrupted):
            segment(SegmentationJob(scan, other, go_on=True), SERIAL)
    report = segment(SegmentationJob(scan, run, go_on=True), SERIAL)
    assert "encoder 1.1" in layers_of(report)


def raise_interrupted(*_):
    raise Interrupted


def test_what_is_not_ours_in_the_folder_stays(tmp_path):
    scan, run = save_nifti(tmp_path / "scan.nii", ct_like()), untrained_run(tmp_path / "run")
    mine = tmp_path / "scan_mask_state" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    segment(SegmentationJob(scan, run, go_on=True), SERIAL)
    assert [file.name for file in mine.parent.iterdir()] == ["notes.txt"]


def test_a_read_error_of_a_run_that_goes_on_is_raised(tmp_path, monkeypatch):
    from volseg.volumes import stored

    scan, run = save_nifti(tmp_path / "scan.nii", ct_like()), untrained_run(tmp_path / "run")
    interrupted(SegmentationJob(scan, run, go_on=True), SERIAL, monkeypatch, "head")

    def read(self, box):
        raise OSError("no such sector")

    monkeypatch.setattr(stored.PlainVolume, "read", read)
    for schedule in (IN_PLACE, RECOMPUTE):
        with pytest.raises(OSError, match="no such sector"):
            segment(SegmentationJob(scan, run, schedule=schedule, go_on=True), SERIAL)
    assert not (tmp_path / "scan_mask.nii.gz").exists()
