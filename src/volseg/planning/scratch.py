"""What kernels work in, besides the tensors: threads' scratch memory, and weights on their way to and from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from volseg.geometry import Triple
from volseg.machine import has_tiles
from volseg.networks.description import IMAGE
from volseg.partition.amx_tiling import (
    INNER,
    ROWS,
    gradient_room,
    plan_tile_gradients,
    plan_tiles,
    results_floats,
    tile_products,
    window_of,
)
from volseg.partition.direct_tiling import (
    FLUSH_VOXELS,
    axis_taps,
    backward_reach,
    direct_room,
    forward_reach,
    plan_forward,
    plan_gradients,
)
from volseg.partition.tiling import (
    FLUSH_TILES,
    LANES,
    Taps,
    backward_room,
    forward_room,
    is_thin,
    padded_channels,
    plan_blocks,
    registers_for,
    weight_room,
)
from volseg.precision import BFLOAT16, Precision
from volseg.program.ops import Convolve, ConvolveBackward
from volseg.program.tensors import Lifted, Source

FLOAT = 4
_LOSS_PORTION = 128


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


def on_tiles(sources: Sequence[Source], image: int, precision: Precision) -> bool:
    """Whether a convolution of these is computed on AMX tiles here, as `kernels.block_convolution` has it.

    The processor is that of the machine which plans.

    image      channels of the image
    precision  in which tensors are stored
    """
    return precision is BFLOAT16 and min(_channels(source, image) for source in sources) >= LANES and has_tiles()


def _channels(source: Source, image: int) -> int:
    if source.tensor.name == IMAGE:
        return image
    return source.node.channels if isinstance(source, Lifted) else source.tensor.channels


def convolving(op: Convolve, sides: Triple, image: int, threads: int, precision: Precision) -> Work:
    """A convolution's forward.

    sides      of the output's block
    image      channels of the image
    precision  in which tensors are stored
    """
    if on_tiles(op.sources, image, precision):
        return _on_tiles(op, sides, image, threads)
    (d, h, w), inputs, width, kernel = sides, stored_inputs(op.sources, image), op.output.stored, op.node.kernel
    inner, layout = sum(inputs), registers_for([width], [], LANES)
    weight = prod(kernel) * inner * width
    if is_minimal(kernel, op.node.stride) and not is_thin(inputs):
        taps = Taps.of(kernel[0], 1, inner, width)
        blocks = plan_blocks((0, d), h, w, inner, width, layout.rows, (1, 1, 1), threads, taps=taps)
        packed = taps.terms * inner * width
        room = forward_room(blocks, padded_channels(inner), layout, taps)
        return Work(packed + weight, max(room, weight_room(taps, layout)))
    reach = forward_reach(kernel, op.node.stride)
    cut = plan_forward((0, d), h, w, kernel, op.node.stride, inner, width, layout, (1, 1, 1), threads)
    return Work(2 * weight, direct_room(cut, reach, inner, 0, op.node.stride, layout))


def convolving_backward(
    op: ConvolveBackward, sides: Triple, image: int, threads: int, precision: Precision
) -> Work:  # fmt: skip
    """A convolution's backward; as `convolving`."""
    if op.targets and on_tiles(op.sources, image, precision):
        return _backward_on_tiles(op, sides, image, threads)
    inputs, given = stored_inputs(op.sources, image) if op.targets else [], op.gradient.stored
    tile = sum(inputs) or given
    window, voxel = (given, given) if inputs else (padded_channels(image), image)
    layout = registers_for(inputs or [given], [], LANES)
    (d, h, w), kernel, voxels = sides, op.node.kernel, prod(sides)
    weight = prod(kernel) * window * tile
    if is_minimal(kernel, op.node.stride) and (inputs or not is_thin([image])):
        taps = Taps.of(kernel[0], 1, window, tile)
        blocks = plan_blocks((0, d), h, w, window + tile, window, layout.rows, (1, 1, 1), threads, taps=taps)
        sums = taps.terms * window * tile * (3 if voxels > 4 * FLUSH_TILES * threads else 1)
        turned = taps.terms * window * tile if inputs else 0
        room = backward_room(blocks, window, tile, layout, taps)
        return Work(threads * sums + turned + 2 * weight, max(room, weight_room(taps, layout)))
    stride: Triple = op.node.stride if inputs else (1, 1, 1)
    reach = backward_reach(kernel, op.node.stride) if inputs else forward_reach(kernel, op.node.stride)
    gradients = 2 if inputs else 1
    cut = plan_gradients((0, d), h, w, reach, kernel, stride, voxel, tile, layout, gradients, threads)
    sums = weight * (3 if voxels > 4 * FLUSH_VOXELS * threads else 1)
    room = direct_room(cut, reach, voxel, tile, stride, layout)
    return Work(threads * sums + (weight if inputs else 0) + 2 * weight, room)


def _on_tiles(op: Convolve, sides: Triple, image: int, threads: int) -> Work:
    (d, h, w), width, kernel, stride = sides, op.output.stored, op.node.kernel, op.node.stride
    inner, layout, counts = sum(stored_inputs(op.sources, image)), registers_for([width], [], ROWS), [kernel]
    reach, products = forward_reach(kernel, stride), tile_products(counts, inner, width)
    cut = plan_tiles((0, d), h, w, reach, inner, 4 * layout.width, products, (1, 1, 1), threads)
    window = window_of(cut, reach, inner, kernel[2])
    room = window.size + results_floats(cut, window, reach.step[2], layout.width)
    # An up-convolution's weight is there as well, in the memory of an earlier one that may be as large.
    weights = 2 if any(isinstance(source, Lifted) for source in op.sources) else 1
    return Work(weights * _packed(counts, inner, width), room)


def _backward_on_tiles(op: ConvolveBackward, sides: Triple, image: int, threads: int) -> Work:
    (d, h, w), width, kernel, stride = sides, op.gradient.stored, op.node.kernel, op.node.stride
    inputs = stored_inputs(op.sources, image)
    inner, layout, reach = sum(inputs), registers_for(inputs, [], ROWS), backward_reach(kernel, stride)
    by_axis = [[len(axis_taps(k, s, rest)) for rest in range(s)] for k, s in zip(kernel, stride, strict=True)]
    counts = [(d, h, w) for d, h, w in product(*by_axis)]
    cut = plan_tile_gradients((0, d), h, w, reach, stride, counts, width, inner, layout.width, kernel, threads)
    columns = max(count[2] for count in counts)
    room = gradient_room(cut, reach, stride, width, columns, inner, layout.width, weight=True)
    sums = prod(kernel) * width * -(-inner // ROWS) * ROWS
    copies = threads * (3 if prod(sides) > 4 * FLUSH_VOXELS * threads else 1)
    # The sums are made into the gradient when the turned weight has been given back, whose memory stays.
    return Work(copies * sums + _packed(counts, width, inner) + prod(kernel) * width * inner, room.floats)


def _packed(counts: Sequence[Triple], voxel: int, channels: int) -> int:
    """Floats of a weight in bfloat16 whose products fill whole tiles."""
    terms = sum(d * h * -(-w * voxel // INNER) * INNER for d, h, w in counts)
    return channels * terms // 2


def is_minimal(kernel: Triple, stride: Triple) -> bool:
    """Whether a convolution is computed by Winograd's minimal filtering, unless it reads a thin image.

    As `kernels.block_convolution` has it.
    """
    return kernel[1:] == (3, 3) and stride == (1, 1, 1)


def loss_floats(classes: int) -> int:
    """Scratch memory of a thread of `kernels.softmax_loss`: of some voxels all classes twice, and three numbers.

    The loss of regions holds pieces of a slab, which are small.
    """
    return (2 * classes + 3) * _LOSS_PORTION
