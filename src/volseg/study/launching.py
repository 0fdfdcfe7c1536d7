"""Starting the program itself, on one rank or many: what a study measures are real runs."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from volseg.distributed.launch import mpi_library
from volseg.distributed.slurm import srun_options
from volseg.errors import ConfigError, LaunchError

MINUTES = 60.0


@dataclass(frozen=True)
class Launcher:
    """How jobs of several ranks are started.

    words  of the command before the program; ``{ranks}`` stands for their number
    """

    words: tuple[str, ...]

    def command(self, ranks: int) -> list[str]:
        """The beginning of a command line for so many ranks; nothing for one."""
        return [word.replace("{ranks}", str(ranks)) for word in self.words] if ranks > 1 else []


def find_launcher(given: str | None = None, environment: Mapping[str, str] = os.environ) -> Launcher | None:
    """srun in a Slurm job, where it starts ranks of this MPI; else the mpirun beside this Python, or that on PATH.

    None where there is none.

    given  a command instead, such as ``srun --mpi=pmi2 -n {ranks}``

    Raises ConfigError where the given one does not say where the number of ranks goes.
    """
    if given is not None:
        if "{ranks}" not in given:
            raise ConfigError(f"--launcher {given}: write {{ranks}} where their number goes, as in mpirun -n {{ranks}}")
        return Launcher(tuple(shlex.split(given)))
    if environment.get("SLURM_JOB_ID") and shutil.which("srun"):
        how = srun_options(mpi_library())
        if how is not None:
            return Launcher(("srun", *how, "-n", "{ranks}"))
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    return None if found is None else Launcher((found, "-n", "{ranks}"))


def run_volseg(
    folder: Path, *arguments: object, ranks: int = 1, threads: int | None = None, launcher: Launcher | None = None,
    minutes: float = MINUTES, module: str = "volseg",
) -> None:  # fmt: skip
    """Run one volseg command in a folder, quietly, to its end.

    module  that is run instead, with the options of a command at its end

    Raises LaunchError, with the last that it said, where it fails or takes longer than `minutes`.
    """
    if ranks > 1 and launcher is None:
        raise LaunchError(f"no mpirun found to start {ranks} ranks with: install mpich, or name one with --launcher")
    before = launcher.command(ranks) if launcher is not None else []
    command = [*before, sys.executable, "-m", module, *map(str, arguments), "--quiet"]
    environment = dict(os.environ) | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said, _ = process.communicate(timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
        raise LaunchError(f"{shlex.join(command)}: not done after {minutes:g} minutes") from None
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode:
        last = " / ".join(said.strip().splitlines()[-3:])
        raise LaunchError(f"{shlex.join(command)}: failed with {process.returncode}: {last}")
