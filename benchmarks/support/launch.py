"""How benchmarks start volseg, and jobs of several ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def mpirun(ranks: int) -> list[str]:
    """The beginning of a command line that starts so many ranks: this environment's mpirun, or else the system's."""
    beside = Path(sys.executable).with_name("mpirun")
    return [str(beside) if beside.exists() else "mpirun", "-n", str(ranks)]


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """This program's own, and those behind ``--``."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def volseg(folder: Path, *arguments: object, ranks: int = 1, threads: int | None = None) -> None:
    """Run one command quietly in a folder. Raises SystemExit with what it printed where it fails."""
    launch = mpirun(ranks) if ranks > 1 else []
    command = [*launch, sys.executable, "-m", "volseg", *map(str, arguments), "-q"]
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
