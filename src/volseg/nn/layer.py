"""What every partitioned layer has in common: its context, its name in the network, and plans made once per layout."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from volseg.distributed.grid import ProcessGrid
from volseg.distributed.halo import exchange_window, exchange_window_adjoint
from volseg.errors import PartitionError
from volseg.geometry import Triple, format_triple
from volseg.nn.context import PartitionContext
from volseg.partition.layout import AXES, Layout
from volseg.partition.window import WindowPlan
from volseg.program.kinds import Kind


@dataclass(frozen=True)
class LayerPlan:
    """What a layer needs to know about one layout of its input: the window to fetch and the layout of its output."""

    window: WindowPlan
    inputs: Layout
    outputs: Layout


class PartitionedLayer(nn.Module):
    """Mixin for the partitioned twin of a torch layer; `_plan` is what a subclass adds.

    kind  of work, as the meter counts it
    """

    kind = Kind.OTHER
    context: PartitionContext
    label: str
    _plans: dict[Layout, LayerPlan]

    def attach(self, context: PartitionContext, label: str) -> None:
        """Make the layer part of a partitioned network; `label` is its name in error messages."""
        self.context, self.label, self._plans = context, label, {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # The guard of `convert` watches the code between layers; what a partitioned layer does inside is its own.
        with torch._C.DisableTorchFunction(), self.at_work(self.label):
            return super().__call__(*args, **kwargs)

    @contextmanager
    def at_work(self, label: str) -> Iterator[None]:
        """What is done in the body is this layer's work, and counts for `label`."""
        meter = self.context.grid.communicator.meter
        with meter.during(label), meter.doing(self.kind):
            yield

    def backward_at_work(self) -> AbstractContextManager[None]:
        """The same of its backward."""
        return self.at_work(f"{self.label}, backward")

    def plan(self, x: Tensor) -> LayerPlan:
        """The plan for the block `x`, made at the first call with its layout. Collective then.

        Raises PartitionError, naming the layer, where a rank would be left without output; on every rank alike.
        """
        layout = self.context.layout_of(self, x)
        if layout not in self._plans:
            try:
                self._plans[layout] = self._plan(layout)
            except PartitionError as error:
                raise PartitionError(f"layer {self.label} ({type(self).__name__}): {error}") from None
        return self._plans[layout]

    def _plan(self, layout: Layout) -> LayerPlan:
        raise NotImplementedError

    def refuse(self, why: str) -> PartitionError:
        """The error for a setting this layer cannot be partitioned with."""
        return PartitionError(f"layer {self.label} ({type(self).__name__}): {why}")


def triple(value: Any) -> Triple:
    """torch's ``int or tuple`` as a tuple of three."""
    if isinstance(value, (tuple, list)):
        d, h, w = value
        return int(d), int(h), int(w)
    return int(value), int(value), int(value)


def strided_outputs(layout: Layout, shape: Triple, stride: Triple) -> Layout:
    """Output o belongs to the rank that owns input o * stride; the last rank takes what is left.

    Raises PartitionError where `shape` is empty or a rank would own no output.
    """
    _check_shape(layout, shape)
    return _checked(layout, shape, lambda axis, b: min(-(-b // stride[axis]), shape[axis]))


def expanded_outputs(layout: Layout, shape: Triple, scale: Triple) -> Layout:
    """Outputs i * scale to (i + 1) * scale - 1 belong to the rank that owns input i; the last rank takes the rest."""
    _check_shape(layout, shape)
    return _checked(layout, shape, lambda axis, b: min(b * scale[axis], shape[axis]))


def _check_shape(layout: Layout, shape: Triple) -> None:
    if min(shape) < 1:
        raise PartitionError(
            f"an input of {format_triple(layout.shape)} voxels gives an empty output {format_triple(shape)}"
        )


def _checked(layout: Layout, shape: Triple, place: Any) -> Layout:
    def map_axis(axis: int, cuts: tuple[int, ...]) -> tuple[int, ...]:
        mapped = (*(place(axis, b) for b in cuts[:-1]), shape[axis])
        if any(b <= a for a, b in itertools.pairwise(mapped)):
            raise PartitionError(
                f"blocks {list(cuts)} on axis {AXES[axis]} leave a rank without output ({list(mapped)}): "
                f"use fewer than {len(cuts) - 1} ranks on axis {AXES[axis]}"
            )
        return mapped

    return layout.map_axes(map_axis)


def no_view(y: Tensor) -> Tensor:
    """The same memory in a tensor that is no view: autograd lets nobody change a view that a function made."""
    owner = y.new_empty(0)
    owner.set_(y.untyped_storage(), y.storage_offset(), y.shape, y.stride())
    return owner


class _WindowExchange(torch.autograd.Function):
    """`exchange_window` with its exact adjoint as gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: WindowPlan, grid: ProcessGrid, fill: float) -> Tensor:
        ctx.plan, ctx.grid = plan, grid
        return no_view(exchange_window(x, plan, grid, fill))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return exchange_window_adjoint(grad, ctx.plan, ctx.grid), None, None, None


def fetch_window(x: Tensor, plan: WindowPlan, grid: ProcessGrid, fill: float = 0.0) -> Tensor:
    """The window of `plan` around this rank's block, differentiable. Collective; the gradient is collective too.

    x       [N, C, d, h, w]     this rank's block
    window  [N, C, d', h', w']  with `fill` beyond the volume's faces
    """
    if plan.moves_nothing:
        return x
    window: Tensor = _WindowExchange.apply(x, plan, grid, fill)
    return window
