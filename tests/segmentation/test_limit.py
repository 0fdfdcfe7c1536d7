"""The schedule a scan is segmented by, and the memory limit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tiny import SERIAL, ct_like, save_nifti, untrained_run
from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.errors import PartitionError
from volseg.networks.description import Network
from volseg.networks.unet import unet
from volseg.partition.layout import Layout
from volseg.planning.memory import COMPILER, segmenting_memories
from volseg.program.schedule import IN_PLACE, LAYERS, RECOMPUTE, SPILL, Schedule
from volseg.segmentation.choosing import DICOM_LIBRARIES, process_bytes
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.limit import BesideVoxels, Choice, choose, memory_limit
from volseg.segmentation.segment import segment

NETWORK = unet(ModelConfig(in_channels=1, classes=3, base_channels=16, levels=4))
LAYOUT = Layout.even((512, 512, 512), (1, 1, 1), 16)
BESIDE = BesideVoxels(image=2, mask=1)
PLANS = segmenting_memories(NETWORK, LAYOUT, beside=BESIDE.of(512**3))


def enough(schedule: Schedule) -> int:
    """A limit that a schedule surely keeps to: its plan and a little more."""
    return PLANS[schedule].peak * 104 // 100


def chosen(limit: int, network: Network = NETWORK, **options) -> Choice:
    return choose(network, LAYOUT, BESIDE, 1, SERIAL, "scan.nii", limit=limit, **options)


def test_the_fastest_that_fits_is_chosen_and_says_why(tmp_path: Path) -> None:
    assert PLANS[IN_PLACE].peak > PLANS[RECOMPUTE].peak > PLANS[SPILL].peak
    for schedule in (IN_PLACE, RECOMPUTE):
        assert chosen(enough(schedule)).schedule is schedule
    choice = chosen(enough(RECOMPUTE))
    assert "the fastest that fits" in choice.reason
    assert "in-place needs" in choice.reason
    assert chosen(enough(IN_PLACE), schedule=RECOMPUTE).schedule is RECOMPUTE


@pytest.mark.parametrize(("form", "more"), [("DICOM", DICOM_LIBRARIES), ("NIfTI", 0)])
def test_a_process_without_a_compiler_and_one_with_decoders_are_planned_for(
    form: str, more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = SimpleNamespace(images=[SimpleNamespace(format=form)])
    monkeypatch.setattr("volseg.segmentation.choosing.compiled_modules", lambda: 1)
    assert process_bytes(scan, SERIAL) == more  # type: ignore[arg-type]
    monkeypatch.setattr("volseg.segmentation.choosing.compiled_modules", lambda: 0)
    monkeypatch.setattr("volseg.segmentation.choosing.has_kept_code", lambda: True)
    fewer = process_bytes(scan, SERIAL)  # type: ignore[arg-type]
    assert fewer == more - COMPILER
    plan = BesideVoxels(process=fewer).added_to(PLANS[IN_PLACE], 512**3)
    assert plan.peak == sum(plan.parts.values()) == PLANS[IN_PLACE].peak + fewer


def test_spilling_is_the_last_resort_and_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volseg.segmentation.limit._has_room", lambda folder, *_: folder is not None)
    assert chosen(enough(SPILL), scratch=tmp_path).schedule is SPILL
    with pytest.raises(
        PartitionError, match=r"on a disk \(no folder was given\); give a folder with more room, --scratch"
    ):
        chosen(enough(SPILL))


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(PartitionError, match=r"do not fit 0\.59 GiB a rank \(--memory-limit\).* ranks of 0\.59 GiB"):
        chosen(600 * 2**20)
    with pytest.raises(PartitionError, match="no number of ranks would do"):
        chosen(100 * 2**20)
    with pytest.raises(PartitionError, match="--schedule recompute would fit"):
        chosen(enough(RECOMPUTE), schedule=IN_PLACE)


def test_a_network_that_is_not_streamed_runs_layer_by_layer(tmp_path: Path) -> None:
    plain = unet(ModelConfig(in_channels=1, classes=3, base_channels=4, levels=2, kernel_size=9))
    assert chosen(2**40, plain).schedule is LAYERS
    with pytest.raises(PartitionError, match=r"runs as layers, for encoder 0.1 is a convolution of 9x9x9"):
        chosen(2**40, plain, schedule=RECOMPUTE)


def test_a_network_whose_finest_level_is_no_chain_is_not_recomputed() -> None:
    settings = ModelConfig(in_channels=1, classes=3, base_channels=4, levels=2, encoder="residual", blocks=(1, 1, 1))
    with pytest.raises(PartitionError, match=r"runs as in-place, spill, for its finest level is no chain of conv"):
        chosen(2**40, unet(settings), schedule=RECOMPUTE)


@pytest.mark.parallel([1, 2])
def test_without_a_limit_the_ranks_share_what_is_free(communicator: Communicator, monkeypatch) -> None:
    monkeypatch.setattr("volseg.segmentation.limit.available_memory", lambda: 10 * 2**30)
    monkeypatch.setattr("volseg.segmentation.limit.resident_memory", lambda: 2**20)
    assert memory_limit(communicator) == 9 * 2**30 // communicator.size + 2**20


def test_a_limit_too_low_is_refused_before_any_work(tmp_path: Path) -> None:
    scan, run = save_nifti(tmp_path / "scan.nii", ct_like()), untrained_run(tmp_path / "run")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(PartitionError, match="do not fit"):
        segment(SegmentationJob(scan, run, memory_limit=2**20), SERIAL)
    assert sorted(tmp_path.iterdir()) == before


def test_the_remedy_counts_what_lies_beside_the_network() -> None:
    beside = BesideVoxels(image=2, mask=1 + 4 * 50)  # probabilities of 50 classes
    with pytest.raises(PartitionError, match=r"spill needs .*; 2 ranks of 16\.0 GiB would do"):
        choose(NETWORK, LAYOUT, beside, 1, SERIAL, "scan.nii", limit=16 * 2**30)
