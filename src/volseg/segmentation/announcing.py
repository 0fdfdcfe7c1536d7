"""What `segment` tells its user before the work begins, and while it goes on."""

from __future__ import annotations

import time
from math import prod

import numpy as np
import torch

from volseg.distributed.communicator import Communicator
from volseg.events import Caution, Listener, Message, Progress, ignore
from volseg.geometry import format_triple
from volseg.machine import gibibytes
from volseg.segmentation.choosing import Chosen
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.opening import LaidOut, Opened
from volseg.volumes.scan import Scan

STEPS = ("components", "mask", "statistics", "preview")
"""What follows the network, in its order."""


def announce(job: SegmentationJob, opened: Opened, laid: LaidOut, chosen: Chosen, listen: Listener) -> None:
    """Say what is about to be done, and what is doubtful about it."""
    scan, grid, choice, card = laid.scan, laid.grid, chosen.choice, opened.card
    where = f", on {opened.device.described}" if opened.device.is_gpu else ""
    ranks = grid.communicator.size
    listen(
        Message(
            f"{job.scan}: {format_triple(scan.native.shape)} voxels on {ranks} rank{'s' if ranks > 1 else ''} as "
            f"{format_triple(grid.dims)}{chosen.stages.described}, {torch.get_num_threads()} threads each{where}"
        )
    )
    listen(Message(f"{choice.schedule}: {choice.reason}; planned {gibibytes(choice.plan.peak)}"))
    for channel in scan.channels:
        for line in channel.audit.warnings:
            listen(Caution(f"{channel.path}: {line}"))
    fixes = {line: channel.path for channel in reversed(scan.channels) for line in channel.audit.fixes}
    for line, path in fixes.items():  # what holds for all channels, once
        listen(Message(f"{path}: {line}"))
    ratios = np.divide(scan.space.spacing, card.spacing)
    own = card.origin is not None and card.seen_at is None  # nobody knows what an imported model learned at
    if not own and np.abs(np.log(ratios)).max() > np.log(1.25):
        listen(
            Caution(
                f"{scan.channels[0].path}: spacing {_mm(scan.space.spacing)} mm, but the model learned at "
                f"{_mm(card.spacing)} mm; expect a poor mask, or let the scan be resampled: --spacing model"
            )
        )
    for line in (*chosen.remarks, *chosen.strange):
        listen(Caution(line))


def tell_step(done: int, now: str, listen: Listener) -> None:
    """Say how many of the `STEPS` are done, and what is done now; nothing of that where `now` is empty."""
    listen(Progress("outputs", done, len(STEPS), "steps", {"now": now} if now else {}))


class NetworkProgress:
    """Tells how many voxels are done, as a share of the network's arithmetic, and how many a second; on the root."""

    def __init__(self, scan: Scan, communicator: Communicator, listen: Listener) -> None:
        self._voxels, self._listen = prod(scan.space.shape), listen if communicator.is_root else ignore
        self._begin = time.monotonic()

    def __call__(self, share: float) -> None:
        done = share * self._voxels
        speed = done / max(time.monotonic() - self._begin, 1e-9)
        figures = {"speed": f"{speed / 1e6:.2f} million voxels/s"}
        self._listen(Progress("network", round(done), self._voxels, "voxels", figures))


def _mm(spacing: tuple[float, float, float]) -> str:
    return " x ".join(f"{side:.3g}" for side in spacing)
