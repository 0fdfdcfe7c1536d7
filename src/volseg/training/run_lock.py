"""One job at a time in a run folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

from volseg.errors import ConfigError

LOCK = ".lock"


class RunLock:
    """A lock on RUN/.lock that this process holds from `acquire` until it leaves the ``with``, or is gone.

    It is the system's (POSIX, so on NFS as well): it ends with the process that holds it, however that ends. File
    systems that know no locks are gone without.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / LOCK
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *ended: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def acquire(self) -> None:
        """Take it; does nothing where it is held. Raises ConfigError where another process has it."""
        if self._file is not None:
            return
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
                os.close(file)
                raise ConfigError(
                    f"{self.path.parent}: {holder} is training into it; wait for it to end, or give another -o"
                ) from None
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(file)
                raise
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._file = file
