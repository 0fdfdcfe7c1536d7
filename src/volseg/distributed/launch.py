"""Who started this process: nobody, mpirun, or srun; and whether its MPI library agrees.

Everything except `connect` reads environment variables only, so ``volseg --help`` never starts MPI.
What the launchers set: MPICH's and Intel's hydra PMI_RANK, PMI_SIZE and MPI_LOCALNRANKS; Open MPI's mpirun
OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE and OMPI_COMM_WORLD_LOCAL_SIZE; srun SLURM_PROCID, SLURM_STEP_ID and
SLURM_STEP_NUM_TASKS. A batch script outside srun has SLURM_NTASKS and SLURM_PROCID as well, but no step: it is one
process.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from volseg.errors import LaunchError

if TYPE_CHECKING:
    from volseg.distributed.communicator import Communicator


@dataclass(frozen=True)
class Launcher:
    """What one launcher says about this process; None where it does not say.

    rank        of this process in the job
    size        processes in the job
    local_size  processes of the job on this machine
    """

    name: str
    rank: int | None
    size: int | None
    local_size: int | None


def launchers(environment: Mapping[str, str] = os.environ) -> list[Launcher]:
    """The launchers whose variables are set, in the order of trust; none for an ordinary process."""

    def number(variable: str) -> int | None:
        text = environment.get(variable, "")
        return int(text) if text.isdecimal() else None

    found = []
    if number("PMI_RANK") is not None or number("PMI_SIZE") is not None:
        found.append(Launcher("mpirun", number("PMI_RANK"), number("PMI_SIZE"), number("MPI_LOCALNRANKS")))
    if number("OMPI_COMM_WORLD_SIZE") is not None:
        local = number("OMPI_COMM_WORLD_LOCAL_SIZE")
        found.append(Launcher("mpirun", number("OMPI_COMM_WORLD_RANK"), number("OMPI_COMM_WORLD_SIZE"), local))
    tasks = number("SLURM_STEP_NUM_TASKS")
    # One task is also what an interactive shell under srun or salloc shows: an ordinary process, as far as MPI goes.
    if number("SLURM_STEP_ID") is not None and number("SLURM_PROCID") is not None and tasks is not None and tasks > 1:
        local = tasks if environment.get("SLURM_STEP_NUM_NODES") == "1" else None
        found.append(Launcher("srun", number("SLURM_PROCID"), tasks, local))
    if not found and number("PMIX_RANK") is not None:
        found.append(Launcher("PMIx", number("PMIX_RANK"), None, None))
    return found


def under_launcher(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an MPI launcher started this process."""
    return bool(launchers(environment))


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank as its launcher gave it; 0 without one. Needs no MPI."""
    return next((launcher.rank for launcher in launchers(environment) if launcher.rank is not None), 0)


def cores_per_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Cores this process may use if it shares this machine's with the job's other ranks here; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = next((launcher.local_size for launcher in launchers(environment) if launcher.local_size), 1)
    return max(1, cores // local)


def connect() -> Communicator:
    """The job's communicator, a duplicate of MPI_COMM_WORLD; `SerialCommunicator` without a launcher.

    Collective under a launcher. mpi4py is imported, and MPI started, only then.

    Raises
    ------
    LaunchError
        MPI cannot be loaded, or its number of ranks is not the launcher's.
    """
    from volseg.distributed.communicator import SerialCommunicator

    found = launchers()
    if not found:
        return SerialCommunicator()
    try:
        with warnings.catch_warnings():  # mpi4py warns of some mismatches; `check_sizes` stops at them all
            warnings.simplefilter("ignore", RuntimeWarning)
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise LaunchError(
            f"started by {found[0].name}, but MPI cannot be loaded: {reason}\nLoad the MPI that mpi4py was built for "
            f"(on clusters a module), or where there is none, install one: {_pip()} mpich mpi4py"
        ) from error
    check_sizes(found, MPI.COMM_WORLD.size, MPI.Get_library_version())

    from volseg.distributed.ending import JobCommunicator

    return JobCommunicator(MPI.COMM_WORLD.Dup(), MPI.COMM_WORLD.Dup())


def check_sizes(found: list[Launcher], size: int, library: str) -> None:
    """Refuse a launcher of another MPI, which starts N processes that each believe to be rank 0 of 1.

    Where several launchers' variables are set (one job started inside another), agreeing with any of them is enough.

    Raises LaunchError, naming both sizes and the library.
    """
    announced = [launcher for launcher in found if launcher.size is not None]
    if not announced or any(launcher.size == size for launcher in announced):
        return
    from volseg.distributed.communicator import library_name

    raise LaunchError(
        f"{announced[0].name} started {announced[0].size} ranks, but MPI ({library_name(library)}) sees {size}: "
        f"the launcher is not this MPI's own\n{_remedy()}"
    )


def _remedy() -> str:
    """No word of installing over what is there: a site's mpi4py is built for the site's network."""
    beside = Path(sys.executable).with_name("mpirun")
    if beside.exists():
        return f"Start the job with: {beside}"
    return (
        "Start it with the mpirun or srun of the MPI that mpi4py was built for (on clusters: load its module); or make "
        "an environment with its own, python -m venv ENV, install mpich, mpi4py and volseg there, and use its mpirun"
    )


def _pip() -> str:
    return f"{sys.executable} -m pip install"
