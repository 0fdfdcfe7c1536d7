"""How an error ends the program: its exit code and the one or two lines that the user sees."""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass

import typer

from volseg.errors import VolsegError
from volseg.files import system_error

FAILED = 1  # while running
WRONG_INPUT = 2  # the user can put it right
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

REMEDIES = {
    errno.ENOSPC: "; free some space or write elsewhere",
    errno.EDQUOT: "; remove some of your files to be within the quota, or write elsewhere",
    errno.EFBIG: "; write to a file system that takes larger files, or raise the limit (ulimit -f)",
    errno.EIO: "; the disk or its network failed: write elsewhere",
    errno.EROFS: "; write elsewhere",
    errno.ESTALE: "; a folder on the network was removed or mounted anew: write elsewhere, or start again",
}
"""By the system's number of the error."""


@dataclass(frozen=True)
class Failure:
    """An exit code and what to print on standard error."""

    code: int
    message: str


def describe(error: BaseException, debug: bool = False) -> Failure:
    """What `error` means to the user; with `debug` the traceback comes first."""
    failure = _describe(error)
    if debug and failure.code != INTERRUPTED:
        return Failure(failure.code, "".join(traceback.format_exception(error)) + failure.message)
    return failure


def _describe(error: BaseException) -> Failure:
    if isinstance(error, VolsegError):
        return Failure(WRONG_INPUT, f"error: {error}{_notes(error)}")
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Failure(INTERRUPTED, "interrupted")
    # typer's usage errors have no public base class: they are told by what they can do.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return Failure(int(error.exit_code), _usage(error))
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        text = f"error: out of memory: {_one_line(error)}\nMore ranks need less each: see volseg plan-partition"
        return Failure(FAILED, text)
    fault = system_error(error)
    if fault is not None and fault.errno is not None:
        where = f"{fault.filename}: " if fault.filename else ""
        remedy = REMEDIES.get(fault.errno, "")
        return Failure(FAILED, f"error: {where}{fault.strerror}{remedy}{_notes(error)}")
    return Failure(FAILED, f"internal error: {type(error).__name__}: {_one_line(error)} (run again with --debug)")


def _usage(error: BaseException) -> str:
    message = " ".join(str(error.format_message()).split())  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    hint = f"\nTry: {context.command_path} --help" if context is not None else ""
    return f"error: {message}{hint}"


def _notes(error: BaseException) -> str:
    """What was added to the error on its way, a line each."""
    return "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
