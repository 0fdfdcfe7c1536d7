"""The ranks of this job, ready to work: memory and threads prepared, MPI begun where a launcher asks for it."""

from __future__ import annotations

import os

from volseg.distributed.communicator import Communicator
from volseg.distributed.launch import connect
from volseg.distributed.launchers import cores_per_rank
from volseg.distributed.placement import Placement, place
from volseg.machine import prepare_for_torch


def start() -> tuple[Communicator, Placement]:
    """Connect the ranks and give each its cores. Collective under a launcher; before torch and numpy start threads.

    Raises LaunchError where the MPI launcher and library do not belong together.
    """
    # Before torch and numpy start their thread pools: ranks on one machine share its cores.
    asked = "OMP_NUM_THREADS" in os.environ
    os.environ.setdefault("OMP_NUM_THREADS", str(cores_per_rank()))
    prepare_for_torch()
    communicator = connect()
    placement = place(communicator)
    if not asked:  # a launcher does not always say how many ranks are on this machine
        os.environ["OMP_NUM_THREADS"] = str(placement.threads)
    return communicator, placement
