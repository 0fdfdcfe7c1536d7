"""What a study may use: cores, memory and ranks of this machine, or of the batch job that it runs in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from volseg.machine import available_memory, physical_memory, processor_name

_TASKS = ("SLURM_NTASKS", "PBS_NP", "LSB_DJOB_NUMPROC", "NSLOTS")
"""What Slurm, PBS, LSF and Grid Engine call the number of ranks that a job may start."""

_NODES = ("SLURM_JOB_NUM_NODES", "SLURM_NNODES", "PBS_NUM_NODES")
_SHARE = 0.75
"""Of the memory there is, a case takes so much at most."""


@dataclass(frozen=True)
class Means:
    """What there is.

    machine    in words
    cores      ranks of one thread that run at full speed at once: more of them measure memory only
    nodes      machines
    memory     bytes that ranks may take together, on each machine
    installed  bytes of memory of a machine
    scheduler  whether a batch system gave it
    """

    machine: str
    cores: int
    nodes: int
    memory: int
    installed: int
    scheduler: bool = False

    @property
    def cores_per_node(self) -> int:
        """Ranks on each machine."""
        return max(1, self.cores // self.nodes)

    def holds(self, peak: int, ranks: int) -> bool:
        """Whether so many ranks of `peak` bytes each find room."""
        on_one = -(-ranks // self.nodes) if ranks > self.cores_per_node else ranks
        return peak * on_one <= self.memory


def find_means(environment: Mapping[str, str] = os.environ) -> Means:
    """Those of the batch job that this process is in, else of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    tasks, nodes = _number(environment, _TASKS), _number(environment, _NODES)
    memory = int(available_memory() * _SHARE)
    name, installed = processor_name(), physical_memory()
    if tasks is None:
        return Means(machine=name, cores=cores, nodes=1, memory=memory, installed=installed)
    return Means(
        machine=name, cores=tasks, nodes=min(nodes or 1, tasks), memory=memory, installed=installed, scheduler=True
    )


def _number(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    found = [int(environment[name]) for name in names if environment.get(name, "").isdecimal()]
    return max(1, found[0]) if found else None


def ranks_up_to(cores: int, beyond: int = 1) -> tuple[int, ...]:
    """1, 2, 4 ... to the number of cores, and so many doublings more, which measure memory only."""
    powers = [2**n for n in range(cores.bit_length())]
    return (*powers, *(powers[-1] * 2 ** (n + 1) for n in range(beyond)))
