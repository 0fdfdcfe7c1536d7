"""``segment --agglomerate``: the same bytes, by every schedule, and a run that goes on with other stages."""

import json

import numpy as np
import pytest

from segmentation.test_state import interrupted, layers_of
from tiny import SERIAL, SHAPE, ct_like, digest, root_listings, save_nifti
from volseg.errors import ConfigError, PartitionError
from volseg.events import Message
from volseg.program.schedule import IN_PLACE, RECOMPUTE, SPILL
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.segment import segment
from volseg.segmentation.verification import verify_partition

STAGES = {2: ("2x1x1", "1:1x1x1"), 4: ("4x1x1", "1:2x1x1,2:1x1x1"), 8: ("2x2x2", "2:1x1x1")}


@pytest.fixture
def scan(shared, communicator):
    with communicator.together():
        if communicator.is_root:
            save_nifti(shared / "scan.nii", ct_like())
    return shared / "scan.nii"


@pytest.mark.parallel([2, 4, 8])
@pytest.mark.parametrize("schedule", [IN_PLACE, RECOMPUTE, SPILL])
@pytest.mark.parametrize("spacing", ["model", (1.0, 1.2, 0.9)], ids=["as it is", "resampled"])
def test_the_mask_has_the_same_bytes(shared, scan, communicator, schedule, spacing):
    """Probabilities too, which show every bit of the logits."""
    partition, stages = STAGES[communicator.size]
    with communicator.together():
        if communicator.is_root:
            for name in ("one", "many"):
                (shared / name).mkdir()
            job = SegmentationJob(scan, shared / "run", shared / "one" / "m.nii", probabilities=True, spacing=spacing)
            segment(job, SERIAL)
    job = SegmentationJob(
        scan, shared / "run", shared / "many" / "m.nii", partition, probabilities=True, spacing=spacing,
        schedule=schedule, agglomerate=stages, report=shared / "report.json",
    )  # fmt: skip
    events = []
    segment(job, communicator, events.append)
    one, many = root_listings(communicator, shared / "one", shared / "many")
    assert one == many
    grid = json.loads((shared / "report.json").read_text())
    assert (grid["grid"], grid["agglomeration"]) == ([int(n) for n in partition.split("x")], stages)
    told = [event.text for event in events if isinstance(event, Message)]
    assert any("from level" in text and "on as 1x1x1" in text for text in told)


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("first", [IN_PLACE, RECOMPUTE])
@pytest.mark.parametrize("before", [True, False])
def test_a_run_goes_on_with_other_stages(shared, scan, communicator, first, before, monkeypatch):
    """What it keeps are blocks of level 1 on the grid of all ranks, whoever computed them."""
    partition, stages = STAGES[communicator.size]
    names = [stages, "none"] if before else ["none", stages]
    jobs = [
        SegmentationJob(
            scan, shared / "run", shared / "many.nii", partition, schedule=first, go_on=True, agglomerate=name
        )
        for name in names
    ]
    interrupted(jobs[0], communicator, monkeypatch, "head")
    report = segment(jobs[1], communicator)
    assert not any(label.startswith(("encoder 1", "level 1")) for label in layers_of(report))
    expected = None
    with communicator.together():
        if communicator.is_root:
            segment(SegmentationJob(scan, shared / "run", shared / "one.nii"), SERIAL)
            expected = digest(shared / "one.nii")
    assert digest(shared / "many.nii") == communicator.broadcast(expected)


@pytest.mark.parallel([2, 4, 8])
def test_verified_against_one_rank(shared, scan, communicator):
    partition, stages = STAGES[communicator.size]
    found = verify_partition(shared / "run", scan, partition, communicator, stages)
    assert (found.largest_difference, found.mismatches, found.identical) == (0.0, 0, True)
    assert (found.voxels, found.agglomeration) == (np.prod(SHAPE), stages)


@pytest.mark.parallel(2)
def test_what_does_not_suit_is_refused_before_any_work(shared, scan, communicator):
    for text, error, message in (
        ("3:1x1x1", PartitionError, "the network has levels 1 to 2"),
        ("1:1x2x1", PartitionError, "2 does not divide the 1 ranks on axis H of 2x1x1"),
        ("all", ConfigError, "--agglomerate all: give auto, none, or levels"),
    ):
        job = SegmentationJob(scan, shared / "run", shared / "m.nii", "2x1x1", agglomerate=text)
        with pytest.raises(error, match=message):
            segment(job, communicator)
    assert not (shared / "m.nii").exists()


@pytest.mark.parallel(2)
def test_a_network_of_other_layers_is_refused_by_name(shared, scan, communicator):
    from dataclasses import replace

    from tiny import MODEL
    from volseg.config import Config
    from volseg.models.stored import WEIGHTS, load_model, save_tensors
    from volseg.models.unet import UNet

    with communicator.together():
        if communicator.is_root:
            _, card = load_model(shared / "run")
            model = UNet(replace(MODEL.for_data(1, 3), kernel_size=9))
            save_tensors(
                shared / "run" / WEIGHTS, model.state_dict(), replace(card, config=Config(model.config), network=None)
            )
    job = SegmentationJob(scan, shared / "run", shared / "m.nii", "2x1x1", agglomerate="1:1x1x1")
    with pytest.raises(PartitionError, match=r"is a convolution of 9x9x9; use --agglomerate none"):
        segment(job, communicator)
