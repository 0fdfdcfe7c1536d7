"""``--precision`` from training to a mask: what is recorded, what goes on from what, and who decides."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tiny import SERIAL, losses, tiny_config, tiny_dataset
from volseg.api import segment, train, verify_partition
from volseg.config import read_config
from volseg.distributed.communicator import Communicator
from volseg.errors import ConfigError
from volseg.events import Caution
from volseg.models.stored import load_tensors
from volseg.segmentation.report import SegmentationReport

SHAPE = (27, 22, 30)


def segmented(folder: Path, name: str, **options) -> tuple[np.ndarray, SegmentationReport]:
    scan, mask = folder / "data" / "imagesTr" / "ellipsoids_000_0000.nii.gz", folder / f"{name}.nii.gz"
    report = segment(scan, mask, model=folder / "run", communicator=SERIAL, **options)
    return np.asarray(nib.load(mask).dataobj), report


def test_a_run_and_its_masks_say_how_they_were_stored(tmp_path: Path) -> None:
    data, run, config = tiny_dataset(tmp_path / "data", shape=SHAPE), tmp_path / "run", tiny_config()
    assert train(data, run, config=config, precision="bfloat16", previews=0, communicator=SERIAL).steps == 4
    assert read_config(run / "config.toml").training.precision == "bfloat16"
    assert all(np.isfinite(losses(run)))
    own, report = segmented(tmp_path, "own", report_file=tmp_path / "own.json")
    assert report.precision == json.loads((tmp_path / "own.json").read_text())["precision"] == "bfloat16"
    single, report = segmented(tmp_path, "single", precision="float32")
    assert report.precision == "float32"
    assert (own == single).mean() > 0.9

    events: list[object] = []
    proceed = {"proceed": True, "previews": 0, "communicator": SERIAL, "listen": events.append}
    train(data, run, epochs=3, precision="auto", **proceed)
    assert not [event for event in events if isinstance(event, Caution) and "precision" in event.text]
    train(data, run, epochs=4, precision="float32", **proceed)
    said = [event.text for event in events if isinstance(event, Caution)]
    assert any("training.precision: bfloat16 -> float32" in text for text in said)
    tensors, card = load_tensors(run / "weights.safetensors")
    assert all(str(tensor.dtype) == "torch.float32" for tensor in tensors.values())
    assert card.config.training.precision == "float32"


def test_a_precision_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"precision.*float32.*bfloat16"):
        train(tmp_path, tmp_path / "run", precision="float16", communicator=SERIAL)


@pytest.mark.parallel([2])
def test_losses_and_logits_of_two_ranks_are_those_of_one(shared: Path, communicator: Communicator) -> None:
    data, config = shared / "data", tiny_config(epochs=1)
    communicator.on_root(lambda: tiny_dataset(data, shape=SHAPE))
    alone = communicator.on_root(
        lambda: train(data, shared / "one", config=config, precision="bfloat16", previews=0, communicator=SERIAL).loss
    )
    many = train(data, shared / "many", config=config, precision="bfloat16", previews=0, communicator=communicator).loss
    assert many == pytest.approx(alone, rel=1e-3)
    scan = data / "imagesTr" / "ellipsoids_000_0000.nii.gz"
    assert verify_partition(scan, model=shared / "many", communicator=communicator).identical
