"""Starting MPI where a launcher started this process, after making sure that its MPI library is the launcher's own."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.distributed.launchers import Launcher, launchers
from volseg.distributed.slurm import mpi_type, offered_types
from volseg.errors import LaunchError

if TYPE_CHECKING:
    from volseg.distributed.communicator import Communicator


def connect() -> Communicator:
    """The job's communicator, a duplicate of MPI_COMM_WORLD; `SerialCommunicator` for a process that is alone.

    Collective under a launcher. mpi4py is imported, and MPI started, only then.

    Raises
    ------
    LaunchError
        MPI cannot be loaded, is not the launcher's own, or counts other ranks than the launcher.
    """
    from volseg.distributed.communicator import SerialCommunicator

    started_by = launchers()
    if not started_by:
        return SerialCommunicator()
    try:
        mpi = load_mpi()
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise LaunchError(
            f"started by {started_by[0].name}, but MPI cannot be loaded: {reason}\nLoad the MPI that mpi4py was built "
            f"for (on clusters a module), or where there is none, install one: {_pip()} mpich mpi4py"
        ) from error
    library = mpi.Get_library_version()
    if not mpi.Is_initialized():
        check_library(started_by, library)
        with warnings.catch_warnings():  # mpi4py warns of some mismatches; `check_sizes` stops at them all
            warnings.simplefilter("ignore", RuntimeWarning)
            mpi.Init_thread(mpi.THREAD_MULTIPLE)
    check_sizes(started_by, mpi.COMM_WORLD.size, library)

    from volseg.distributed.ending import JobCommunicator

    return JobCommunicator(mpi.COMM_WORLD.Dup(), mpi.COMM_WORLD.Dup())


def load_mpi() -> Any:
    """mpi4py's module, with the MPI library loaded and not started, unless somebody did before.

    Raises ImportError or RuntimeError where there is no library.
    """
    import mpi4py

    if "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        from mpi4py import MPI

    return MPI


def mpi_library() -> str | None:
    """What the MPI library says of itself, without starting it; None where none can be loaded."""
    try:
        return str(load_mpi().Get_library_version())
    except (ImportError, RuntimeError):
        return None


def check_library(
    started_by: Sequence[Launcher], library: str, environment: Mapping[str, str] = os.environ
) -> None:  # fmt: skip
    """Refuse a launcher that speaks what an MPI library does not: started all the same, some libraries end the process.

    library  as MPI_Get_library_version says it

    Raises LaunchError, naming the library and what to start the job with.
    """
    from volseg.distributed.communicator import library_name

    is_open = "open mpi" in library.lower()
    if "MPI_LOCALNRANKS" in environment and started_by[0].name == "mpirun":
        speaker = "the mpirun of MPICH or Intel MPI" if is_open else None
    elif is_open or "pmix" in library.lower() or "PMI_RANK" in environment:
        speaker = None
    elif "OMPI_COMM_WORLD_SIZE" in environment:
        speaker = "Open MPI's mpirun"
    elif "PMIX_RANK" in environment:
        speaker = "srun --mpi=pmix" if any(launcher.name == "srun" for launcher in started_by) else "PMIx"
    else:
        speaker = None
    if speaker is None:
        return
    raise LaunchError(
        f"started by {speaker}, but MPI is {library_name(library)}, which does not understand it\n"
        f"{_remedy(started_by, library)}"
    )


def check_sizes(started_by: Sequence[Launcher], size: int, library: str) -> None:
    """Refuse a launcher of another MPI, which starts N processes that each believe to be rank 0 of 1.

    Where several launchers' variables are set (one job started inside another), agreeing with any of them is enough.

    Raises LaunchError, naming both sizes and the library.
    """
    announced = [launcher for launcher in started_by if launcher.size is not None]
    if not announced or any(launcher.size == size for launcher in announced):
        return
    from volseg.distributed.communicator import library_name

    raise LaunchError(
        f"{announced[0].name} started {announced[0].size} ranks, but MPI ({library_name(library)}) sees {size}: "
        f"the launcher is not this MPI's own\n{_remedy(started_by, library)}"
    )


def _remedy(started_by: Sequence[Launcher], library: str) -> str:
    """What to start the job with. No word of installing over what is there: a site's MPI is built for its network."""
    own = own_launcher(library)
    if started_by[0].name == "srun":
        how = mpi_type(library, offered_types())
        if how is not None:
            return f"Start the job with: srun --mpi={how} ..."
        if own is not None:
            return f"This srun starts no ranks of this MPI (srun --mpi=list); in the job, start them with: {own}"
    if own is not None:
        return f"Start the job with: {own}"
    return (
        "Start it with the mpirun or srun of the MPI that mpi4py was built for (on clusters: load its module); or make "
        "an environment with its own, python -m venv ENV, install mpich, mpi4py and volseg there, and use its mpirun"
    )


def own_launcher(library: str) -> Path | None:
    """The mpirun that came with the loaded MPI library: beside it, or beside this Python; None where there is none."""
    folders = [path.parent.parent / "bin" for path in mapped_libraries()]
    # Intel's mpirun is a shell script, which does not hand signals on to its ranks.
    names = ("mpiexec.hydra", "mpirun") if "intel" in library.lower() else ("mpirun",)
    places = [folder / name for folder in [*folders, Path(sys.executable).parent] for name in names]
    return next((place for place in places if place.is_file() and os.access(place, os.X_OK)), None)


def mapped_libraries() -> list[Path]:
    """The files of libmpi in this process's memory (Linux; elsewhere none)."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = [line[line.index("/") :] for line in lines if "/" in line]
    return list(dict.fromkeys(Path(path) for path in paths if Path(path).name.startswith("libmpi")))


def _pip() -> str:
    return f"{sys.executable} -m pip install"
