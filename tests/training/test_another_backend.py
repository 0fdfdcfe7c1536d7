"""A run goes on by torch's operators, as on a GPU, and back by the compiled kernels: checkpoints know no device."""

import json
import shutil

import numpy as np

from tiny import SERIAL, losses, tiny_config, tiny_dataset
from volseg.nn.fused.backend import BACKEND
from volseg.training.job import TrainingJob
from volseg.training.loop import train


def test_a_run_goes_on_by_another_backend_and_back(tmp_path, monkeypatch):
    data = tiny_dataset(tmp_path / "data", cases=1)

    def to_epoch(epochs, run, backend=""):
        monkeypatch.setenv(BACKEND, backend)
        train(TrainingJob(data, tmp_path / run, tiny_config(epochs=epochs), proceed=(tmp_path / run).exists()), SERIAL)

    to_epoch(1, "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    for epochs, backend in ((2, "torch"), (3, "")):
        to_epoch(epochs, "here")
        to_epoch(epochs, "there", backend)
    here, there = losses(tmp_path / "here"), losses(tmp_path / "there")
    assert len(here) == len(there) == 3
    np.testing.assert_allclose(there, here, rtol=1e-3)
    assert there[1] != here[1] or there[2] != here[2]  # it was the other one
    devices = json.loads((tmp_path / "there" / "report.json").read_text())["devices"]
    assert devices == [{"device": "cpu", "title": None, "sharing": 1, "peak_bytes": None}]
