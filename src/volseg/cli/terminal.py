"""Whether anybody watches: the terminal behind this process's standard error."""

from __future__ import annotations

import os
import shutil
import sys

from volseg.cli.launcher import ancestors
from volseg.distributed.launchers import under_launcher


def terminal_columns() -> int | None:
    """Width of the terminal that this process's standard error ends up on; None where that is no terminal.

    A launcher hands its ranks a pipe and copies what comes out, so under one its own standard error is looked at
    (Linux only; elsewhere the answer is None and the output plain).
    """
    if sys.stderr is not None and sys.stderr.isatty():
        return shutil.get_terminal_size().columns
    if not under_launcher():
        return None
    for ancestor in ancestors():
        try:
            terminal = os.readlink(ancestor.target(2))
        except OSError:
            return None
        if ancestor.is_launcher and terminal.startswith(("/dev/pts/", "/dev/tty")):
            return _columns_of(terminal)
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
