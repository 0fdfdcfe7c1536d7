"""Convolutions without padding, and their gradients, by the library of the device: cuDNN, or oneDNN on processors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from volseg.geometry import Triple
from volseg.nn.kernels.convolution import onednn_weight_gradient

_NONE: Triple = (0, 0, 0)
_ALL: Triple = (1, 1, 1)


def _onednn(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def convolved(window: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple) -> Tensor:
    """A window convolved, [d, h, w, K] in the window's type.

    window  [D, H, W, C] contiguous
    weight  [K, C, kd, kh, kw] in the window's type
    bias    [K] float32, or None; added in float32

    torch leaves small problems of one sample to a slow kernel; so oneDNN is called by its own name.
    """
    x = _as_sample(window)
    several = any(n > k for n, k in zip(window.shape[:3], weight.shape[2:], strict=True))
    if _onednn(window) and several:
        y = torch.ops.aten.mkldnn_convolution(x, weight, bias, _NONE, stride, _ALL, 1)
    elif window.dtype == torch.float32:
        y = functional.conv3d(x, weight, bias, stride)
    else:
        y = functional.conv3d(x, weight, None, stride)
        if bias is not None:
            y.add_(bias.view(1, -1, 1, 1, 1))
    return _as_rows(y)


def input_gradient(gradient: Tensor, weight: Tensor, stride: Triple, sides: Triple) -> Tensor:
    """The gradient [D, H, W, C] of the window that `convolved` had, of `sides`, from that of its result."""
    window = gradient.new_empty(1).expand(1, weight.shape[1], *sides)
    mask = (True, False, False)
    args = (_as_sample(gradient), window, weight, None, stride, _NONE, _ALL, False, _NONE, 1, mask)
    return _as_rows(torch.ops.aten.convolution_backward(*args)[0])


def weight_gradient(window: Tensor, gradient: Tensor, weight: tuple[int, ...], stride: Triple) -> Tensor:
    """The gradient of the weight [K, C, kd, kh, kw] that `convolved` had, float32.

    In float32 also where tensors are bfloat16, since the sum over a whole window would else be rounded to it.
    """
    x, upstream = _as_sample(window.float()), _as_sample(gradient.float())
    like = x.new_empty(1).expand(weight)
    if _onednn(x):
        return onednn_weight_gradient(x, upstream, like, stride, _ALL, 1)
    args = (upstream, x, like, None, stride, _NONE, _ALL, False, _NONE, 1, (False, True, False))
    whole: Tensor = torch.ops.aten.convolution_backward(*args)[1]
    return whole


def _as_sample(rows: Tensor) -> Tensor:
    """[d, h, w, C] as [1, C, d, h, w], channels last."""
    return rows.permute(3, 0, 1, 2).unsqueeze(0)


def _as_rows(sample: Tensor) -> Tensor:
    """[1, C, d, h, w] as [d, h, w, C], contiguous."""
    return sample[0].permute(1, 2, 3, 0).contiguous()
