"""Standard output and standard error that no failure to print can end a job with.

What is printed while a job works is worth less than the job: where nobody reads it (a closed pipe, a full disk, a
terminal that went away, ``2>&-``) it is dropped, and the job goes on. Only a result that was to be printed and is lost
is a failure, and not even that where the reader left of its own accord, as ``| head`` does.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from volseg.cli.launcher import Reached, reached

OUTPUT = "standard output"
_LEFT = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)  # nobody is there to read: a pipe's reader, a terminal
_PATIENCE_SECONDS = 5.0  # for the reader of a stream that does not wait (O_NONBLOCK), until it reads again
_ERRORS = "volseg.legible"
_PLAIN = {"³": "3", "²": "2", "×": "x", "…": "...", "–": "-", "—": "-", "µ": "u", "±": "+-", "≤": "<=", "≥": ">="}


class Outlet(io.RawIOBase):
    """Writes to a descriptor of this process; what cannot be written is dropped.

    lost       why something was dropped that was a result; None where nothing was
    forgiving  whether what is written now is no result
    """

    def __init__(self, descriptor: int, where: Reached | None = None) -> None:
        super().__init__()
        self._descriptor, self._where = descriptor, where or Reached()
        self._patience = _PATIENCE_SECONDS
        self.lost: OSError | None = None
        self.forgiving = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            if self._where.is_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            target = self._descriptor if self._where.descriptor is None else self._where.descriptor
            while rest:
                rest = rest[self._write(target, rest) :]
        except OSError as error:
            if not self.forgiving and error.errno not in _LEFT:
                self.lost = self.lost or error
        return size

    def _write(self, descriptor: int, data: memoryview) -> int:
        try:
            written = os.write(descriptor, data)
        except BlockingIOError:
            if not select.select([], [descriptor], [], self._patience)[1]:
                self._patience = 0.0  # a run does not wait at each message for somebody who does not read
                raise
            return 0
        self._patience = _PATIENCE_SECONDS
        return written


def secure_streams() -> None:
    """Replace sys.stdout and sys.stderr by ones that never raise, and go on when the terminal goes away.

    Letters that their encoding does not know are written as others that mean the same, or as \\N escapes. A descriptor
    that is closed is opened on nothing, so that no file of the job gets its number. For the program itself, before it
    prints; no library calls this.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    codecs.register_error(_ERRORS, _legible)
    sys.stdout = sys.__stdout__ = _secured(sys.stdout, 1)  # type: ignore[misc, assignment]
    sys.stderr = sys.__stderr__ = _secured(sys.stderr, 2)  # type: ignore[misc, assignment]
    with suppress(ValueError):  # in another thread than the main one
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)


def lost_result() -> OSError | None:
    """Why a result that was printed did not arrive; None where all did, or the reader had left."""
    outlet = _outlet(sys.stdout)
    sys.stdout.flush()
    if outlet is None or outlet.lost is None:
        return None
    return OSError(outlet.lost.errno, outlet.lost.strerror, OUTPUT)


@contextmanager
def forgiving() -> Iterator[None]:
    """What is printed in the body of the ``with`` is no result, though it goes to standard output."""
    outlet = _outlet(sys.stdout)
    if outlet is None:
        yield
        return
    sys.stdout.flush()
    before, outlet.forgiving = outlet.forgiving, True
    try:
        yield
    finally:
        sys.stdout.flush()
        outlet.forgiving = before


def _secured(stream: TextIO | None, descriptor: int) -> TextIO:
    encoding = "utf-8"
    if stream is not None:  # None: it was closed from the start
        encoding = stream.encoding
        with suppress(OSError, ValueError):
            stream.flush()
    buffer: Any = io.BufferedWriter(Outlet(descriptor, reached(descriptor)))
    interactive = descriptor == 2 or os.isatty(descriptor)
    return io.TextIOWrapper(buffer, encoding=encoding, errors=_ERRORS, line_buffering=interactive)


def _outlet(stream: Any) -> Outlet | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Outlet) else None


def _legible(error: UnicodeError) -> tuple[str, int]:
    """Stand in for letters that an encoding does not know, so that names that differ still do."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(one) or one.encode("ascii", "backslashreplace").decode() for one in letters), error.end
