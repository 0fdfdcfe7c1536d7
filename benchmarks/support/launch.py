"""How benchmarks start jobs of several ranks."""

from __future__ import annotations

import sys
from pathlib import Path


def mpirun(ranks: int) -> list[str]:
    """The beginning of a command line that starts so many ranks: this environment's mpirun, or else the system's."""
    beside = Path(sys.executable).with_name("mpirun")
    return [str(beside) if beside.exists() else "mpirun", "-n", str(ranks)]
