"""Which device the network of each rank runs on: the processor, or a GPU of its machine, which ranks share in turn."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from volseg.distributed.communicator import Communicator
from volseg.errors import ConfigError

AUTO = "auto"
_SHARE_OF_FREE = 0.9  # of a GPU's free memory: cuDNN's workspaces and what the allocator cannot use take the rest


@dataclass(frozen=True)
class Device:
    """Where the network of this rank runs.

    name     as torch has it: cpu, cuda:1
    title    of a GPU, such as NVIDIA H200; None for the processor
    sharing  ranks of the job that run on the same one
    """

    name: str = "cpu"
    title: str | None = None
    sharing: int = 1

    @property
    def is_gpu(self) -> bool:
        """Whether it has memory of its own."""
        return self.name != "cpu"

    @property
    def described(self) -> str:
        """For a line of text."""
        shared = f", shared by {self.sharing} ranks" if self.sharing > 1 else ""
        return self.name if self.title is None else f"{self.title} ({self.name}{shared})"


CPU = Device()


def choose_device(wish: str, communicator: Communicator, environment: Mapping[str, str] = os.environ) -> Device:
    """The device of this rank. Collective.

    wish  cpu; cuda: the GPUs of each machine in turn, rank by rank; cuda:1: that one; auto: cuda where every rank sees
          a GPU, else cpu

    Raises ConfigError, on all ranks, for another word, and where a GPU is asked for that a rank does not see.
    """
    match = re.fullmatch(r"(?:auto|cpu|cuda(?::(\d+))?)", wish)
    if match is None:
        raise ConfigError(f"--device {wish}: give cpu, cuda, cuda:N such as cuda:0, or auto")
    if wish == "cpu":
        return CPU
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    everyone = communicator.gather_all((socket.gethostname(), count, why_no_gpu(environment) if count == 0 else ""))
    lacking = [rank for rank, (_, seen, _) in enumerate(everyone) if seen == 0]
    if lacking and wish == AUTO:
        return CPU
    if lacking:
        node, _, why = everyone[lacking[0]]
        of = "" if communicator.size == 1 else f" on rank {lacking[0]} ({node}), of {len(lacking)} such ranks"
        raise ConfigError(f"--device {wish}: no GPU{of}: {why}; give --device cpu, or see docs/gpu.md")
    if match[1] is not None:
        fewest = min(seen for _, seen, _ in everyone)
        if int(match[1]) >= fewest:
            raise ConfigError(f"--device {wish}: torch sees {fewest} GPU(s), cuda:0 to cuda:{fewest - 1}")
        number = int(match[1])
    else:
        number = in_turn([node for node, _, _ in everyone], communicator.rank, count)
    properties = torch.cuda.get_device_properties(number)
    # By their own numbers: where each rank sees one GPU alone, all call it cuda:0.
    same = communicator.gather_all((socket.gethostname(), str(getattr(properties, "uuid", number))))
    torch.cuda.set_device(number)
    return Device(f"cuda:{number}", properties.name, same.count(same[communicator.rank]))


def in_turn(nodes: Sequence[str], rank: int, count: int) -> int:
    """Which of a machine's `count` GPUs a rank has, by the machines of all ranks: one after the other, round robin."""
    return nodes[:rank].count(nodes[rank]) % count


def why_no_gpu(environment: Mapping[str, str] = os.environ) -> str:
    """Why torch sees none."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this torch ({torch.__version__}) is built for processors alone; install a build for CUDA"
    if environment.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides all of them"
    return "torch sees none; does nvidia-smi, and is the driver as new as torch's CUDA " + str(torch.version.cuda)


def free_memory(device: Device, communicator: Communicator) -> int | None:
    """Bytes of a GPU that a rank may use, the smallest of all ranks'; None on the processor. Collective.

    The ranks that share one share what is free.
    """
    if not device.is_gpu:
        return None
    free, _ = torch.cuda.mem_get_info(torch.device(device.name))
    own = free * _SHARE_OF_FREE / device.sharing
    return int(communicator.reduce_all(np.array([own]), "min")[0])


def device_facts(device: Device, communicator: Communicator) -> list[dict[str, Any]]:
    """Device of every rank, and the most bytes that tensors had on it, as they stand in a report. Collective."""
    peak = torch.cuda.max_memory_allocated(torch.device(device.name)) if device.is_gpu else None
    own = {"device": device.name, "title": device.title, "sharing": device.sharing, "peak_bytes": peak}
    return communicator.gather_all(own)
