"""Turn an ordinary torch module into its partitioned twin, the way SyncBatchNorm.convert_sync_batchnorm does."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from volseg.distributed.grid import ProcessGrid
from volseg.errors import PartitionError, first_line
from volseg.geometry import PerAxis
from volseg.nn.context import PartitionContext
from volseg.nn.convolution import PartitionedConv3d, PartitionedConvTranspose3d
from volseg.nn.dropout import PartitionedDropout, PartitionedDropout3d
from volseg.nn.first_use import FirstUse
from volseg.nn.guard import Guard
from volseg.nn.layer import PartitionedLayer
from volseg.nn.normalization import (
    PartitionedBatchNorm3d,
    PartitionedGroupNorm,
    PartitionedInstanceNorm3d,
)
from volseg.nn.padding import PartitionedConstantPad3d
from volseg.nn.pointwise import Pointwise
from volseg.nn.pooling import GlobalAverage, PartitionedAvgPool3d, PartitionedGlobalAverage, PartitionedMaxPool3d
from volseg.nn.sequential import FusedSequential
from volseg.nn.unshuffling import PartitionedUnshuffled, Unshuffled
from volseg.nn.upsampling import PartitionedUpsample

TWINS: dict[type[nn.Module], type[PartitionedLayer]] = {
    nn.Conv3d: PartitionedConv3d,
    nn.ConvTranspose3d: PartitionedConvTranspose3d,
    nn.MaxPool3d: PartitionedMaxPool3d,
    nn.AvgPool3d: PartitionedAvgPool3d,
    GlobalAverage: PartitionedGlobalAverage,
    nn.Upsample: PartitionedUpsample,
    Unshuffled: PartitionedUnshuffled,
    nn.ConstantPad3d: PartitionedConstantPad3d,
    nn.ZeroPad3d: PartitionedConstantPad3d,
    nn.InstanceNorm3d: PartitionedInstanceNorm3d,
    nn.GroupNorm: PartitionedGroupNorm,
    nn.BatchNorm3d: PartitionedBatchNorm3d,
    nn.Dropout: PartitionedDropout,
    nn.Dropout3d: PartitionedDropout3d,
}

VOXELWISE = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.GELU, nn.Mish, nn.Softplus,
    nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.PReLU, nn.Softmax, nn.LogSoftmax, Pointwise,
)  # fmt: skip
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def partition_module(model: nn.Module, grid: ProcessGrid, multiple_of: PerAxis = 1) -> nn.Module:
    """The partitioned twin of `model`: same parameters, same state dict, its layers swapped for partitioned ones.

    The model itself is left as it is; the twin *shares* its parameters, so training the twin trains the model.
    Call the twin with this rank's block [N, C, d, h, w]; all ranks call it together.

    grid         the process grid
    multiple_of  the number, of each axis or of all, that the blocks' boundaries at the input are multiples of, on every
                 grid the network is to give the same bits on (for a U-Net the product of its strides); it only makes
                 the reproducible statistics faster

    The output has the same bits on every grid, activations made of exponentials (sigmoid, SiLU, ...) included. Only
    where forward itself calls such a function in place, a power, or a softmax, sum or mean over channels does torch let
    the last bit depend on a value's place in the array; a description's have the same bits there, too.

    Raises PartitionError naming the layer that cannot be partitioned.
    """
    twin = _copied(model)
    context = PartitionContext(grid, multiple_of)
    _convert(twin, "", context)
    _watch(twin, context, type(model).__name__)
    return twin


def _copied(model: nn.Module) -> nn.Module:
    """A copy that shares parameters and buffers. Raises PartitionError where the model cannot be copied."""
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        hooked = [name for name, module in model.named_modules() if _recomputes_a_weight(module)]
        remedy = (
            f"take the weight norm or spectral norm off {', '.join(hooked)} (torch.nn.utils.remove_weight_norm) "
            "beforehand"
            if hooked
            else "keep as attributes of a module neither tensors that were computed nor what cannot be copied"
        )
        raise PartitionError(f"{type(model).__name__} cannot be copied ({first_line(error)}): {remedy}") from error


def _recomputes_a_weight(module: nn.Module) -> bool:
    """Whether a hook of torch's first norms of weights computes a weight before each call."""
    return any(type(hook).__name__ in ("WeightNorm", "SpectralNorm") for hook in module._forward_pre_hooks.values())


def _convert(module: nn.Module, name: str, context: PartitionContext) -> None:
    """Turn `module` and everything below it, in place; each keeps its parameters, buffers, hooks and settings."""
    if isinstance(module, PartitionedLayer) and getattr(module, "context", None) is context:
        return  # a layer with several names, turned under its first
    twin = TWINS.get(type(module))
    if twin is not None:
        module.__class__ = twin
        assert isinstance(module, PartitionedLayer)
        module.attach(context, name or type(module).__name__)
        return
    if isinstance(module, VOXELWISE):
        if isinstance(module, (nn.Softmax, nn.LogSoftmax)) and module.dim != 1:
            raise PartitionError(
                f"layer {name} ({type(module).__name__}): only dim=1, the channels, can be partitioned"
            )
        return
    children = list(module.named_children())
    own = [n for n, _ in module.named_parameters(recurse=False)]
    from_torch = type(module).__module__.startswith("torch.nn")
    if not isinstance(module, CONTAINERS) and (from_torch or not children):
        known = ", ".join(sorted(t.__name__ for t in TWINS))
        raise PartitionError(
            f"layer {name or 'itself'} ({type(module).__name__}) cannot be partitioned; known layers: {known}"
        )
    if own and not getattr(module, "reads_own_parameters", False):
        raise PartitionError(
            f"module {name or 'itself'} ({type(module).__name__}) has parameters of its own ({', '.join(own)}) whose "
            "use cannot be seen; put them into a torch.nn layer"
        )
    if type(module) is nn.Sequential:
        module.__class__ = FusedSequential
    for child_name, child in children:
        _convert(child, f"{name}.{child_name}" if name else child_name, context)


def _watch(model: nn.Module, context: PartitionContext, label: str) -> None:
    """Tell the context when a pass through the whole network begins and ends, and guard the code between layers.

    Before the first pass with blocks of some sides, check that the code does with a block what it does with the volume.
    """
    plain, checks = model.forward, FirstUse(model, context, label)

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        context.begin_pass(x)
        try:
            if isinstance(model, PartitionedLayer):
                return plain(x, *args, **kwargs)
            checks.before(x, args, kwargs)
            with Guard(label):
                return plain(x, *args, **kwargs)
        finally:
            context.end_pass()

    model.forward = forward


def context_of(twin: nn.Module) -> PartitionContext:
    """What the layers of a partitioned network share."""
    first = next(module for module in twin.modules() if isinstance(module, PartitionedLayer))
    return first.context
