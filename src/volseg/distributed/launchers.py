"""Who started this process: nobody, mpirun, or srun. Environment variables say it, so that nothing starts MPI here.

What the launchers set: MPICH's and Intel's hydra PMI_RANK, PMI_SIZE and MPI_LOCALNRANKS; Open MPI's mpirun
OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE and OMPI_COMM_WORLD_LOCAL_SIZE; srun SLURM_PROCID, SLURM_STEP_ID and
SLURM_STEP_NUM_TASKS, with ``--mpi=pmi2`` PMI_RANK and PMI_SIZE too, with ``--mpi=pmix`` PMIX_RANK. A batch script
outside srun has SLURM_NTASKS and SLURM_PROCID as well, but no step: it is one process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from volseg.distributed.slurm import KILL


@dataclass(frozen=True)
class Launcher:
    """What one launcher says about this process; None where it does not say.

    name        of its command, or of the interface by which it speaks: mpirun, srun, PMIx
    rank        of this process in the job
    size        processes in the job
    local_size  processes of the job on this machine
    """

    name: str
    rank: int | None
    size: int | None
    local_size: int | None


def launchers(environment: Mapping[str, str] = os.environ) -> list[Launcher]:
    """The launchers whose variables are set, in the order of trust; none for an ordinary process.

    A job of one rank is an ordinary process: it needs no MPI, and where several programs run in one such job, as in a
    shell that ``srun -n 1`` started, only the first of them could start it.
    """

    def number(variable: str) -> int | None:
        text = environment.get(variable, "")
        return int(text) if text.isdecimal() else None

    tasks = number("SLURM_STEP_NUM_TASKS")
    in_step = number("SLURM_STEP_ID") is not None and number("SLURM_PROCID") is not None and tasks is not None
    every: list[Launcher] = []
    # Under srun --mpi=pmi2 these are srun's; hydra also says how many ranks share the machine.
    of_srun = in_step and number("MPI_LOCALNRANKS") is None and number("PMI_SIZE") == tasks
    if (number("PMI_RANK") is not None or number("PMI_SIZE") is not None) and not of_srun:
        every.append(Launcher("mpirun", number("PMI_RANK"), number("PMI_SIZE"), number("MPI_LOCALNRANKS")))
    if number("OMPI_COMM_WORLD_SIZE") is not None:
        local = number("OMPI_COMM_WORLD_LOCAL_SIZE")
        every.append(Launcher("mpirun", number("OMPI_COMM_WORLD_RANK"), number("OMPI_COMM_WORLD_SIZE"), local))
    if in_step:
        local = tasks if environment.get("SLURM_STEP_NUM_NODES") == "1" else None
        every.append(Launcher("srun", number("SLURM_PROCID"), tasks, local))
    if not every and number("PMIX_RANK") is not None:
        every.append(Launcher("PMIx", number("PMIX_RANK"), None, None))
    return [] if every and every[0].size == 1 else every


def under_launcher(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an MPI launcher started this process as one of several ranks."""
    return bool(launchers(environment))


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank as its launcher gave it; 0 without one. Needs no MPI."""
    return next((launcher.rank for launcher in launchers(environment) if launcher.rank is not None), 0)


def launch_words(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The words that a command line like this process's begins with, before the number of ranks."""
    started_by = next((launcher.name for launcher in launchers(environment)), "mpirun")
    if started_by != "srun":
        return ["mpirun"]
    how = environment.get("SLURM_MPI_TYPE")  # as srun was told, where it was
    return ["srun", *([f"--mpi={how}"] if how else []), KILL]


def cores_per_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Cores this process may use if it shares this machine's with the job's other ranks here; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = next((launcher.local_size for launcher in launchers(environment) if launcher.local_size), 1)
    return max(1, cores // local)
