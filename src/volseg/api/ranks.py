"""The ranks that a call runs on: all of this job's, which are connected once for a program."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from volseg.distributed.communicator import Communicator
from volseg.errors import VolsegError
from volseg.events import Listener, ignore


@cache
def all_ranks() -> Communicator:
    """This job's ranks; the first call starts MPI under a launcher. Collective. Raises LaunchError as `start` does."""
    from volseg.distributed.start import start

    communicator, placement = start()
    torch = sys.modules.get("torch")  # where the program has imported it already, it has its threads too
    if torch is not None and communicator.size > 1:
        torch.set_num_threads(placement.threads)
    return communicator


@contextmanager
def ranks(
    given: Communicator | None, listen: Listener = ignore
) -> Iterator[tuple[Communicator, Listener]]:  # fmt: skip
    """The ranks for the body of a ``with``, those given or all, and who listens: the root's listener alone.

    An error is raised as it is where all ranks have one, so that a program may catch it. Where only some have, the
    others would wait for them for ever: the job is aborted, with the error on standard error. With ranks that were
    given, that is their owner's to do.
    """
    if given is not None:
        yield given, listen if given.is_root else ignore
        return
    communicator = all_ranks()
    try:
        yield communicator, listen if communicator.is_root else ignore
    except BaseException as error:
        from volseg.distributed.ending import abort_unless_all_failed

        known = isinstance(error, VolsegError)
        message = f"error: {error}" if known else "".join(traceback.format_exception(error)).rstrip()
        abort_unless_all_failed(communicator, 2 if known else 1, message)
        raise
