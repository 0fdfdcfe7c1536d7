"""Whether anybody watches: the terminal behind this process's standard error."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from volseg.distributed.launch import under_launcher

_LAUNCHER_NAMES = ("mpiexec", "mpirun", "orterun", "prterun", "prte", "hydra")


def terminal_columns() -> int | None:
    """Width of the terminal that this process's standard error ends up on; None where that is no terminal.

    A launcher hands its ranks a pipe and copies what comes out, so under one its own standard error is looked at
    (Linux only; elsewhere the answer is None and the output plain).
    """
    if sys.stderr.isatty():
        return shutil.get_terminal_size().columns
    if not under_launcher():
        return None
    process = os.getppid()
    for _ in range(4):  # a rank's parent is a proxy, the proxy's the launcher
        try:
            stat = Path(f"/proc/{process}/stat").read_text()
            terminal = os.readlink(f"/proc/{process}/fd/2")
        except OSError:
            return None
        name, _, rest = stat.partition("(")[2].rpartition(")")
        if any(known in name for known in _LAUNCHER_NAMES) and terminal.startswith(("/dev/pts/", "/dev/tty")):
            return _columns_of(terminal)
        process = int(rest.split()[1])
    return None


def _columns_of(terminal: str) -> int | None:
    try:
        descriptor = os.open(terminal, os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return None
    try:
        return os.get_terminal_size(descriptor).columns or 80
    except OSError:
        return None
    finally:
        os.close(descriptor)
