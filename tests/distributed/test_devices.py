"""Which device each rank's network runs on; GPUs are told of, since none may be here."""

import pytest
import torch

from volseg.distributed import devices
from volseg.distributed.communicator import SerialCommunicator
from volseg.distributed.devices import CPU, Device, choose_device, device_facts, free_memory, in_turn, why_no_gpu
from volseg.errors import ConfigError

SERIAL = SerialCommunicator()


class Ranks(SerialCommunicator):
    """Rank `rank` of several, whose values are told."""

    def __init__(self, rank, everyone):
        super().__init__()
        self.rank, self.size, self._everyone = rank, len(everyone), everyone

    def gather_all(self, value):
        return self._everyone if len(value) == 3 else [value] * self.size


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = type("Properties", (), {"name": "GPU of a test", "uuid": "7"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize("wish", ["cpu", "auto"])
def test_without_a_gpu_it_is_the_processor(no_gpu, wish):
    assert choose_device(wish, SERIAL) == CPU
    assert free_memory(CPU, SERIAL) is None
    assert device_facts(CPU, SERIAL) == [{"device": "cpu", "title": None, "sharing": 1, "peak_bytes": None}]


def test_a_gpu_that_is_not_there_is_refused_with_the_cause(no_gpu):
    with pytest.raises(ConfigError, match=r"--device cuda: no GPU: .*; give --device cpu, or see docs/gpu.md"):
        choose_device("cuda", SERIAL)


@pytest.mark.parametrize("wish", ["gpu", "cuda:", "cuda:x", "CUDA", ""])
def test_other_words_are_refused(wish):
    with pytest.raises(ConfigError, match="give cpu, cuda, cuda:N such as cuda:0, or auto"):
        choose_device(wish, SERIAL)


def test_ranks_of_a_machine_share_its_gpus_in_turn():
    nodes = ["a", "a", "b", "a", "b"]
    assert [in_turn(nodes, rank, 2) for rank in range(5)] == [0, 1, 0, 0, 1]


def test_a_gpu_of_the_machine_is_taken(two_gpus):
    everyone = [("a", 2, ""), ("a", 2, "")]
    assert choose_device("auto", Ranks(1, everyone)) == Device("cuda:1", "GPU of a test", 2)
    assert choose_device("cuda:0", Ranks(1, everyone)).described == "GPU of a test (cuda:0, shared by 2 ranks)"
    assert two_gpus == [1, 0]
    with pytest.raises(ConfigError, match=r"--device cuda:2: torch sees 2 GPU\(s\), cuda:0 to cuda:1"):
        choose_device("cuda:2", Ranks(0, everyone))


def test_ranks_of_which_some_see_no_gpu(two_gpus):
    everyone = [("a", 2, ""), ("b", 0, "CUDA_VISIBLE_DEVICES hides all of them")]
    assert choose_device("auto", Ranks(0, everyone)) == CPU
    with pytest.raises(ConfigError, match=r"no GPU on rank 1 \(b\), of 1 such ranks: CUDA_VISIBLE_DEVICES hides"):
        choose_device("cuda", Ranks(0, everyone))


def test_why_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    assert "is built for processors alone" in why_no_gpu({})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert why_no_gpu({"CUDA_VISIBLE_DEVICES": ""}) == "CUDA_VISIBLE_DEVICES hides all of them"
    assert "nvidia-smi" in why_no_gpu({})


def test_ranks_share_what_a_gpu_has_free(monkeypatch):
    monkeypatch.setattr(devices.torch.cuda, "mem_get_info", lambda device: (10 * 2**30, 12 * 2**30))
    shared = Device("cuda:0", "GPU", sharing=2)
    assert free_memory(shared, SERIAL) == pytest.approx(4.5 * 2**30)
