"""Whether a GPU has room for what a training step holds."""

from __future__ import annotations

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.distributed.devices import Device, free_memory
from volseg.errors import PartitionError
from volseg.planning.memory import MemoryPlan

GIB = 2**30


def check_room(plan: MemoryPlan, device: Device, communicator: Communicator) -> None:
    """Raise PartitionError, on all ranks, where a step's tensors are more than is free on a rank's GPU. Collective.

    plan    of this rank's network; its process and the work of the processor's kernels take no memory of a GPU
    device  where it runs; a processor refuses nothing here
    """
    room = free_memory(device, communicator)
    if room is None:
        return
    needed = int(communicator.reduce_all(np.array([float(plan.weights + plan.activations)]), "max")[0])
    if needed > room:
        raise PartitionError(
            f"--device {device.name}: a training step has {needed / GIB:.2f} GiB of tensors on a rank's GPU (most at "
            f"{plan.peak_at}), and {room / GIB:.2f} GiB are free for each rank on {device.title}; use --precision "
            "bfloat16, --checkpoint-levels, --crop, ranks on more GPUs, or --device cpu"
        )
