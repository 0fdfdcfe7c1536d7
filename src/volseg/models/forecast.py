"""How long a run is expected to take, on this machine as these ranks use it."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from volseg.distributed.communicator import Communicator
from volseg.distributed.placement import ranks_on_this_machine
from volseg.machine import processor_name
from volseg.nn.kernels.speed import reference_seconds
from volseg.partition.profile import Profile, find_profile
from volseg.partition.time_model import Placing


@dataclass(frozen=True)
class Machine:
    """This machine as the time model sees it.

    profile  measured here, or measured elsewhere and scaled
    placing  of this job's ranks
    source   in words: where the times come from
    """

    profile: Profile
    placing: Placing
    source: str


def this_machine(communicator: Communicator, path: Path | None = None) -> Machine | None:
    """The machine's profile; that of another one is scaled by a convolution that all ranks do now. Collective.

    None where the processor lacks the kernels' instructions, so that no profile tells anything.

    Raises ConfigError, on all ranks, where the profile named cannot be read.
    """
    profile: Profile | None = None
    with communicator.together():
        if communicator.is_root:
            profile = find_profile(path)
    profile = communicator.broadcast(profile)
    assert profile is not None
    placing = Placing(ranks_on_this_machine(communicator), torch.get_num_threads())
    own = communicator.broadcast((profile.machine, profile.cores) == (processor_name(), os.cpu_count()))
    if own and profile.source != "built in":
        return Machine(profile, placing, profile.source)
    communicator.barrier()
    now = communicator.gather_all(reference_seconds())
    before = profile.setting(placing.per_machine, placing.threads).reference
    if min(now) <= 0 or before <= 0:
        return None
    factor = statistics.fmean(now) / before
    return Machine(profile.scaled(factor), placing, f"{profile.source}, scaled to this machine by one convolution")
