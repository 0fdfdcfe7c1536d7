"""One front for the convolutions of blocks: Winograd's where it applies, direct sums elsewhere, tiles of bfloat16.

All have the same functions. Which of them a convolution goes to follows from its kernel, stride and channels, whether
it reads an image, the type in which tensors are stored, and the processor alone, so that its bits do not depend on
where and how large a block is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels import amx, direct, winograd
from volseg.nn.kernels.rows import Activation, Rows
from volseg.nn.kernels.stages import Ghosts
from volseg.nn.kernels.winograd import BrickSums, Pooled, Target
from volseg.partition.tiling import LANES, is_thin
from volseg.partition.window import Range

__all__ = [
    "BrickSums", "Ghosts", "Pooled", "Target", "Weight", "WeightSums", "add_for_image", "available", "backward",
    "forward", "on_tiles", "pack_turned_weight", "pack_weight", "refusal", "weight_sums",
]  # fmt: skip

Weight = winograd.Weight | direct.Weight | amx.Weight
WeightSums = winograd.WeightSums | direct.WeightSums | amx.WeightSums

available = winograd.available


def refusal(kernel: Sequence[int], stride: Sequence[int]) -> str | None:
    """Why no kernel takes a convolution; None where one does."""
    if not set(kernel) <= {1, 3, 5, 7}:
        return f"kernel {tuple(kernel)}: sides of 1, 3, 5 or 7 voxels are computed"
    if not set(stride) <= {1, 2}:
        return f"stride {tuple(stride)}: 1 or 2 on each axis is computed"
    return None


def minimal(kernel: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a convolution goes to `winograd`: 3x3 on H and W, stride 1, unless `is_thin` says what it reads."""
    return tuple(kernel[1:]) == (3, 3) and tuple(stride) == (1, 1, 1)


def on_tiles(sources: Sequence[int], stored: torch.dtype) -> bool:
    """Whether convolutions of inputs of these channels are computed by `amx`: not those of an image of few.

    stored  the type in which a network's tensors are stored
    """
    return stored == torch.bfloat16 and min(sources) >= LANES and amx.available()


def pack_weight(
    weight: Tensor, sources: Sequence[int], stride: Triple = (1, 1, 1), stored: torch.dtype = torch.float32
) -> Weight:
    """The weight [K, C, kd, kh, kw] of a convolution for `forward`; see `winograd.pack_weight`.

    stored  the type in which the network's tensors are stored

    Raises AssertionError for a kernel or a stride that none takes.
    """
    minimal = _is_minimal(weight, stride) and not is_thin(sources)
    if on_tiles(sources, stored):
        return amx.pack_weight(weight, sources, stride)
    return winograd.pack_weight(weight, sources) if minimal else direct.pack_weight(weight, sources, stride)


def pack_turned_weight(
    weight: Tensor, sources: Sequence[int], stride: Triple = (1, 1, 1), stored: torch.dtype = torch.float32
) -> Weight:
    """The weight of the input gradient, for `backward`; as `pack_weight`."""
    if on_tiles(sources, stored):
        return amx.pack_turned_weight(weight, sources, stride)
    if _is_minimal(weight, stride):
        return winograd.pack_turned_weight(weight, sources)
    return direct.pack_turned_weight(weight, sources, stride)


def weight_sums(
    weight: Tensor, sources: Sequence[int], voxels: int, stride: Triple = (1, 1, 1), image: bool = False,
    stored: torch.dtype = torch.float32,
) -> WeightSums:  # fmt: skip
    """Where `backward` or, for an image, `add_for_image` adds up the weight's gradient; see `winograd.WeightSums`."""
    if not image and on_tiles(sources, stored):
        return amx.WeightSums(weight, sources, voxels, stride)
    if _is_minimal(weight, stride) and not (image and is_thin(sources)):
        return winograd.WeightSums(weight, sources, voxels, image)
    return direct.WeightSums(weight, sources, voxels, stride, image)


def _is_minimal(weight: Tensor, stride: Triple) -> bool:
    kernel = tuple(weight.shape[2:])
    why = refusal(kernel, stride)
    if why is not None:
        raise AssertionError(why)
    return minimal(kernel, stride)


def forward(
    inputs: Sequence[Activation], weight: Weight, bias: Tensor | None, out: Rows, *, planes: Range | None = None,
    origin: Triple = (0, 0, 0), sums: BrickSums | None = None, pooled: Pooled | None = None,
    ghosts: Sequence[Ghosts] = (),
) -> None:  # fmt: skip
    """Fill `out` with a convolution; see `winograd.forward` and `direct.forward`.

    origin  for `winograd`, whose tiles begin at even coordinates of the volume; others have no use for it
    """
    if isinstance(weight, amx.Weight):
        amx.forward(inputs, weight, bias, out, planes=planes, sums=sums, pooled=pooled, ghosts=ghosts)
    elif isinstance(weight, winograd.Weight):
        winograd.forward(
            inputs, weight, bias, out, planes=planes, origin=origin, sums=sums, pooled=pooled, ghosts=ghosts
        )
    else:
        direct.forward(inputs, weight, bias, out, planes=planes, sums=sums, pooled=pooled, ghosts=ghosts)


def backward(
    inputs: Sequence[Activation], gradient: Rows, weight: Weight, targets: Sequence[Target], into: WeightSums, *,
    planes: Range | None = None, ghosts: Sequence[Ghosts] = (),
) -> None:  # fmt: skip
    """Gradients of `forward`; see `winograd.backward` and `direct.backward`. `planes` are the output's."""
    if isinstance(weight, winograd.Weight) and isinstance(into, winograd.WeightSums):
        winograd.backward(inputs, gradient, weight, targets, into, planes=planes, ghosts=ghosts)
    elif isinstance(weight, direct.Weight) and isinstance(into, direct.WeightSums):
        direct.backward(inputs, gradient, weight, targets, into, planes=planes, ghosts=ghosts)
    elif isinstance(weight, amx.Weight) and isinstance(into, amx.WeightSums):
        amx.backward(inputs, gradient, weight, targets, into, planes=planes, ghosts=ghosts)
    else:
        raise AssertionError("the sums of a weight's gradient belong to another kernel than the weight")


def add_for_image(x: Activation, gradient: Rows, into: WeightSums) -> None:
    """The weight's gradient alone added to `into`, from an image, which must have its ghosts."""
    if isinstance(into, winograd.WeightSums):
        winograd.add_for_image(x, gradient, into)
    elif isinstance(into, direct.WeightSums):
        direct.add_for_image(x, gradient, into)
    else:
        raise AssertionError("the weight's gradient of an image has its own sums: weight_sums(..., image=True)")
