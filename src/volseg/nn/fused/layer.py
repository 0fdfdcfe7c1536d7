"""A convolution with norm and activation, forward and backward, over this rank's block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from volseg.distributed.grid import ProcessGrid
from volseg.distributed.halo import GhostExchange, ghost_widths
from volseg.distributed.meter import Meter
from volseg.geometry import Triple
from volseg.nn.dropout import PartitionedDropout3d
from volseg.nn.fused.buffers import Buffers
from volseg.nn.fused.normalization import Statistics, normalization_gradient, normalize
from volseg.nn.kernels import passes, winograd
from volseg.nn.kernels.reproducible import LARGEST_BRICK
from volseg.nn.kernels.rows import Activation, Affine, Rows
from volseg.partition.layout import Layout
from volseg.partition.slabs import ranges
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range
from volseg.program.kinds import Kind

_NO_BRICK: Triple = (1, 1, 1)

Slab = tuple[Range, list["Held"]]
"""Planes of an output, and the inputs to compute them from."""

Gradients = dict[nn.Parameter, Tensor]
"""This rank's parts of the parameters' gradients."""


@dataclass
class Held:
    """A tensor of the network that is in memory: its raw values, how they are activated, and its ghosts.

    channels  that are there; rows may be stored with more
    exchange  of the ghosts, if it is still under way
    gradient  before the activation, once it is known; `sums` are its sums (`passes.through_activation`)
    """

    rows: Rows
    channels: int
    affine: Affine | None = None
    exchange: GhostExchange | None = None
    gradient: Rows | None = None
    sums: Tensor | None = None

    @property
    def activation(self) -> Activation:
        """As a kernel reads it."""
        return Activation(self.rows, self.affine)

    def wait(self) -> None:
        """Return when the ghosts are there."""
        if self.exchange is not None:
            self.exchange.wait()
            self.exchange = None


@dataclass(frozen=True)
class Slot:
    """Where an input's gradient goes; with `sums` through its activation."""

    rows: Rows
    sums: Tensor | None = None


SlabWithSlots = tuple[Range, list[Held], Sequence[Slot]]
"""Planes of a block, the inputs there, and where their gradients go; no slots for an image."""


@dataclass(frozen=True)
class Layer:
    """The modules of one layer; `slope` is the leaky ReLU's, `dropout` drops channels behind it."""

    label: str
    conv: nn.Conv3d
    norm: nn.Module
    slope: float
    dropout: nn.Module | None = None

    @property
    def channels(self) -> int:
        """Of the output."""
        return int(self.conv.weight.shape[0])


@dataclass
class Output:
    """What the forward of a layer leaves for its backward.

    inputs  what it read
    held    its raw output
    signs   of its norm's weights, where it was pooled
    """

    layer: Layer
    inputs: list[Held]
    held: Held
    statistics: Statistics | None
    layout: Layout
    signs: Tensor | None = None


@dataclass(frozen=True)
class Workplace:
    """What layers share: the grid, and memory that is used again."""

    grid: ProcessGrid
    buffers: Buffers

    @property
    def meter(self) -> Meter:
        """Of this rank."""
        return self.grid.communicator.meter

    def rows(self, layout: Layout, channels: int) -> Rows:
        """Uninitialised rows of this rank's block of `layout`, `channels` rounded up.

        With room for ghosts even where nobody needs them: tensors of one size can have each other's memory.
        """
        low, high = ghost_widths(self.grid, 1)
        return self.buffers.take(layout.block(self.grid.coords).shape, padded_channels(channels), low, high)

    def start_exchange(self, held: Held) -> None:
        """Begin to fetch the ghosts of a tensor. Collective."""
        rows = held.rows
        exchange = GhostExchange(rows.buffer, rows.low, rows.high, self.grid)
        held.exchange = None if exchange.done else exchange

    def origin(self, layout: Layout) -> tuple[int, int]:
        """-1 on H and W where the block begins at an odd coordinate."""
        _, y, x = layout.block(self.grid.coords).start
        return -(y % 2), -(x % 2)


def forward(
    work: Workplace, layer: Layer, slabs: Iterable[Slab], layout: Layout, brick: Triple, rows: Rows,
    small: Rows | None = None, *, ghosts: bool, small_ghosts: bool = True, known: Affine | None = None,
) -> tuple[Output, Held | None]:  # fmt: skip
    """The layer's output, and the output pooled where there is room for that. Collective.

    slabs   planes of the output and the inputs for them; the last one's inputs are noted
    brick   voxels that no block boundary cuts
    rows    for the output
    small   for the output pooled
    ghosts  the output's ghosts are needed; they are under way when this returns
    small_ghosts  so are those of the output pooled
    known   the norm's coefficients, where they were found before
    """
    norm = layer.norm
    sums = brick_sums(rows.sides, rows.channels, brick) if needs_statistics(norm) and known is None else None
    signs = channel_signs(norm, rows.channels) if small is not None else None
    target = None if small is None or signs is None else winograd.Pooled(small, signs)
    inputs = _convolve(work, layer, slabs, layout, rows, sums, target)
    held = Held(rows, layer.channels)
    small_held = None if small is None else Held(small, layer.channels)
    for tensor in (small_held if small_ghosts else None, held if ghosts else None):
        if tensor is not None:
            work.start_exchange(tensor)
    statistics = None
    if known is not None:
        held.affine = known
    else:
        with work.meter.doing(Kind.NORM):
            held.affine, statistics = normalize(
                norm, layer.channels, rows.channels, lambda: _raw_slabs(rows, sums), sums, layout.shape, layer.slope,
                kept_channels(layer), work.grid.communicator,
            )  # fmt: skip
    if small_held is not None:
        small_held.affine = held.affine
    return Output(layer, list(inputs), held, statistics, layout, signs), small_held


def _raw_slabs(rows: Rows, sums: winograd.BrickSums | None) -> Iterator[Tensor]:
    """The block, some bricks thick at a time; whole where bricks are single voxels."""
    planes = rows.sides[0] if sums is None else LARGEST_BRICK[0]
    for first, last in ranges(rows.sides[0], planes):
        yield rows.own[first:last]


def again(work: Workplace, output: Output, slabs: Iterable[Slab]) -> None:
    """Make a raw output again that was given back; its coefficients were kept, and nobody needs its ghosts."""
    rows = work.rows(output.layout, output.layer.channels)
    _convolve(work, output.layer, slabs, output.layout, rows)
    output.held.rows = rows


def _convolve(
    work: Workplace, layer: Layer, slabs: Iterable[Slab], layout: Layout, rows: Rows,
    sums: winograd.BrickSums | None = None, pooled: winograd.Pooled | None = None,
) -> list[Held]:  # fmt: skip
    """Fill `rows` slab by slab; returns the last slab's inputs."""
    conv = layer.conv
    bias = stored_bias(conv, rows.channels)
    weight: winograd.Weight | None = None
    inputs: list[Held] = []
    for planes, inputs in slabs:
        with work.meter.doing(Kind.CONVOLUTION):
            weight = weight or winograd.pack_weight(conv.weight, [x.channels for x in inputs])
            winograd.forward(
                [x.activation for x in inputs], weight, bias, rows, planes=planes, origin=work.origin(layout),
                sums=sums, pooled=pooled, ghosts=[x.exchange for x in inputs if x.exchange is not None],
            )  # fmt: skip
    assert weight is not None
    weight.release()
    return inputs


def output_gradient(work: Workplace, output: Output, gradients: Gradients, *, ghosts: bool = True) -> Held:
    """The gradient of the convolution's raw output, in the memory of the activation's. Collective.

    The raw output is given back.

    ghosts  are needed, for the inputs' gradients; they are under way when this returns
    """
    held, layer = output.held, output.layer
    assert held.gradient is not None
    assert held.sums is not None
    with work.meter.doing(Kind.NORM):
        found = normalization_gradient(layer.norm, output.statistics, held.sums, work.grid.communicator)
        if found.combination is not None:
            passes.combine(held.gradient, held.rows, *found.combination)
    enter(gradients, layer.norm, found.weight, found.bias)
    bias = held.sums[0, : layer.channels]  # without a norm, which would take it away again
    if output.statistics is not None and output.statistics.keep is not None:
        bias = bias * output.statistics.keep
    enter(gradients, layer.conv, None, bias.float())
    work.buffers.give(held.rows)
    gradient = Held(held.gradient, layer.channels)
    held.gradient = None
    if ghosts:
        work.start_exchange(gradient)
    return gradient


def backward(
    work: Workplace, output: Output, gradient: Held, slabs: Iterable[SlabWithSlots], gradients: Gradients
) -> None:
    """The gradients of the convolution's weight, and of its inputs to the slots given with them. Collective.

    slabs  planes, the inputs there, and where their gradients go; without slots there are none
    """
    conv, voxels = output.layer.conv, prod(gradient.rows.sides)
    sums: winograd.WeightSums | None = None
    turned: winograd.Weight | None = None
    for planes, inputs, slots in slabs:
        sizes = [x.channels for x in inputs]
        sums = sums or winograd.WeightSums(conv.weight, sizes, voxels, image=not slots)
        with work.meter.doing(Kind.CONVOLUTION):
            if not slots:
                inputs[0].wait()
                winograd.add_for_image(inputs[0].activation, gradient.rows, sums)
                continue
            turned = turned or winograd.pack_turned_weight(conv.weight, sizes)
            targets = [winograd.Target(slot.rows, slot.sums) for slot in slots]
            pending = [] if gradient.exchange is None else [gradient.exchange]
            activations = [x.activation for x in inputs]
            winograd.backward(activations, gradient.rows, turned, targets, sums, planes=planes, ghosts=pending)
    gradient.wait()
    assert sums is not None
    if turned is not None:
        turned.release()
    with work.meter.doing(Kind.CONVOLUTION):
        enter(gradients, conv, sums.finish(), None)
    work.buffers.give(gradient.rows)


def slot_before_activation(work: Workplace, held: Held) -> Slot:
    """For an input that nobody else reads: its gradient is complete, and goes through its activation at once."""
    gradient = work.buffers.take(held.rows.sides, held.rows.channels, *ghost_widths(work.grid, 1))
    held.gradient, held.sums = gradient, torch.zeros(2, held.rows.channels, dtype=torch.float64)
    return Slot(gradient, held.sums)


def slot_behind_activation(work: Workplace, held: Held) -> Slot:
    """For an input whose gradient has more parts to come."""
    held.gradient = work.buffers.take(held.rows.sides, held.rows.channels, *ghost_widths(work.grid, 1))
    return Slot(held.gradient)


def needs_statistics(norm: nn.Module) -> bool:
    """Whether the norm takes statistics of its input now: not if there is none, nor a batch norm with running ones."""
    if isinstance(norm, nn.Identity):
        return False
    return norm.training or not isinstance(norm, nn.BatchNorm3d) or norm.running_mean is None


def brick_sums(sides: Triple, channels: int, brick: Triple) -> winograd.BrickSums | None:
    """Room for the sums of a block's bricks; None where these are single voxels."""
    if brick == _NO_BRICK:
        return None
    counts = [n // b for n, b in zip(sides, brick, strict=True)]
    return winograd.BrickSums(torch.empty(*counts, 2, channels), brick)


def channel_signs(norm: nn.Module, stored: int) -> Tensor:
    """-1 for channels whose activation falls as the raw value rises, else 1."""
    signs = torch.ones(stored)
    weight = getattr(norm, "weight", None)
    if isinstance(weight, Tensor):
        signs[: weight.shape[0]][weight.detach() < 0] = -1
    return signs


def stored_bias(conv: nn.Conv3d, stored: int) -> Tensor | None:
    """The bias, with zeros for channels that are stored and not there."""
    if conv.bias is None:
        return None
    return torch.nn.functional.pad(conv.bias.detach(), [0, stored - conv.bias.shape[0]])


def kept_channels(layer: Layer) -> Tensor | None:
    """What channel dropout multiplies by in this pass, [C]; None without it."""
    if not isinstance(layer.dropout, PartitionedDropout3d):
        return None
    return layer.dropout.factors(layer.channels, torch.device("cpu"))


def enter(gradients: Gradients, module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> None:
    """Note gradients of a module's parameters, where it has them."""
    for name, value in (("weight", weight), ("bias", bias)):
        parameter = getattr(module, name, None)
        if isinstance(parameter, nn.Parameter) and value is not None:
            gradients[parameter] = value
