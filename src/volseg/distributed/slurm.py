"""What srun has to be told so that it and an MPI library understand each other."""

from __future__ import annotations

import re
import shutil
import subprocess

KILL = "--kill-on-bad-exit=1"
"""Ends the whole job step where a rank was killed; by default srun lets the others wait for it for ever."""

_TYPES = {"Open MPI": ("pmix", "pmi2"), "CRAY MPICH": ("cray_shasta", "pmi2"), "MPICH": ("pmi2", "pmix"),
          "Intel": ("pmi2", "pmix"), "MVAPICH": ("pmi2", "pmix")}  # fmt: skip
"""By how an MPI library calls itself: the values of --mpi by which srun may start its ranks, the best one first."""

SECONDS = 10.0


def offered_types() -> list[str]:
    """The values that this machine's srun takes for --mpi, as ``srun --mpi=list`` says; none without one."""
    if shutil.which("srun") is None:
        return []
    try:
        run = subprocess.run(
            ["srun", "--mpi=list"], capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^(?:srun: )?\s+(\w+)$", run.stdout + run.stderr, re.MULTILINE) if run.returncode == 0 else []


def mpi_type(library: str, offered: list[str]) -> str | None:
    """The value of ``srun --mpi`` for an MPI library; None where srun offers none that it understands.

    library  as MPI_Get_library_version says it
    offered  by srun; none: it could not be asked, and takes the usual one
    """
    usual = next((types for name, types in _TYPES.items() if name.lower() in library.lower()), ())
    if not offered:
        return usual[0] if usual else None
    return next((name for name in usual if name in offered), None)


def srun_options(library: str | None) -> tuple[str, ...] | None:
    """What srun is told to start ranks of an MPI library; None where this machine's cannot start any of it.

    library  as MPI_Get_library_version says it; None: unknown, and srun takes the site's default
    """
    if library is None:
        return (KILL,)
    offered = offered_types()
    how = mpi_type(library, offered)
    if how is None:
        return None if offered else (KILL,)
    return f"--mpi={how}", KILL
