"""Operations on values, channel by channel or voxel by voxel, as nodes."""

from __future__ import annotations

from functools import partial
from math import inf

import torch
from torch import Tensor

from volseg.models.exported.layers import global_mean
from volseg.models.exported.rearranging import Folded, reduced
from volseg.models.exported.walk import Handler, Held, Other, Result, Value, Walk, node_name
from volseg.networks.description import IMAGE, ActivationKind, Addition, Normalization
from volseg.networks.layered import (
    ChannelReduction,
    ChannelSoftmax,
    Combination,
    Function,
    FunctionKind,
    JoinKind,
    ReductionKind,
    Scaling,
)
from volseg.nn.graph import Call, Name

_SPACE = {2, 3, 4}


def _activation(kind: ActivationKind, walk: Walk, call: Call) -> Value:
    x = walk.value(call)
    slope = float(call.arguments.get("negative_slope", 0.0)) if kind == "leaky_relu" else 0.0
    if kind == "gelu" and call.arguments.get("approximate") == "tanh":
        kind = "gelu_tanh"
    if x.everywhere or walk.single(call, x) == IMAGE:
        return _everywhere(kind, slope, walk, call)
    node = Normalization(node_name(call, "activated"), (walk.single(call, x),), -1, x.channels, "none", slope)
    if kind != "leaky_relu":
        node = Normalization(node.name, node.reads, -1, x.channels, "none", 0.0, activation=kind)
    return walk.add(node, call.shape)


def _everywhere(kind: ActivationKind, slope: float, walk: Walk, call: Call) -> Value:
    """An activation of values of the whole volume, or of the image, by a function."""
    functions: dict[ActivationKind, tuple[FunctionKind, tuple[float, ...]]] = {
        "leaky_relu": ("leaky_relu", (slope,)), "silu": ("silu", ()), "gelu": ("gelu", ()),
        "gelu_tanh": ("gelu_tanh", ()), "sigmoid": ("sigmoid", ()),
    }  # fmt: skip
    return _function(*functions[kind], walk, call)


def _function(function: FunctionKind, values: tuple[float, ...], walk: Walk, call: Call) -> Value:
    x = walk.value(call)
    node = Function(node_name(call, function), (walk.single(call, x),), -1, x.channels, function, values)
    return walk.add(node, call.shape, everywhere=x.everywhere)


def _of_numbers(function: FunctionKind, names: tuple[str, ...], walk: Walk, call: Call) -> Value:
    """A function with numbers of torch's schema under `names`."""
    values = tuple(float(call.arguments[name]) for name in names)
    return _function(function, values, walk, call)


def _clamp(walk: Walk, call: Call) -> Value:
    bounds = [
        (call.arguments.get(low), call.arguments.get(high)) for low, high in (("min", "max"), ("min_val", "max_val"))
    ]
    low, high = next((pair for pair in bounds if pair != (None, None)), (None, None))
    return _function("clamp", (-inf if low is None else float(low), inf if high is None else float(high)), walk, call)


def _power(walk: Walk, call: Call) -> Value:
    if not isinstance(call.arguments["exponent"], (int, float)):
        raise call.refuse("has an exponent that is computed")
    return _of_numbers("power", ("exponent",), walk, call)


def _elu(walk: Walk, call: Call) -> Value:
    if call.arguments["scale"] != 1 or call.arguments["input_scale"] != 1:
        raise call.refuse("has scales of its own")
    return _of_numbers("elu", ("alpha",), walk, call)


def _prelu(walk: Walk, call: Call) -> Value:
    x, weight = walk.value(call), walk.constant(call, "weight")
    if weight is None:
        raise call.refuse("has slopes that are computed")
    module = walk.layer(call)
    node = Function(module, (walk.single(call, x),), -1, x.channels, "prelu", (), module, weight.numel())
    return walk.add(node, call.shape, everywhere=x.everywhere)


def _join(function: JoinKind, walk: Walk, call: Call) -> Result:
    """Two tensors, or one and a number or a parameter."""
    first, other = call.arguments["self"], call.arguments["other"]
    scale = call.arguments.get("alpha", 1)
    if scale not in (1, None):
        raise call.refuse(f"has alpha = {scale}")
    constants = [walk.constant(call, "self"), walk.constant(call, "other")]
    if constants[1] is not None or not isinstance(other, Name):
        return _scaled(function, walk, call, "self", "other")
    if constants[0] is not None or not isinstance(first, Name):
        return _scaled(function, walk, call, "other", "self")
    a, b = walk.value(call), walk.value(call, "other")
    everywhere = a.everywhere and b.everywhere
    if function == "add" and a.shape == b.shape and not a.everywhere and not b.everywhere:
        node = Addition(node_name(call, "sum"), (walk.single(call, a), walk.single(call, b)), -1, a.channels)
        return walk.add(node, call.shape)
    for value, beside in ((a, b), (b, a)):
        if value.everywhere and not beside.everywhere and value.shape[1:] != (value.channels, 1, 1, 1):
            raise call.refuse(f"joins a volume with values of the shape {list(value.shape)}")
    channels = max(a.channels, b.channels)
    reads = (walk.single(call, a), walk.single(call, b))
    joined = Combination(node_name(call, function), reads, -1, channels, function)
    return walk.add(joined, call.shape, everywhere=everywhere)


def _subtracted_from(walk: Walk, call: Call) -> Value:
    """A number minus a tensor."""
    x, number = walk.value(call), call.arguments["other"]
    if not isinstance(number, (int, float)) or call.arguments["alpha"] != 1:
        raise call.refuse("subtracts from what is no number")
    name, read = node_name(call, "subtract"), (walk.single(call, x),)
    node = Scaling(name, read, -1, x.channels, "subtract", (float(number),), reversed=True)
    return walk.add(node, call.shape, everywhere=x.everywhere)


def _scaled(function: JoinKind, walk: Walk, call: Call, argument: str, constant: str) -> Result:
    """A tensor joined with a number, a constant or a parameter of one value or of one a channel."""
    x, given, reversed_ = walk.value(call, argument), walk.constant(call, constant), constant == "self"
    name, module = node_name(call, function), walk.path(call, constant)
    if given is None:
        number = call.arguments[constant]
        if not isinstance(number, (int, float)):
            raise call.refuse("joins the volume with what is no number")
        node = Scaling(name, (walk.single(call, x),), -1, x.channels, function, (float(number),), reversed=reversed_)
        return walk.add(node, call.shape, everywhere=x.everywhere)
    _check_constant(call, given, x)
    values = () if module else tuple(float(value) for value in given.detach().flatten().tolist())
    node = Scaling(
        module or name,
        (walk.single(call, x),),
        -1,
        x.channels,
        function,
        values,
        module,
        tuple(given.shape) if module else (),
        reversed_,
    )
    return walk.add(node, call.shape, everywhere=x.everywhere)


def _check_constant(call: Call, given: Tensor, x: Value) -> None:
    """Raise PartitionError where a constant differs from voxel to voxel, or makes the result larger."""
    shape = (1,) * (len(x.shape) - given.dim()) + tuple(given.shape)
    along = len(x.shape) - 1 if x.everywhere and len(x.shape) == 2 else 1
    if any(n != 1 for axis, n in enumerate(shape) if axis != along) or shape[along] not in (1, x.channels):
        raise call.refuse(
            f"joins the volume with a tensor of the shape {list(given.shape)}, which is no value for each channel"
        )


def _identity(walk: Walk, call: Call) -> Held | Other:
    first = next(iter(call.arguments))
    return walk.other(call, first) or walk.held(call, first)


def _copied(walk: Walk, call: Call) -> Value | Other:
    return walk.other(call) or walk.value(call)


def _unchanged(walk: Walk, call: Call) -> Held:
    """What export says of a tensor's type, which changes nothing."""
    return walk.held(call, "a")


def _converted(walk: Walk, call: Call) -> Held:
    """A change of type to the one that all tensors of a description have."""
    if call.arguments.get("dtype") not in (None, torch.float32):
        raise call.refuse(f"changes the type to {call.arguments['dtype']}")
    return walk.held(call)


def _reduction(reduction: ReductionKind, walk: Walk, call: Call) -> Result:
    folded, dims = walk.other(call), call.arguments.get("dim")
    if isinstance(folded, Folded):
        return reduced(reduction, walk, call, folded)
    x = walk.value(call)
    places = {n % len(x.shape) for n in (dims if isinstance(dims, tuple) else (dims,))} if dims is not None else set()
    if x.everywhere or len(x.shape) != 5 or places not in (_SPACE, {1}):
        raise call.refuse("is over axes other than the channels, or all three of space")
    if places == _SPACE:
        if reduction != "mean":
            raise call.refuse("is over the whole volume; only a mean can be")
        return global_mean(walk, call, x)
    if not call.arguments["keepdim"]:
        raise call.refuse("leaves the axis of the channels out")
    node = ChannelReduction(node_name(call, reduction), (walk.single(call, x),), -1, 1, reduction)
    return walk.add(node, call.shape)


def _softmax(walk: Walk, call: Call, *, logarithm: bool) -> Value:
    x = walk.value(call)
    if call.arguments["dim"] % len(x.shape) != 1:
        raise call.refuse("is over an axis other than the channels")
    node = ChannelSoftmax(node_name(call, "softmax"), (walk.single(call, x),), -1, x.channels, logarithm)
    return walk.add(node, call.shape, everywhere=x.everywhere)


def _functions(*names: FunctionKind) -> dict[str, Handler]:
    return {name: partial(_function, name, ()) for name in names}


_ACTIVATIONS: dict[str, ActivationKind] = {
    "relu": "leaky_relu", "leaky_relu": "leaky_relu", "silu": "silu", "gelu": "gelu", "sigmoid": "sigmoid",
}  # fmt: skip
_JOINS: dict[str, JoinKind] = {
    "add": "add", "sub": "subtract", "mul": "multiply", "div": "divide", "maximum": "maximum", "minimum": "minimum",
}  # fmt: skip
_IDENTITIES = ("contiguous", "detach", "alias", "lift_fresh_copy")

ARITHMETIC: dict[str, Handler] = {
    **{op: partial(_activation, kind) for op, kind in _ACTIVATIONS.items()},
    **{op: partial(_join, kind) for op, kind in _JOINS.items()},
    **_functions("abs", "exp", "hardsigmoid", "hardswish", "log", "mish", "neg", "reciprocal", "selu", "sqrt", "tanh"),
    **dict.fromkeys(_IDENTITIES, _identity),
    "rsub": _subtracted_from,
    "prelu": _prelu,
    "elu": _elu,
    "celu": partial(_of_numbers, "celu", ("alpha",)),
    "softplus": partial(_of_numbers, "softplus", ("beta", "threshold")),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "hardtanh": _clamp,
    "relu6": lambda walk, call: _function("clamp", (0.0, 6.0), walk, call),
    "pow": _power,
    "clone": _copied,
    "to": _converted,
    "_assert_tensor_metadata": _unchanged,
    "mean": partial(_reduction, "mean"),
    "sum": partial(_reduction, "sum"),
    "amax": partial(_reduction, "max"),
    "amin": partial(_reduction, "min"),
    "softmax": partial(_softmax, logarithm=False),
    "log_softmax": partial(_softmax, logarithm=True),
}
"""By the name of torch's operation, what makes its node."""
