"""Watches the code between the layers of a partitioned network, so that nothing in it is silently wrong.

A network's own `forward` may do with a block what it may do with any single voxel: add, multiply, activate, join and
split channels. Anything else (a mean over the volume, padding, a crop, a reshape, coordinates, random numbers) would
see one block where it means the whole volume, so what is not known to work voxel by voxel is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from volseg.errors import PartitionError
from volseg.nn.anywhere import at_any_place

# Without the underscores of `add_`, `__add__`, `_set_grad_enabled`.
_NAMES = """
    add radd iadd sub subtract rsub isub mul multiply rmul imul div divide truediv rdiv rtruediv idiv itruediv
    floordiv pow rpow ipow neg negative pos abs absolute sign exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square
    reciprocal sin cos tan tanh sinh cosh atan erf erfc floor ceil round trunc frac clamp clip clamp_min clamp_max
    maximum minimum fmax fmin where lerp addcmul addcdiv masked_fill nan_to_num eq ne lt le gt ge greater less
    isnan isinf isfinite logical_and logical_or logical_not logical_xor and or xor invert
    bitwise_not bitwise_and bitwise_or bitwise_xor
    relu relu6 leaky_relu elu celu selu silu gelu mish softplus sigmoid logsigmoid softsign hardswish hardsigmoid
    hardtanh prelu threshold tanhshrink softshrink hardshrink
    get set delete size dim ndimension numel nelement stride element_size is_contiguous is_floating_point is_complex
    len hash repr format dir setattr data_ptr storage_offset
    clone detach contiguous to type type_as float double half bfloat16 cpu cuda requires_grad retain_grad
    register_hook zeros_like ones_like full_like empty_like copy fill zero
"""
VOXELWISE = frozenset(_NAMES.split())
# Voxelwise along the channels: with `dim` (positional argument number, default) naming them.
ALONG_CHANNELS = {
    "cat": (1, 0), "concat": (1, 0), "concatenate": (1, 0), "chunk": (2, 0), "split": (2, 0), "tensor_split": (2, 0),
    "narrow": (1, None), "index_select": (1, None), "select": (1, None), "softmax": (1, None), "log_softmax": (1, None),
    "softmin": (1, None), "normalize": (2, 1), "glu": (1, -1), "sum": (1, None), "mean": (1, None), "amax": (1, None),
    "amin": (1, None), "max": (1, None), "min": (1, None), "argmax": (1, None), "argmin": (1, None), "std": (1, None),
    "var": (1, None), "norm": (2, None), "prod": (1, None), "cumsum": (1, None), "sort": (1, -1), "flip": (1, None),
    "logsumexp": (1, None), "unbind": (1, 0), "linalg_vector_norm": (2, None),
}  # fmt: skip
# Functions of no tensor whose result means a place in the volume, or differs from rank to rank.
RANDOM = frozenset({"rand", "randn", "randint", "randperm", "normal", "bernoulli"})
_FACTORIES = RANDOM | {"arange", "linspace", "meshgrid"}
_TURNED = {"T", "mT", "H", "mH"}  # attributes of a tensor that change the order of its axes
_CHANNELS = (1, -4)
# Functions of one tensor whose last bit torch lets depend on a value's place.
_EXPONENTIAL = frozenset({
    "sigmoid", "logsigmoid", "tanh", "tanhshrink", "silu", "gelu", "mish", "softplus", "elu", "celu", "selu", "exp",
    "exp2", "expm1", "sinh", "cosh",
})  # fmt: skip


class Guard(TorchFunctionMode):
    """Refuses every function of a block that does not work voxel by voxel. `label` names the network in the error."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
            allowed = name not in _TURNED
        else:
            allowed = _allowed(name.strip("_"), args, kwargs)
        if not allowed:
            raise PartitionError(
                f"{self.label}: its forward calls {name}() between layers, which would see one block only; "
                "use the torch.nn layer instead, or do it after gathering"
            )
        settings = (*args[1:], *kwargs.values())
        in_place = any(value is True or isinstance(value, Tensor) for value in settings)  # `inplace` or `out`
        if name in _EXPONENTIAL and args and _is_block(args[0]) and not in_place:
            return at_any_place(lambda x: func(x, *args[1:], **kwargs), args[0])
        return func(*args, **kwargs)


def _allowed(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if not any(_is_block(value) for value in _values(args, kwargs)):
        return name not in _FACTORIES
    if name == "where":
        return len(args) + len(kwargs) == 3  # with a condition alone it gives places
    if name in VOXELWISE:
        return True
    if any(_is_block(value) and value.dim() != 5 for value in _values(args, kwargs)):
        return False  # which of its dimensions are channels?
    if name == "getitem":
        return _keeps_space(args[1])
    if name in ("max", "min") and (isinstance(kwargs.get("other"), Tensor) or isinstance((*args, 0)[1], Tensor)):
        return True  # of two tensors, voxel by voxel
    if name not in ALONG_CHANNELS:
        return False
    place, default = ALONG_CHANNELS[name]
    given = kwargs.get("dim", kwargs.get("dims", args[place] if len(args) > place else default))
    dims = given if isinstance(given, (tuple, list)) else (given,)
    return len(dims) > 0 and all(type(d) is int and d in _CHANNELS for d in dims)  # True is no axis


def _values(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    for value in (*args, *kwargs.values()):
        yield from value if isinstance(value, (tuple, list)) else (value,)


def _is_block(value: Any) -> bool:
    """A tensor with the volume's axes; a convolution's weight has five dimensions, too, but is the same everywhere."""
    return isinstance(value, Tensor) and value.dim() >= 3 and not isinstance(value, nn.Parameter)


def _keeps_space(index: Any) -> bool:
    """Whether an index picks samples and channels only."""
    entries = index if isinstance(index, tuple) else (index,)
    if any(e is not Ellipsis and not isinstance(e, slice) for e in entries):
        return False
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        return at <= 2 and all(e == slice(None) for e in entries[at + 1 :])
    return all(e == slice(None) for e in entries[2:])
