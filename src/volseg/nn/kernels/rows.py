"""Rows: one sample's block of a tensor, channels last, with room for ghosts; and activations that are not computed yet.

Channels of all tensors but images are rounded up to a multiple of 8, the vectors' length, with zeros. A normalised and
activated tensor is not held: an `Activation` is the tensor before and two coefficients per channel, and who reads it
computes it. That is the memory of in-place ABN (Rota Bulo et al., CVPR 2018) without its inversion, which is
ill-conditioned for small weights and impossible for ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.networks.description import ActivationKind
from volseg.nn.elementwise import activate
from volseg.partition.window import Range
from volseg.precision import Precision


def dtype_of(precision: Precision) -> torch.dtype:
    """Torch's type of what is stored in a precision."""
    return torch.bfloat16 if precision is Precision.BFLOAT16 else torch.float32


@dataclass
class Rows:
    """A rank's block of a tensor, and the voxels beside it that other ranks own.

    buffer  [low + d + high on D, on H, on W, C] float32 or bfloat16, contiguous
    low     ghosts before the block on D, H, W
    sides   (d, h, w) of the block itself
    """

    buffer: Tensor
    low: Triple
    sides: Triple

    @classmethod
    def of(cls, block: Tensor) -> Rows:
        """A block without ghosts, [d, h, w, C] contiguous."""
        return cls(block, (0, 0, 0), (block.shape[0], block.shape[1], block.shape[2]))

    @property
    def channels(self) -> int:
        """C, as stored."""
        return int(self.buffer.shape[3])

    @property
    def plane(self) -> int:
        """Numbers from one plane to the next."""
        return int(self.buffer.stride(0))

    @property
    def line(self) -> int:
        """Numbers from one line to the next."""
        return int(self.buffer.stride(1))

    @property
    def address(self) -> int:
        """Of the block's own first voxel."""
        low, size = self.low, self.buffer.element_size()
        return self.buffer.data_ptr() + size * (low[0] * self.plane + low[1] * self.line + low[2] * self.channels)

    @property
    def high(self) -> Triple:
        """Ghosts after the block on D, H, W."""
        d, h, w = (int(n) - a - b for n, a, b in zip(self.buffer.shape[:3], self.low, self.sides, strict=True))
        return d, h, w

    @property
    def valid(self) -> tuple[Range, Range, Range]:
        """The voxels there are on each axis, counted from the block's own first one."""
        d, h, w = ((-low, int(n) - low) for low, n in zip(self.low, self.buffer.shape[:3], strict=True))
        return d, h, w

    def seen_from(self, origin: Triple, sides: Triple) -> Rows:
        """The same memory for a block of `sides` that begins at `origin`, counted from this block's own first voxel."""
        d, h, w = (low + first for low, first in zip(self.low, origin, strict=True))
        return Rows(self.buffer, (d, h, w), sides)

    @property
    def own(self) -> Tensor:
        """The block itself, a view [d, h, w, C]."""
        d, h, w = (slice(low, low + n) for low, n in zip(self.low, self.sides, strict=True))
        return self.buffer[d, h, w]


@dataclass(frozen=True)
class Affine:
    """``activation(x * scale + shift) * gain`` per channel.

    scale, shift  [C] float32, as many as the rows have stored
    slope         of a leaky ReLU below zero; 1 is no activation, 0 is ReLU
    kind          of the activation
    gain          [C] float32; None: ones, as always with a leaky ReLU, whose factor can be in scale and shift
    """

    scale: Tensor
    shift: Tensor
    slope: float
    kind: ActivationKind = "leaky_relu"
    gain: Tensor | None = None

    def on(self, device: torch.device) -> Affine:
        """The same on another device; itself where it lies there."""
        gain = None if self.gain is None else self.gain.to(device)
        return replace(self, scale=self.scale.to(device), shift=self.shift.to(device), gain=gain)

    @property
    def activates(self) -> bool:
        """Whether there is an activation."""
        return self.kind != "leaky_relu" or self.slope != 1

    @property
    def gains(self) -> Tensor | None:
        """What kernels multiply by; None for a leaky ReLU."""
        if self.kind == "leaky_relu":
            return None
        return torch.ones_like(self.scale) if self.gain is None else self.gain


@dataclass(frozen=True)
class Activation:
    """What rows become where they are read; ghosts are read with the same coefficients, beyond them lies zero."""

    rows: Rows
    affine: Affine | None = None

    def values(self) -> Tensor:
        """The block, activated, as a new tensor [d, h, w, C]."""
        if self.affine is None:
            return self.rows.own.contiguous()
        values = torch.mul(self.rows.own, self.affine.scale)
        values += self.affine.shift
        values = activate(values, self.affine.kind, self.affine.slope)
        return values if self.affine.gain is None else values * self.affine.gain
