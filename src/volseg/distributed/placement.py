"""Where the ranks of a job run: how many share a machine, and which cores are whose.

Ranks that may all run everywhere disturb each other's caches and leave cores idle as the system moves them about, so
ranks that share a machine each keep to cores of their own, as many as every one of them gets. A launcher or batch
system that has bound the ranks already is left alone, and so is a user who sets VOLSEG_BIND=0.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from volseg.distributed.communicator import Communicator


@dataclass(frozen=True)
class Placement:
    """What this rank has of its machine.

    node         the machine's name
    local_size   ranks of the job on it
    cores        that this rank may run on
    sharing      ranks that may run on some of these cores, this one included
    bound        whether it was bound to them here
    """

    node: str
    local_size: int
    cores: tuple[int, ...]
    sharing: int
    bound: bool

    @property
    def threads(self) -> int:
        """How many threads this rank should have: no core has more than one thread of the job."""
        return max(1, len(self.cores) // self.sharing)


def place(communicator: Communicator) -> Placement:
    """Find out where the ranks run, and bind those that share cores to their own. Collective.

    To be called before any thread is started: threads inherit the cores.
    """
    node, cores = socket.gethostname(), available_cores()
    everyone = communicator.gather_all((node, cores))
    here = [rank for rank, (name, _) in enumerate(everyone) if name == node]
    shared = len(here) > 1 and all(everyone[rank][1] == cores for rank in here)
    own = own_cores(cores, here.index(communicator.rank), len(here)) if shared and may_bind() else ()
    bound = bool(own) and bind(own)
    sharing = 1 if bound else sum(not set(cores).isdisjoint(everyone[rank][1]) for rank in here)
    return Placement(node, len(here), own if bound else cores, sharing, bound)


def ranks_on_this_machine(communicator: Communicator) -> int:
    """How many ranks of the job share this rank's machine. Collective."""
    return communicator.gather_all(socket.gethostname()).count(socket.gethostname())


def available_cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def own_cores(cores: tuple[int, ...], number: int, ranks: int) -> tuple[int, ...]:
    """The cores of one of `ranks` ranks that share `cores`: as many neighbours for each; none where there are fewer."""
    each = len(cores) // ranks
    return cores[number * each : (number + 1) * each]


def may_bind() -> bool:
    """Whether the user lets volseg bind ranks to cores."""
    return os.environ.get("VOLSEG_BIND", "1") != "0" and hasattr(os, "sched_setaffinity")


def bind(cores: tuple[int, ...]) -> bool:
    """Bind this process to `cores`; whether the system let it."""
    try:
        os.sched_setaffinity(0, cores)
    except (AttributeError, OSError):  # a system that binds no processes, or did not want to
        return False
    return True


def binding_advice(placement: Placement, environment: Mapping[str, str] = os.environ) -> str | None:
    """What to say where Open MPI's mpirun left most of the machine's cores to nobody; None where there is nothing.

    By default it binds each of one or two ranks to a single core, so that each has a single thread on any machine.
    """
    used, there = placement.local_size * len(placement.cores), os.cpu_count() or 1
    if "OMPI_COMM_WORLD_SIZE" not in environment or placement.bound or placement.sharing > 1 or used >= there:
        return None
    return (
        f"mpirun bound each of the {placement.local_size} ranks on {placement.node} to {len(placement.cores)} of its "
        f"{there} cores: give mpirun --bind-to none, or --map-by slot:PE={there // placement.local_size}"
    )


def placement_facts(communicator: Communicator, threads: int) -> list[dict[str, Any]]:
    """Machine, cores and threads of every rank, as they stand in a report. Collective."""
    own = {"node": socket.gethostname(), "cores": list(available_cores()), "threads": threads}
    return communicator.gather_all(own)
