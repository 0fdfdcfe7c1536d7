"""A scan of another scale than the model's: said before the work and after it, and in the report."""

import json
from pathlib import Path

import numpy as np
import pytest

from tiny import SERIAL, ct_like, save_nifti, untrained_run
from volseg.events import Caution, Message
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.segment import segment


@pytest.mark.parallel([1, 2])
def test_both_figures_are_named_before_and_after(tmp_path, communicator):
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            untrained_run(folder / "run")
            save_nifti(folder / "scan.nii.gz", np.clip(ct_like() + 1024, 0, 4095))
    events = []
    job = SegmentationJob(folder / "scan.nii.gz", folder / "run", folder / "mask.nii.gz", report=folder / "report.json")
    report = segment(job, communicator, events.append)
    cautions = [n for n, event in enumerate(events) if isinstance(event, Caution) and "Hounsfield" in event.text]
    assert len(cautions) == 2
    assert any(isinstance(event, Message) for event in events[: cautions[0]])
    text = events[cautions[0]].text
    assert "scan.nii.gz: its values do not look like Hounsfield units: " in text
    assert "the model learned with 0.5 % -200 to 99.5 % 300 in labels" in text
    assert report.warnings == (text,)
    if communicator.is_root:
        assert json.loads((folder / "report.json").read_text())["warnings"] == [text]


def test_a_scan_of_the_same_scale_is_worth_no_word(tmp_path):
    events = []
    job = SegmentationJob(save_nifti(tmp_path / "scan.nii", ct_like()), untrained_run(tmp_path / "run"))
    assert segment(job, SERIAL, events.append).warnings == ()
    assert not [event for event in events if isinstance(event, Caution) and "Hounsfield" in event.text]
