"""Tensors between the grid of a level and a coarser one (`distributed.merging`)."""

from __future__ import annotations

import torch
from torch import Tensor

from volseg.distributed.merging import Merge, Room
from volseg.geometry import Triple
from volseg.networks.description import Normalization
from volseg.nn.fused.buffers import Buffers
from volseg.nn.kernels.rows import Affine, Rows
from volseg.partition.agglomeration import message_floats
from volseg.partition.layout import Layout

_HOST = torch.device("cpu")
"""Messages leave from the processor's memory, wherever tensors lie."""


def gather(merge: Merge, layout: Layout, own: Rows, whole: Rows | None, buffers: Buffers) -> None:
    """Fill the leader's block from the blocks of its group; not the ghosts. Collective over the group.

    layout  of the finer grid
    own     this rank's block of it
    whole   the coarser grid's block; None where this rank does not lead
    """
    merge.gather(layout, own.own, None if whole is None else whole.own, _room(layout, own.channels, buffers))


def gather_classes(merge: Merge, layout: Layout, own: Tensor, whole: Tensor | None) -> None:
    """The same of the classes of voxels, [d, h, w] of any type. Collective over the group."""

    def room(sides: Triple, channels: int) -> Tensor:
        return torch.empty(*sides, channels, dtype=own.dtype)

    merge.gather(layout, own.unsqueeze(3), None if whole is None else whole.unsqueeze(3), room)


def scatter(merge: Merge, layout: Layout, whole: Rows | None, own: Rows, buffers: Buffers) -> None:
    """Fill each block of a group from its leader's; not the ghosts. Collective over the group."""
    merge.scatter(layout, None if whole is None else whole.own, own.own, _room(layout, own.channels, buffers))


def share_affine(merge: Merge, affine: Affine | None, stored: int, node: Normalization, device: torch.device) -> Affine:
    """The leader's coefficients of `stored` channels, on each rank of its group. Collective over the group."""
    if affine is None:
        scale, shift = torch.empty(2, stored, device=device)
        gain = None if node.activation == "leaky_relu" else torch.empty_like(scale)
        affine = Affine(scale, shift, node.slope, node.activation, gain)
    merge.share([affine.scale, affine.shift, *([] if affine.gain is None else [affine.gain])])
    return affine


def _room(layout: Layout, channels: int, buffers: Buffers) -> Room:
    largest = message_floats(layout, channels)

    def room(sides: Triple, channels: int) -> Tensor:
        return buffers.slab("message", sides, channels, largest, _HOST).buffer

    return room
