"""Turn an ordinary torch module into its partitioned twin, the way SyncBatchNorm.convert_sync_batchnorm does."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from volseg.distributed.grid import ProcessGrid
from volseg.errors import PartitionError
from volseg.nn.context import PartitionContext
from volseg.nn.convolution import PartitionedConv3d, PartitionedConvTranspose3d
from volseg.nn.dropout import PartitionedDropout, PartitionedDropout3d
from volseg.nn.layer import PartitionedLayer
from volseg.nn.normalization import PartitionedBatchNorm3d, PartitionedGroupNorm, PartitionedInstanceNorm3d
from volseg.nn.pooling import PartitionedAvgPool3d, PartitionedMaxPool3d
from volseg.nn.upsampling import PartitionedUpsample

TWINS: dict[type[nn.Module], type[PartitionedLayer]] = {
    nn.Conv3d: PartitionedConv3d,
    nn.ConvTranspose3d: PartitionedConvTranspose3d,
    nn.MaxPool3d: PartitionedMaxPool3d,
    nn.AvgPool3d: PartitionedAvgPool3d,
    nn.Upsample: PartitionedUpsample,
    nn.InstanceNorm3d: PartitionedInstanceNorm3d,
    nn.GroupNorm: PartitionedGroupNorm,
    nn.BatchNorm3d: PartitionedBatchNorm3d,
    nn.Dropout: PartitionedDropout,
    nn.Dropout3d: PartitionedDropout3d,
}

VOXELWISE = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.GELU, nn.Mish, nn.Softplus,
    nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.PReLU, nn.Softmax, nn.LogSoftmax,
)  # fmt: skip
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

# Functions that couple voxels: called by a network's own forward they would see one block and be silently wrong.
_COUPLING = {
    getattr(owner, name)
    for owner, names in (
        (torch.nn.functional, """conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d unfold fold pad
         interpolate upsample grid_sample max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d
         adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool3d instance_norm group_norm
         batch_norm layer_norm dropout dropout3d alpha_dropout feature_alpha_dropout pixel_shuffle linear
         scaled_dot_product_attention local_response_norm"""),
        (torch, """mean sum std var amax amin roll flip rot90 flatten norm matmul einsum conv3d max_pool3d
         cumsum sort topk median"""),
        (torch.Tensor, "mean sum std var amax amin roll flip flatten norm matmul __matmul__ cumsum sort"),
    )
    for name in names.split()
    if hasattr(owner, name)
}  # fmt: skip


class _Guard(TorchFunctionMode):
    """Refuses coupling functions in the code between the layers, so that nothing is silently wrong."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _COUPLING:
            name = getattr(func, "__name__", str(func))
            raise PartitionError(
                f"{self.label}: its forward calls {name}() between layers, which would see one block only; "
                "use the torch.nn layer instead, or reduce after gathering"
            )
        return func(*args, **(kwargs or {}))


def partition_module(model: nn.Module, grid: ProcessGrid, multiple_of: int = 1) -> nn.Module:
    """The partitioned twin of `model`: same parameters, same state dict, its layers swapped for partitioned ones.

    The model itself is left as it is; the twin *shares* its parameters, so training the twin trains the model.
    Call the twin with this rank's block [N, C, d, h, w]; all ranks call it together.

    grid         the process grid
    multiple_of  the number that the blocks' boundaries at the input are multiples of, on every grid the network is to
                 give the same bits on (2^levels for a U-Net); it only makes the reproducible statistics faster

    Raises PartitionError naming the layer that cannot be partitioned.
    """
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, memo)
    context = PartitionContext(grid, multiple_of)
    _convert(twin, "", context)
    _fuse_activations(twin)
    _watch(twin, context, type(model).__name__)
    return twin


def partition_context(model: nn.Module) -> PartitionContext:
    """The context that the layers of a partitioned model share."""
    for module in model.modules():
        if isinstance(module, PartitionedLayer):
            return module.context
    raise PartitionError(f"{type(model).__name__} has no partitioned layer")


def _convert(module: nn.Module, name: str, context: PartitionContext) -> None:
    """Turn `module` and everything below it, in place; each keeps its parameters, buffers, hooks and settings."""
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
    if own:
        raise PartitionError(
            f"module {name or 'itself'} ({type(module).__name__}) has parameters of its own ({', '.join(own)}) whose "
            "use cannot be seen; put them into a torch.nn layer"
        )
    for child_name, child in children:
        _convert(child, f"{name}.{child_name}" if name else child_name, context)


def _fuse_activations(model: nn.Module) -> None:
    """In each nn.Sequential let a norm do the (leaky) ReLU behind it: one pass less, one tensor less kept."""
    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for index, (norm, activation) in enumerate(zip(list(module), list(module)[1:], strict=False)):
            if isinstance(norm, (PartitionedInstanceNorm3d, PartitionedGroupNorm, PartitionedBatchNorm3d)):
                if type(activation) is nn.LeakyReLU and activation.negative_slope > 0:
                    norm.slope = float(activation.negative_slope)
                elif type(activation) is nn.ReLU:
                    norm.slope = 0.0
                else:
                    continue
                module[index + 1] = nn.Identity()


def _watch(model: nn.Module, context: PartitionContext, label: str) -> None:
    """Tell the context when a pass through the whole network begins and ends, and guard the code between layers."""
    plain = model.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        context.begin_pass(x)
        try:
            if isinstance(model, PartitionedLayer):
                return plain(x, *args, **kwargs)
            with _Guard(label):
                return plain(x, *args, **kwargs)
        finally:
            context.end_pass()

    model.forward = forward
