"""Operations of torch's layers as nodes: convolutions, norms, pooling, up-sampling, dropout."""

from __future__ import annotations

from typing import Any, Literal

from volseg.geometry import Triple
from volseg.models.exported.walk import Handler, Value, Walk
from volseg.networks.description import (
    ONES,
    AveragePool,
    Convolution,
    Interpolation,
    MaxPool,
    Normalization,
    NormKind,
    UpConvolution,
)
from volseg.networks.layered import (
    AlignedInterpolation,
    Dense,
    GeneralConvolution,
    GeneralPool,
    GlobalMean,
    VoxelDropout,
)
from volseg.nn.graph import Call

_NOTHING: Triple = (0, 0, 0)


def _triple(value: Any, default: Triple) -> Triple:
    """torch's list of one or three numbers; empty: `default`."""
    numbers = tuple(int(n) for n in value) if isinstance(value, tuple) else (int(value),)
    if not numbers:
        return default
    d, h, w = numbers * 3 if len(numbers) == 1 else numbers
    return d, h, w


def _convolution(walk: Walk, call: Call) -> Value:
    weight, x = walk.constant(call, "weight"), walk.value(call, "input")
    module = walk.layer(call)
    if weight is None or weight.dim() != 5:
        raise call.refuse("has a weight that is no parameter of three dimensions of space")
    bias = call.arguments["bias"] is not None
    channels, kernel = int(weight.shape[0]), _triple(tuple(weight.shape[2:]), ONES)
    if x.everywhere:
        return _dense(walk, call, x, channels, bias, 3)
    walk.volume(call)
    stride, dilation = _triple(call.arguments["stride"], ONES), _triple(call.arguments["dilation"], ONES)
    padding, groups = _padding(call, kernel, dilation), int(call.arguments["groups"])
    same = padding == tuple(side // 2 for side in kernel) and all(side % 2 for side in kernel)
    if same and dilation == ONES and groups == 1:
        return walk.add(Convolution(module, x.parts, -1, channels, kernel, stride, bias, module), call.shape)
    general = GeneralConvolution(module, x.parts, -1, channels, kernel, stride, padding, dilation, groups, bias, module)
    return walk.add(general, call.shape)


def _padding(call: Call, kernel: Triple, dilation: Triple) -> Triple:
    padding = call.arguments["padding"]
    if padding == "valid":
        return _NOTHING
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(n % 2 for n in total):
            raise call.refuse("pads more on one side of an axis than on the other")
        return _triple(tuple(n // 2 for n in total), _NOTHING)
    return _triple(padding, _NOTHING)


def _transposed(walk: Walk, call: Call) -> Value:
    weight, x, module = walk.constant(call, "weight"), walk.volume(call), walk.layer(call)
    if weight is None or weight.dim() != 5:
        raise call.refuse("has a weight that is no parameter of three dimensions of space")
    bias, groups = call.arguments["bias"] is not None, int(call.arguments["groups"])
    channels, kernel = int(weight.shape[1]) * groups, _triple(tuple(weight.shape[2:]), ONES)
    stride, dilation = _triple(call.arguments["stride"], ONES), _triple(call.arguments["dilation"], ONES)
    padding, extra = _triple(call.arguments["padding"], _NOTHING), _triple(call.arguments["output_padding"], _NOTHING)
    if kernel == stride and padding == extra == _NOTHING and dilation == ONES and groups == 1:
        return walk.add(UpConvolution(module, x.parts, -1, channels, kernel, bias, module), call.shape)
    general = GeneralConvolution(
        module, x.parts, -1, channels, kernel, stride, padding, dilation, groups, bias, module, True, extra
    )
    return walk.add(general, call.shape)


def _dense(walk: Walk, call: Call, x: Value, channels: int, bias: bool, kernel: int) -> Value:
    weight = walk.constant(call, "weight")
    if weight is None or tuple(weight.shape[2:]) != (1,) * kernel or weight.shape[1] != x.channels:
        raise call.refuse("works on values of the whole volume, but is no 1x1x1 convolution")
    module = walk.layer(call)
    node = Dense(module, (walk.single(call, x),), -1, channels, bias, module, kernel)
    return walk.add(node, call.shape, everywhere=True)


def _linear(walk: Walk, call: Call) -> Value:
    x, weight = walk.value(call, "input"), walk.constant(call, "weight")
    if not x.everywhere or weight is None or weight.dim() != 2 or x.shape[-1] != x.channels:
        raise call.refuse("is not over the channels of one value a channel of the whole volume")
    return _dense(walk, call, x, int(weight.shape[0]), call.arguments["bias"] is not None, 0)


def _norm(walk: Walk, call: Call, kind: NormKind, groups: int = 0) -> Value:
    x = walk.volume(call)
    affine = walk.constant(call, "weight") is not None
    if affine != (walk.constant(call, "bias") is not None):
        raise call.refuse("has a weight without a bias, or the other way round")
    module = walk.layer(call) if affine else walk.own_path(call)
    node = Normalization(
        module, (walk.single(call, x),), -1, x.channels, kind, 1.0, module, float(call.arguments["eps"]), groups,
        affine=affine,
    )  # fmt: skip
    return walk.add(node, call.shape)


def _instance_norm(walk: Walk, call: Call) -> Value:
    if not call.arguments["use_input_stats"] or call.arguments["running_mean"] is not None:
        raise call.refuse("has running statistics, which only a batch norm may have")
    return _norm(walk, call, "instance")


def _group_norm(walk: Walk, call: Call) -> Value:
    return _norm(walk, call, "group", int(call.arguments["num_groups"]))


def _batch_norm(walk: Walk, call: Call) -> Value:
    if walk.constant(call, "running_mean") is None:
        raise call.refuse("has no running statistics")
    return _norm(walk, call, "batch")


def _max_pool(walk: Walk, call: Call) -> Value:
    x = walk.volume(call, "self")
    kernel = _triple(call.arguments["kernel_size"], ONES)
    stride, padding = _triple(call.arguments["stride"], kernel), _triple(call.arguments["padding"], _NOTHING)
    dilation, name = _triple(call.arguments["dilation"], ONES), f"{call.module}, pooled"
    _check_whole_windows(call, x)
    read = (walk.single(call, x),)
    if kernel == stride and padding == _NOTHING and dilation == ONES:
        return walk.add(MaxPool(name, read, -1, x.channels, kernel), call.shape)
    return walk.add(GeneralPool(name, read, -1, x.channels, "max", kernel, stride, padding, dilation), call.shape)


def _average_pool(walk: Walk, call: Call) -> Value:
    x = walk.volume(call, "self")
    kernel = _triple(call.arguments["kernel_size"], ONES)
    stride, padding = _triple(call.arguments["stride"], kernel), _triple(call.arguments["padding"], _NOTHING)
    if call.arguments["divisor_override"] is not None:
        raise call.refuse("divides by a number of its own")
    _check_whole_windows(call, x)
    read, name = (walk.single(call, x),), f"{call.module}, pooled"
    if kernel == stride and padding == _NOTHING:
        return walk.add(AveragePool(name, read, -1, x.channels, kernel), call.shape)
    counts = bool(call.arguments["count_include_pad"])
    node = GeneralPool(name, read, -1, x.channels, "average", kernel, stride, padding, counts_padding=counts)
    return walk.add(node, call.shape)


def _check_whole_windows(call: Call, x: Value) -> None:
    """With sides that the strides divide, `ceil_mode` changes nothing; else it does."""
    if call.arguments["ceil_mode"] and any(n % m for n, m in zip(x.sides, call.shape[2:], strict=True)):
        raise call.refuse("rounds the sides of its output up (ceil_mode)")


def _adaptive_average(walk: Walk, call: Call) -> Value:
    x = walk.volume(call, "self")
    if call.shape[2:] != (1, 1, 1):
        raise call.refuse("pools to a fixed size other than 1")
    return global_mean(walk, call, x)


def global_mean(walk: Walk, call: Call, x: Value) -> Value:
    """The mean of all voxels."""
    node = GlobalMean(f"{call.module or 'network'}, mean", (walk.single(call, x),), -1, x.channels)
    return walk.add(node, call.shape, everywhere=True)


def _interpolation(walk: Walk, call: Call) -> Value:
    x = walk.volume(call)
    factors = tuple(m // n for n, m in zip(x.sides, call.shape[2:], strict=True))
    if min(factors) < 1 or any(n * f != m for n, f, m in zip(x.sides, factors, call.shape[2:], strict=True)):
        raise call.refuse("is no up-sampling by whole factors")
    d, h, w = factors
    read, name, mode = (walk.single(call, x),), f"{call.module or 'network'}, up", call.op.split(".")[1]
    if call.arguments.get("align_corners"):
        return walk.add(AlignedInterpolation(name, read, -1, x.channels, (d, h, w)), call.shape)
    kind: Literal["trilinear", "nearest"] = "trilinear" if "trilinear" in mode else "nearest"
    return walk.add(Interpolation(name, read, -1, x.channels, (d, h, w), kind, walk.own_path(call)), call.shape)


def _dropout(walk: Walk, call: Call, *, whole_channels: bool) -> Any:
    held, share = walk.held(call, "input"), float(call.arguments["p"])
    if share == 0:
        return held
    x, module = held.value, walk.own_path(call)
    if x.everywhere:
        raise call.refuse("drops values of the whole volume")
    read, name = (walk.single(call, x),), f"{module}, dropped"
    if whole_channels:
        node = Normalization(name, read, -1, x.channels, "none", 1.0, dropout=share, dropping=module)
        return walk.add(node, call.shape)
    return walk.add(VoxelDropout(name, read, -1, x.channels, share, module), call.shape)


LAYERS: dict[str, Handler] = {
    "conv3d": _convolution,
    "conv_transpose3d": _transposed,
    "linear": _linear,
    "instance_norm": _instance_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "max_pool3d": _max_pool,
    "avg_pool3d": _average_pool,
    "adaptive_avg_pool3d": _adaptive_average,
    "upsample_nearest3d": _interpolation,
    "upsample_trilinear3d": _interpolation,
    "dropout": lambda walk, call: _dropout(walk, call, whole_channels=False),
    "feature_dropout": lambda walk, call: _dropout(walk, call, whole_channels=True),
}
"""By the name of torch's operation, what makes its node."""
