"""The batch systems that scripts are printed for, and what a cluster wants to be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class System(StrEnum):
    """A batch system."""

    SLURM = "slurm"
    PBS = "pbs"
    LSF = "lsf"


@dataclass(frozen=True)
class Site:
    """What a cluster wants to be told besides.

    system   its batch system
    account  that pays, and queue (Slurm: partition) that it waits in; None: the user's own
    seconds  that it may run
    setup    lines of the shell before the program: modules, environments
    launch   options of srun; of PBS and LSF, of mpirun
    """

    system: System = System.SLURM
    account: str | None = None
    queue: str | None = None
    seconds: int = 24 * 3600
    setup: Sequence[str] = ()
    launch: Sequence[str] = ()
