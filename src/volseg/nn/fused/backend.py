"""What the steps of a program call: the arithmetic on rows of one device.

A backend is a set of functions; the control flow around them (`forward.py`, `backward.py`) is the same for all. Those
of the compiled kernels are the modules of `nn/kernels` as they are, those by torch's operators are in `nn/torch_ops`.
Here stands what each function does; in what order it adds up is its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from volseg.errors import ConfigError
from volseg.geometry import Triple
from volseg.nn.kernels import (
    addition,
    averaging,
    block_convolution,
    interpolation,
    passes,
    point_convolution,
    pooling,
)
from volseg.nn.kernels.block_convolution import BrickSums, Ghosts, Pooled, Target
from volseg.nn.kernels.rows import Activation, Rows
from volseg.nn.torch_ops import TorchBackend
from volseg.partition.window import Range

CPU = torch.device("cpu")

BACKEND = "VOLSEG_BACKEND"
"""The environment variable that asks for a backend."""


class Packed(Protocol):
    """A weight made ready for a convolution of blocks, which the backend that made it alone can read."""

    def release(self) -> None:
        """Its memory may go to the next weight; this one must not be used any more."""


class PackedPoint(Protocol):
    """A weight made ready for a convolution without neighbours.

    channels  of the outputs that an input voxel has on a line, as stored
    """

    @property
    def channels(self) -> int: ...


class GradientSums(Protocol):
    """The sums over the volume that a weight's gradient is made from."""

    def finish(self) -> Tensor:
        """This rank's part of the gradient, in the weight's shape, float32. The sums must not be used any more."""


class BlockConvolutions(Protocol):
    """Convolutions with "same" padding, kernels of 1, 3, 5, 7 and strides of 1, 2 on each axis, and their gradients.

    Output voxel o reads the voxels stride * o + tap - kernel // 2 of its inputs; zero lies beyond their ghosts.
    """

    def pack_weight(
        self, weight: Tensor, sources: Sequence[int], stride: Triple = ..., stored: torch.dtype = ...
    ) -> Packed:
        """The weight [K, C, kd, kh, kw] for `forward`.

        sources  C cut into the inputs' channels
        stored   the type in which the network's tensors are stored
        """

    def pack_turned_weight(
        self, weight: Tensor, sources: Sequence[int], stride: Triple = ..., stored: torch.dtype = ...
    ) -> Packed:
        """The same for `backward`."""

    def weight_sums(
        self, weight: Tensor, sources: Sequence[int], voxels: int, stride: Triple = ..., image: bool = ...,
        stored: torch.dtype = ...,
    ) -> GradientSums:  # fmt: skip
        """Where `backward` or, for an `image`, `add_for_image` adds up the weight's gradient.

        voxels  of this rank's block of the output
        """

    def forward(
        self, inputs: Sequence[Activation], weight: Any, bias: Tensor | None, out: Rows, *, planes: Range | None = ...,
        origin: Triple = ..., sums: BrickSums | None = ..., pooled: Pooled | None = ..., ghosts: Sequence[Ghosts] = ...,
    ) -> None:  # fmt: skip
        """Fill planes of `out` with the convolution of one or two inputs side by side.

        bias    [K], as many as `out` has stored, or None
        planes  of the output to compute; all by default
        origin  -1 on D, H, W where the block begins at an odd coordinate of the volume, else 0
        sums    of the bricks of these planes, which are filled
        pooled  what is pooled of these planes, which is filled
        ghosts  of the inputs, where they are still under way: what needs none is computed meanwhile
        """

    def backward(
        self, inputs: Sequence[Activation], gradient: Rows, weight: Any, targets: Sequence[Target], into: Any, *,
        planes: Range | None = ..., ghosts: Sequence[Ghosts] = ...,
    ) -> None:  # fmt: skip
        """Gradients of `forward`: of its inputs to `targets`, of its weight added to `into`.

        inputs    whose ghosts are not read
        gradient  of the output, with ghosts where the volume goes on; zero beyond them
        planes    of the output, whose inputs are those from the stride times the first on; all by default
        """

    def add_for_image(self, x: Activation, gradient: Rows, into: Any) -> None:
        """The weight's gradient alone added to `into`, from an image, which must have its ghosts."""


class PointConvolutions(Protocol):
    """Convolutions without neighbours: of 1x1x1, and transposed ones whose stride is their kernel, of 1 or 2."""

    def pack_point(self, weight: Tensor, bias: Tensor | None, stored: torch.dtype) -> PackedPoint:
        """The weight of a 1x1x1 convolution, [K, C, 1, 1, 1], for `apply`."""

    def pack_up(self, weight: Tensor, bias: Tensor | None, stored: torch.dtype) -> PackedPoint:
        """The weight of a transposed convolution, [C, K, sd, sh, sw], for `apply`."""

    def apply(self, x: Activation, weight: Any, out: Rows, planes: Range | None = ...) -> None:
        """Fill `out`, which is (sd, sh, sw) times as long, from planes of `x`, by default all."""

    def pack_turned_point(self, weight: Tensor, channels: int, stored: torch.dtype) -> PackedPoint:
        """The weight of `gradients` for a 1x1x1 convolution whose output has so many channels stored."""

    def pack_turned_up(self, weight: Tensor, stored: torch.dtype) -> PackedPoint:
        """The weight of `gradients` for a transposed convolution."""

    def gradients(
        self, x: Activation, upstream: Rows, weight: Any, target: Rows, sums: Tensor | None,
        planes: Range | None = ..., *, add: bool = ...,
    ) -> Tensor:  # fmt: skip
        """Gradients of `apply`: of its input to `target`, of its weight as the result.

        upstream  gradient of the output
        sums      as those of `Target`
        out       [sd * sh, sw * K as stored, C as stored] float64: this block's part
        """

    def up_weight_gradient(self, total: Tensor, shape: Sequence[int]) -> Tensor:
        """The gradient [C, K, sd, sh, sw] float32 of an up-convolution from the sum of what `gradients` returned."""


class Pooling(Protocol):
    """Max pooling of raw values by windows of 1 or 2 on each axis: of each the one whose activated value is largest."""

    def pool(self, x: Activation, window: Triple, out: Rows, signs: Tensor, planes: Range | None = ...) -> None:
        """Fill planes of `out`.

        signs  [C] -1 where the activated values fall as the raw ones rise, else 1; of no account for activations that
               may fall, of which activated values are compared
        """

    def unpool(
        self, gradient: Rows, x: Activation, signs: Tensor, pooled: Rows, sums: Tensor | None, window: Triple = ...
    ) -> None:
        """Add the gradient of what was pooled, in place, to the first of each window's largest.

        sums  as those of `Target`: then all of `gradient` goes through the activation of `x` afterwards
        """


class Averaging(Protocol):
    """Means of the activated values of windows of 1 or 2 on each axis."""

    def average(self, x: Activation, window: Triple, out: Rows) -> None:
        """Fill `out`."""

    def gradient(
        self, pooled: Rows, x: Activation | None, window: Triple, out: Rows, sums: Tensor | None, *, add: bool = ...
    ) -> None:
        """The gradient of `x` to `out`, from that of the means; through an activation where there are `sums`."""


class Addition(Protocol):
    """Sums of two activations."""

    def add(
        self, x: Activation, other: Activation, out: Rows, slope: float, planes: Range | None = ...
    ) -> None:  # fmt: skip
        """``out = leaky_relu(x + other, slope)``; `out` may be the rows of either."""

    def divide(
        self, gradient: Rows, out: Rows, slope: float, x: Activation, other: Activation, *,
        x_sums: Tensor | None = ..., other_sums: Tensor | None = ..., copy: Rows | None = ..., adding: bool = ...,
    ) -> None:  # fmt: skip
        """The gradient of `add`: that of its result becomes that of `x`, `copy` gets that of `other`.

        out     what `add` wrote
        adding  whether the gradient of `other` is added to what stands in `copy`

        Raises AssertionError where the terms' gradients differ and there is no `copy`.
        """


class Interpolation(Protocol):
    """Up-sampling by factors of 1 or 2 on each axis, "trilinear" or "nearest"."""

    def interpolate(
        self, x: Activation, factors: Triple, mode: str, out: Rows, planes: Range | None = ..., *, beside: bool = ...
    ) -> None:
        """Fill `out` from planes of `x`, which may begin in its ghosts.

        out     `factors` times as long; counted from the voxel that the own first voxel of `x` becomes
        beside  whether what the ghosts on H and W become is wanted, too; its outermost voxels may be wrong
        """

    def gradient(
        self, fine: Rows, x: Activation | None, factors: Triple, mode: str, target: Rows, sums: Tensor | None, *,
        add: bool = ...,
    ) -> None:  # fmt: skip
        """The gradient of `x` to `target`, from that of the output, for "trilinear" with a ghost on each side."""


class Passes(Protocol):
    """What needs each voxel alone."""

    def activate(self, x: Activation, out: Rows, planes: Range | None = ...) -> None:
        """Planes of `out` become what `x` stands for; `out` may be its rows."""

    def combine(self, gradient: Rows, raw: Rows, a: Tensor, b: Tensor, c: Tensor) -> None:
        """``gradient = a * gradient + b * raw + c`` per channel, in place; a, b, c [C]."""


class Backend(Protocol):
    """The functions of a device.

    name    in messages and reports
    device  on which coefficients, sums and rows lie
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def blocks(self) -> BlockConvolutions: ...
    @property
    def points(self) -> PointConvolutions: ...
    @property
    def pooling(self) -> Pooling: ...
    @property
    def averaging(self) -> Averaging: ...
    @property
    def addition(self) -> Addition: ...
    @property
    def interpolation(self) -> Interpolation: ...
    @property
    def passes(self) -> Passes: ...


@dataclass(frozen=True)
class CompiledBackend:
    """The kernels that are compiled for this processor (`nn/kernels`): the same bits on any grid."""

    name: str = "compiled kernels"
    device: torch.device = CPU
    blocks: BlockConvolutions = block_convolution
    points: PointConvolutions = point_convolution
    pooling: Pooling = pooling
    averaging: Averaging = averaging
    addition: Addition = addition
    interpolation: Interpolation = interpolation
    passes: Passes = passes


def backend_for(device: torch.device, environment: Mapping[str, str], compiled: bool | None = None) -> Backend:
    """The backend of a device: on a processor the compiled kernels where it can run them, else torch's operators.

    environment  VOLSEG_BACKEND=torch asks for torch's operators on any device
    compiled     whether all ranks' processors run the compiled kernels; by default whether this one does

    Raises ConfigError for another value of VOLSEG_BACKEND.
    """
    wanted = environment.get(BACKEND, "")
    if wanted not in ("", "torch"):
        raise ConfigError(f"{BACKEND}={wanted}: there is no such backend; set it to torch, or leave it out")
    if compiled is None:
        compiled = block_convolution.available()
    if device.type == "cpu" and compiled and not wanted:
        return CompiledBackend()
    return TorchBackend(device)
