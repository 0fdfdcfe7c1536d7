"""3D convolution, its transpose and its weight gradient, without padding, as fast and as reproducible as there is.

Reproducible means: a voxel's bits do not depend on the size of the tensor it was computed in. On CPU in float32

- kernels of 1, 3, 5 or 7 and strides of 1 or 2 on each axis, without dilation and groups, go to the kernels of
  `block_convolution`, a 1x1x1 one and a transposed one whose kernel of 1 or 2 is its stride to `pointwise`: they add in
  one order, whatever the processor and the shape, and need to know at most whether the block begins at an odd
  coordinate (`origin`). A network of torch modules so has the bits of the fused one;
- everything else goes to oneDNN directly (`torch.ops.aten.mkldnn_convolution`): `F.conv3d` leaves oneDNN for a kernel
  17 times slower when N = 1 and C*D*H <= 20480, which partitioned blocks and coarse levels are.

oneDNN chooses its blocking by shape, and some choices change the order of the sum over a long kernel. 5000 random pairs
(whole, part) with channels 1..256, kernels 1..7, strides, dilations, sides from 1 and 1 or 2 threads gave equal bits
under this rule, which `tests/nn/test_kernels.py` samples again:

- kernel 1: channels-last memory; one input channel is a plain product, and one voxel with a bias is computed as two
  (oneDNN's own differ)
- kernel >= 3 with up to 1728 = 64 * 3^3 terms per output: channels-last memory (1.4 to 1.7 times faster, no reorder)
- longer sums: contiguous memory, where oneDNN reorders to its blocked format and sums in one fixed order

Gradients need not have equal bits. The gradient of the input is a transposed convolution: a few forward convolutions
again. The gradient of the weight has no direct entry in torch; `convolution_backward` reaches oneDNN when N >= 2, so
a small N = 1 problem is folded in two along D.
"""

from __future__ import annotations

from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels import block_convolution, direct, pointwise, winograd
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.tiling import padded_channels

_LONG_SUM = 1728
_ONEDNN_SIZE = 20480
_EXACT_VOXELS = 16384


def _onednn(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def _own(x: Tensor, weight: Tensor, stride: Triple, dilation: Triple, groups: int) -> bool:
    """Whether `block_convolution` takes a convolution, or its gradients."""
    plain = dilation == (1, 1, 1) and groups == 1 and block_convolution.refusal(weight.shape[2:], stride) is None
    return plain and _onednn(x) and _onednn(weight) and block_convolution.available()


def _half(weight: Tensor) -> Triple:
    """Half of a kernel: the padding that `block_convolution` counts with."""
    d, h, w = (k // 2 for k in weight.shape[2:])
    return d, h, w


def _inside(x: Tensor, weight: Tensor) -> Triple:
    """The sides of a window without half a kernel before and after."""
    d, h, w = (n - 2 * half for n, half in zip(x.shape[2:], _half(weight), strict=True))
    return d, h, w


def _pointwise(x: Tensor, weight: Tensor, stride: Triple, groups: int) -> bool:
    """Whether `pointwise` takes a 1x1x1 convolution."""
    plain = stride == (1, 1, 1) and groups == 1 and tuple(weight.shape[2:]) == (1, 1, 1)
    return plain and _onednn(x) and _onednn(weight) and block_convolution.available()


def _rows(sample: Tensor) -> Tensor:
    """[C, D, H, W] as contiguous rows [D, H, W, C]; channels beyond eight are rounded up to vectors with zeros."""
    rows = sample.permute(1, 2, 3, 0)
    channels = sample.shape[0]
    stored = channels if channels < 8 else padded_channels(channels)
    return F.pad(rows, [0, stored - channels]) if stored > channels else rows.contiguous()


def _samples(rows: list[Tensor], channels: int) -> Tensor:
    """Rows [D, H, W, C as stored] of each sample as one tensor [N, C, D, H, W], channels-last."""
    stacked = rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)
    return _last(stacked[..., :channels].permute(0, 4, 1, 2, 3))


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple, dilation: Triple, groups: int,
    origin: Triple = (0, 0, 0),
) -> Tensor:  # fmt: skip
    """Unpadded 3D convolution.

    x       [N, C, D, H, W]
    weight  [K, C / groups, kd, kh, kw]
    bias    [K] or None
    origin  -1 on D, on H, on W where the result begins at an odd coordinate of the volume, else 0
    y       [N, K, (D - dilation * (kd - 1) - 1) // stride + 1, ...], channels-last
    """
    if _pointwise(x, weight, stride, groups):
        packed = pointwise.pack_point(weight, bias)
        return _samples([_apply(packed, _rows(sample)) for sample in x], weight.shape[0])
    if _own(x, weight, stride, dilation, groups):
        return _own_convolve(x, weight, bias, stride, origin)
    if not _onednn(x):
        return F.conv3d(x, weight, bias, stride, 0, dilation, groups)
    kernel = tuple(weight.shape[2:])
    if kernel == (1, 1, 1):
        if stride != (1, 1, 1):
            x = x[:, :, :: stride[0], :: stride[1], :: stride[2]]
        if weight.shape[1] == 1 and groups == 1:
            y = _last(x) * weight.view(1, -1, 1, 1, 1)
            return y if bias is None else y.add_(bias.view(1, -1, 1, 1, 1))
        if bias is not None and x.shape[2:].numel() == 1:
            return convolve(x.expand(-1, -1, 1, 1, 2), weight, bias, (1, 1, 1), (1, 1, 1), groups)[..., :1]
        stride, dilation = (1, 1, 1), (1, 1, 1)
    long_sum = weight[0].numel() > _LONG_SUM and kernel != (1, 1, 1)
    x = x.contiguous() if long_sum else _last(x)
    y = torch.ops.aten.mkldnn_convolution(x, weight, bias, (0, 0, 0), stride, dilation, groups)
    return _last(y)


def _own_convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple, origin: Triple
) -> Tensor:  # fmt: skip
    packed = block_convolution.pack_weight(weight, [weight.shape[1]], stride)
    stored = packed.channels
    bias = None if bias is None else F.pad(bias.detach(), [0, stored - bias.shape[0]])
    padding, sides = _half(weight), _inside(x, weight)
    results = []
    for sample in x:
        window = Rows(_rows(sample), padding, sides)
        out = Rows.of(torch.empty(*(-(-n // s) for n, s in zip(sides, stride, strict=True)), stored))
        block_convolution.forward([Activation(window)], packed, bias, out, origin=origin)
        results.append(out.buffer)
    packed.release()
    return _samples(results, weight.shape[0])


def _apply(packed: pointwise.PointWeight, rows: Tensor) -> Tensor:
    """[d, h, w, C] to [sd d, sh h, sw w, K], s the spread."""
    sides = [n * s for n, s in zip(rows.shape[:3], packed.spread, strict=True)]
    channels = packed.channels // packed.spread[2]  # both voxels along W lie in one row
    out = Rows.of(torch.empty(*sides, channels))
    pointwise.apply(Activation(Rows.of(rows)), packed, out)
    return out.buffer


def transposed_convolve(
    x: Tensor, weight: Tensor, stride: Triple, dilation: Triple, groups: int, shape: Triple
) -> Tensor:
    """Unpadded transposed 3D convolution: the adjoint of `convolve` in its input.

    x       [N, K, d, h, w]
    weight  [K, C / groups, kd, kh, kw], as in `convolve` (and as in nn.ConvTranspose3d)
    shape   (D, H, W) of the result; voxels that no output of `convolve` touched are zero
    y       [N, C, D, H, W]
    """
    if not _onednn(x):
        full = F.conv_transpose3d(x, weight, None, stride, 0, 0, groups, dilation)
        missing = [n - m for n, m in zip(shape, full.shape[2:], strict=True)]
        return F.pad(full, [0, missing[2], 0, missing[1], 0, missing[0]]) if any(missing) else full
    kernel: Triple = (weight.shape[2], weight.shape[3], weight.shape[4])
    doubles = kernel == stride and set(stride) <= {1, 2}
    if (
        doubles
        and tuple(s * n for s, n in zip(stride, x.shape[2:], strict=True)) == shape
        and groups == 1
        and dilation == (1, 1, 1)
        and _onednn(weight)
        and winograd.available()
    ):
        packed = pointwise.pack_up(weight, None)
        return _samples([_apply(packed, _rows(sample)) for sample in x], weight.shape[1])
    if _own(x, weight, stride, dilation, groups) and kernel != (1, 1, 1):
        minimal = block_convolution.minimal(kernel, stride)
        return _minimal_transposed(x, weight, shape) if minimal else _direct_transposed(x, weight, stride, shape)
    turned = _turn(weight, groups)
    if stride == kernel and groups == 1 and tuple(n * s for n, s in zip(x.shape[2:], stride, strict=True)) == shape:
        return _depth_to_space(x, weight, stride)
    if stride == (1, 1, 1):
        return _full_convolve(x, turned, dilation, groups)
    if dilation != (1, 1, 1):
        return _full_convolve(_spread(x, stride, shape, kernel, dilation), turned, dilation, groups)
    return _by_phases(x, turned, stride, groups, shape)


def _minimal_transposed(x: Tensor, weight: Tensor, shape: Triple) -> Tensor:
    turned = winograd.pack_turned_weight(weight, [weight.shape[1]])
    if turned.inner > x.shape[1]:
        x = F.pad(x, [0, 0, 0, 0, 0, 0, 0, turned.inner - x.shape[1]])
    results = []
    for sample in x:
        # The result begins half a kernel before x does, and beyond x there is nothing: ghosts the other way round.
        d, h, w = _half(weight)
        given = Rows(_rows(sample), (-d, -h, -w), shape)
        out = Rows.of(torch.empty(*shape, turned.channels))
        winograd.forward([Activation(given)], turned, None, out)
        results.append(out.buffer)
    return _samples(results, weight.shape[1])


def _direct_transposed(x: Tensor, weight: Tensor, stride: Triple, shape: Triple) -> Tensor:
    turned = direct.pack_turned_weight(weight, [weight.shape[1]], stride)
    if turned.voxel > x.shape[1]:
        x = F.pad(x, [0, 0, 0, 0, 0, 0, 0, turned.voxel - x.shape[1]])
    # The result begins half a kernel before the voxels that x stands for, and blocks at multiples of the stride: so
    # some are computed before it.
    before = [-(-half // s) for half, s in zip(_half(weight), stride, strict=True)]
    extra = [b * s - half for b, s, half in zip(before, stride, _half(weight), strict=True)]
    sides = [n + e for n, e in zip(shape, extra, strict=True)]
    d, h, w = (-(-n // s) for n, s in zip(sides, stride, strict=True))
    results = []
    for sample in x:
        out = Rows.of(torch.empty(*sides, turned.channels))
        gradient = Rows(_rows(sample), (-before[0], -before[1], -before[2]), (d, h, w))
        direct.backward([Activation(out)], gradient, turned, [direct.Target(out)], None)
        results.append(out.buffer[extra[0] :, extra[1] :, extra[2] :])
    turned.release()
    return _samples(results, weight.shape[1])


def _turn(weight: Tensor, groups: int) -> Tensor:
    """[K, C / g, ...] to [C, K / g, ...], flipped: the weight whose full convolution is the adjoint."""
    k, c = weight.shape[:2]
    grouped = weight.reshape(groups, k // groups, c, *weight.shape[2:])
    return grouped.transpose(1, 2).reshape(groups * c, k // groups, *weight.shape[2:]).flip(2, 3, 4)


def _full_convolve(x: Tensor, weight: Tensor, dilation: Triple, groups: int) -> Tensor:
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    padded = F.pad(x, [reach[2], reach[2], reach[1], reach[1], reach[0], reach[0]]) if any(reach) else x
    return convolve(padded, weight, None, (1, 1, 1), dilation, groups)


def _depth_to_space(x: Tensor, weight: Tensor, stride: Triple) -> Tensor:
    """Kernel = stride: every input voxel makes a tile of its own; one 1x1x1 convolution, then tiles side by side."""
    n, _, d, h, w = x.shape
    c = weight.shape[1]
    tiles = weight.permute(2, 3, 4, 1, 0).reshape(-1, weight.shape[0], 1, 1, 1)
    y = convolve(x, tiles, None, (1, 1, 1), (1, 1, 1), 1)
    y = y.permute(0, 2, 3, 4, 1).reshape(n, d, h, w, *stride, c).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return y.reshape(n, d * stride[0], h * stride[1], w * stride[2], c).permute(0, 4, 1, 2, 3)


def _spread(x: Tensor, stride: Triple, shape: Triple, kernel: Triple, dilation: Triple) -> Tensor:
    """`x` with stride - 1 zeros between its voxels and what `shape` wants behind them."""
    sides = [n - d * (k - 1) for n, d, k in zip(shape, dilation, kernel, strict=True)]
    spread = x.new_zeros((*x.shape[:2], *sides))
    spread[:, :, :: stride[0], :: stride[1], :: stride[2]] = x
    return spread


def _by_phases(x: Tensor, turned: Tensor, stride: Triple, groups: int, shape: Triple) -> Tensor:
    """Output voxel s*q + r sees only the kernel taps r, r + s, ...: one small stride-1 convolution per phase r."""
    y = x.new_zeros((x.shape[0], turned.shape[0], *shape)).contiguous(memory_format=torch.channels_last_3d)
    plain = turned.flip(2, 3, 4)
    for phase in product(*(range(min(s, k)) for s, k in zip(stride, plain.shape[2:], strict=True))):
        r, s = phase, stride
        taps = plain[:, :, r[0] :: s[0], r[1] :: s[1], r[2] :: s[2]].flip(2, 3, 4).contiguous()
        part = _full_convolve(x, taps, (1, 1, 1), groups)
        place = y[:, :, r[0] :: s[0], r[1] :: s[1], r[2] :: s[2]]
        size = [min(a, b) for a, b in zip(part.shape[2:], place.shape[2:], strict=True)]
        place[:, :, : size[0], : size[1], : size[2]] = part[:, :, : size[0], : size[1], : size[2]]
    return y


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, stride: Triple, dilation: Triple, groups: int) -> Tensor:
    """Gradient of `convolve` in its weight.

    x     [N, C, D, H, W]  its input
    grad  [N, K, d, h, w]  gradient of its output
    out   [K, C / groups, kd, kh, kw]

    A sum over many voxels is taken slab by slab along D and the slabs are added in float64: over 64^3 voxels that
    leaves a quarter of the rounding error, which is what training on different grids differs by.
    """
    if not _onednn(x):
        return _weight_gradient(x, grad, weight, stride, dilation, groups)
    if _own(x, weight, stride, dilation, groups) and tuple(weight.shape[2:]) != (1, 1, 1):
        return _own_weight_gradient(x, grad, weight, stride)
    return onednn_weight_gradient(x, grad, weight, stride, dilation, groups)


def onednn_weight_gradient(
    x: Tensor, grad: Tensor, weight: Tensor, stride: Triple, dilation: Triple, groups: int
) -> Tensor:
    """The same by oneDNN, of float32 tensors of a processor."""
    x, grad = _last(x), _last(grad)
    planes = max(1, _EXACT_VOXELS // (grad.shape[0] * grad.shape[3] * grad.shape[4]))
    if planes >= grad.shape[2]:
        return _onednn_weight_gradient(x, grad, weight, stride, dilation, groups)
    total = torch.zeros_like(weight, dtype=torch.float64)
    for start in range(0, grad.shape[2], planes):
        part = grad[:, :, start : start + planes]
        first = start * stride[0]
        last = first + (part.shape[2] - 1) * stride[0] + dilation[0] * (weight.shape[2] - 1) + 1
        total += _onednn_weight_gradient(x[:, :, first:last], part, weight, stride, dilation, groups)
    return total.to(weight.dtype)


def _own_weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, stride: Triple) -> Tensor:
    padding, sides = _half(weight), _inside(x, weight)
    stored = x.shape[1] if x.shape[1] < 8 else padded_channels(x.shape[1])
    wide = weight if stored == x.shape[1] else weight.new_empty(weight.shape[0], stored, *weight.shape[2:])
    voxels = x.shape[0] * prod(grad.shape[2:])
    sums = block_convolution.weight_sums(wide, [stored], voxels, stride, image=True)
    for sample, upstream in zip(x, grad, strict=True):
        window, own = Rows(_rows(sample), padding, sides), upstream.permute(1, 2, 3, 0)
        padded = F.pad(own, [0, padded_channels(own.shape[3]) - own.shape[3]])
        block_convolution.add_for_image(Activation(window), Rows.of(padded.contiguous()), sums)
    return sums.finish()[:, : x.shape[1]].contiguous()


def _onednn_weight_gradient(
    x: Tensor, grad: Tensor, weight: Tensor, stride: Triple, dilation: Triple, groups: int
) -> Tensor:
    if tuple(weight.shape[2:]) == (1, 1, 1) and groups == 1:
        x = x[:, :, :: stride[0], :: stride[1], :: stride[2]]
        rows = _last(x).permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1])
        return (_last(grad).permute(0, 2, 3, 4, 1).reshape(-1, grad.shape[1]).T @ rows).view_as(weight)
    if x.shape[0] == 1 and groups == 1 and x.shape[1] * x.shape[2] * x.shape[3] <= _ONEDNN_SIZE:
        x, grad = _fold(x, grad, weight.shape[2], stride[0], dilation[0])
    return _weight_gradient(_last(x), _last(grad), weight, stride, dilation, groups)


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, stride: Triple, dilation: Triple, groups: int) -> Tensor:
    mask = (False, True, False)
    args = (grad, x, weight, None, stride, (0, 0, 0), dilation, False, (0, 0, 0), groups, mask)
    gradient: Tensor = torch.ops.aten.convolution_backward(*args)[1]
    return gradient


def _fold(x: Tensor, grad: Tensor, kernel: int, stride: int, dilation: int) -> tuple[Tensor, Tensor]:
    """One problem with N = 1 as one with N = 2: the upper and the lower half of the outputs along D."""
    half = -(-grad.shape[2] // 2)
    depth = (half - 1) * stride + dilation * (kernel - 1) + 1
    start = half * stride
    last = torch.channels_last_3d
    xs = torch.empty((2, x.shape[1], depth, *x.shape[3:]), dtype=x.dtype, memory_format=last).zero_()
    gs = torch.empty((2, grad.shape[1], half, *grad.shape[3:]), dtype=x.dtype, memory_format=last).zero_()
    xs[0] = x[0, :, :depth]
    gs[0] = grad[0, :, :half]
    rest = x[0, :, start : start + depth]
    xs[1, :, : rest.shape[1]] = rest
    gs[1, :, : grad.shape[2] - half] = grad[0, :, half:]
    return xs, gs
