"""Move voxels from one set of boxes to another: from the blocks of a grid to the units of a file, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.geometry import Box
from volseg.program.kinds import Kind


def redistribute(
    held: np.ndarray, boxes: Sequence[Box], wanted: Sequence[Box | None], communicator: Communicator
) -> np.ndarray | None:
    """This rank's wanted box, put together from what all ranks hold. Collective.

    held    [..., d, h, w]     this rank's voxels
    boxes   by rank: the box each rank holds; they must cover every wanted box, and not overlap
    wanted  by rank: the box each rank wants, None for nothing
    out     [..., d', h', w']  this rank's wanted box, None where it wants nothing
    """
    with communicator.meter.doing(Kind.MOVING):
        return _redistribute(held, boxes, wanted, communicator)


def _redistribute(
    held: np.ndarray, boxes: Sequence[Box], wanted: Sequence[Box | None], communicator: Communicator
) -> np.ndarray | None:
    rank = communicator.rank
    mine, want = boxes[rank], wanted[rank]
    pieces = [Box((0, 0, 0), (0, 0, 0)) if w is None else mine.intersect(w) for w in wanted]
    sends = [
        (other, np.ascontiguousarray(held[(..., *piece.relative_to(mine).slices)]))
        for other, piece in enumerate(pieces)
        if piece.size and other != rank
    ]
    receives: list[tuple[int, np.ndarray]] = []
    places: list[Box] = []
    if want is not None:
        for other, box in enumerate(boxes):
            piece = box.intersect(want)
            if piece.size and other != rank:
                receives.append((other, np.empty((*held.shape[:-3], *piece.shape), dtype=held.dtype)))
                places.append(piece.relative_to(want))
    communicator.send_receive(sends, receives)
    if want is None:
        return None
    out = np.empty((*held.shape[:-3], *want.shape), dtype=held.dtype)
    own = pieces[rank]
    if own.size:
        out[(..., *own.relative_to(want).slices)] = held[(..., *own.relative_to(mine).slices)]
    for place, (_, buffer) in zip(places, receives, strict=True):
        out[(..., *place.slices)] = buffer
    return out
