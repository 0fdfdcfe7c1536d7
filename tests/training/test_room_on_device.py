"""A step that does not fit on a GPU is refused; the GPU is told of, since none may be here."""

import dataclasses

import pytest
import torch

from tiny import tiny_config, tiny_dataset
from volseg.config import ModelConfig, TrainingConfig
from volseg.distributed.communicator import SerialCommunicator
from volseg.distributed.devices import CPU, Device
from volseg.errors import PartitionError
from volseg.networks.architectures import described
from volseg.partition.layout import Layout
from volseg.planning.memory import training_memory
from volseg.training import room_on_device
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.training.room_on_device import check_room

GPU, SERIAL = Device("cuda:0", "GPU of a test"), SerialCommunicator()
NETWORK = described(ModelConfig(base_channels=16, levels=2))


def plan_of(**settings):
    return training_memory(NETWORK, TrainingConfig(**settings), Layout.even((64, 64, 64), (1, 1, 1)))


def test_what_does_not_fit_is_refused_and_bfloat16_is_a_remedy(monkeypatch):
    plan, half = plan_of(), plan_of(precision="bfloat16")
    room = 0.7 * (plan.weights + plan.activations)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (room / 0.9, 1 << 40))
    with pytest.raises(PartitionError, match=r"cuda:0: a training step has .* are free .*--precision bfloat16"):
        check_room(plan, GPU, SERIAL)
    check_room(half, GPU, SERIAL)
    with pytest.raises(PartitionError):
        check_room(half, dataclasses.replace(GPU, sharing=2), SERIAL)


def test_a_processor_refuses_nothing_here():
    check_room(plan_of(), CPU, SERIAL)


def test_a_run_is_refused_before_it_writes_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(room_on_device, "free_memory", lambda device, communicator: 1000)
    data = tiny_dataset(tmp_path / "data", cases=1)
    with pytest.raises(PartitionError, match="free for each rank"):
        train(TrainingJob(data, tmp_path / "run", tiny_config()), SERIAL)
    assert not (tmp_path / "run" / "log.csv").exists()
