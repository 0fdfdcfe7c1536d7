"""What kernels work in, besides the tensors: threads' scratch memory, and weights on their way to and from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from volseg.geometry import Triple
from volseg.networks.description import IMAGE
from volseg.partition.tiling import (
    FLUSH_TILES,
    LANES,
    POSITIONS,
    TAPS,
    backward_room,
    forward_room,
    padded_channels,
    plan_blocks,
    registers_for,
)
from volseg.program.step import Convolve, ConvolveBackward, Lifted, Source

FLOAT = 4
_LOSS_PIECE = 2**16
_LOSS_TENSORS = 5


@dataclass(frozen=True)
class Work:
    """Values (float32) of one operation.

    weights  as they are given and made ready, and their gradients
    scratch  of each thread
    """

    weights: int
    scratch: int


def stored_inputs(sources: Sequence[Source], image: int) -> list[int]:
    """Channels of what a convolution reads, as stored; an image of `image` channels is stored as it is."""
    return [_stored(source, image) for source in sources]


def _stored(source: Source, image: int) -> int:
    if source.tensor.name == IMAGE:
        return image
    return padded_channels(source.node.channels) if isinstance(source, Lifted) else source.tensor.stored


def convolving(op: Convolve, sides: Triple, image: int, threads: int) -> Work:
    """A convolution's forward. sides: of the block."""
    (d, h, w), inputs, width = sides, stored_inputs(op.sources, image), op.output.stored
    inner = sum(inputs)
    layout = registers_for([width], [], LANES)
    blocks = plan_blocks((0, d), h, w, inner, width, layout.rows, (1, 1, 1), threads)
    return Work(
        POSITIONS * TAPS * inner * width + prod(op.node.kernel) * inner * width,
        forward_room(blocks, padded_channels(inner), layout),
    )


def convolving_backward(op: ConvolveBackward, sides: Triple, image: int, threads: int) -> Work:
    """A convolution's backward."""
    d, h, w = sides
    inputs, given = stored_inputs(op.sources, image) if op.targets else [], op.gradient.stored
    tile = sum(inputs) or given
    window = given if inputs else padded_channels(image)
    layout = registers_for(inputs or [given], [], LANES)
    blocks = plan_blocks((0, d), h, w, window + tile, window, layout.rows, (1, 1, 1), threads)
    many = d * h * w > 4 * FLUSH_TILES * threads
    sums = POSITIONS * TAPS * window * tile * (3 if many else 1)
    turned = POSITIONS * TAPS * window * tile if inputs else 0
    weights = threads * sums + turned + 2 * prod(op.node.kernel) * window * tile
    return Work(weights, backward_room(blocks, window, tile, layout))


def loss_floats(voxels: int, classes: int) -> int:
    """Values that `losses.LossSums` holds of a slab of so many voxels: a piece of it, several times.

    Where the slab has several pieces, one tensor of the last is still there when those of the next are made.
    """
    tensors = _LOSS_TENSORS + (voxels > _LOSS_PIECE)
    return tensors * min(voxels, _LOSS_PIECE) * classes
