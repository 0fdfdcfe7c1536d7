"""What is checked before a partitioned network first sees blocks of some sides: by its graph, or where it has none by
numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from volseg.errors import PartitionError, first_line
from volseg.geometry import Triple, format_triple
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.context import PartitionContext
from volseg.nn.graph import exported
from volseg.nn.graph_check import check_graphs
from volseg.nn.layer import PartitionedLayer
from volseg.nn.pointwise import Pointwise
from volseg.nn.sequential import FusedSequential
from volseg.partition.layout import Layout

if TYPE_CHECKING:  # torch.export takes long to load
    from torch.export import ExportedProgram

TOLERANCE = 1e-3
"""Share of the largest value that a partitioned network may differ by from the plain one, where numbers alone tell."""

LARGEST = 1 << 20
"""Voxels of the largest volume that each rank computes as a whole for that."""

_MISFITS = ("Sizes of tensors must match", "must match the size of tensor", "mismatch")
"""Of what torch says where tensors of different sides are joined."""


class FirstUse:
    """Checks of a partitioned network, each made once.

    model    the network, whose layers are partitioned
    context  of its layers
    label    what messages call it
    """

    def __init__(self, model: nn.Module, context: PartitionContext, label: str) -> None:
        self.model, self.context, self.label = model, context, label
        self._passed: set[Any] = set()

    def before(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check the network before it is called with these. Collective the first time.

        Raises PartitionError, the same on all ranks, where it would see one block where it means the whole volume.
        """
        communicator, whole = self.context.grid.communicator, self.context.entry.shape
        key = (whole, tuple(x.shape), self.model.training)
        if communicator.size == 1 or key in self._passed or self._needs_none():
            return
        programs, reason = self._export(x, args, kwargs)
        reasons = [why for why in communicator.gather_all(reason) if why]
        if misfit := next((why for why in reasons if any(words in why for words in _MISFITS)), ""):
            raise PartitionError(
                f"{self.label}: with blocks as they are cut, {list(self.context.entry.boundaries)}, tensors that it "
                f"joins do not fit ({misfit}): cut the volume at multiples of the product of the network's strides, as "
                "grid.layout(shape, multiple) does, and pad it to such"
            )
        if reasons:
            self._check_numbers(x, args, kwargs, reasons[0])
        else:
            with communicator.together(), _as_plain(self.model):
                check_graphs(programs[0], programs[1], self.label, _sides(x))
        self.context.begin_pass_of(self.context.entry)
        self._passed.add(key)

    def _export(
        self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[ExportedProgram], str]:  # fmt: skip
        """The network with the whole volume and with this rank's block; why it cannot be exported."""
        sides = (self.context.entry.shape, _sides(x))
        # Where exporting fails on some ranks alone, they have drawn other random numbers than the rest.
        with _as_plain(self.model), torch.random.fork_rng(devices=[]):
            try:
                inputs = [x.detach().new_empty((*x.shape[:2], *each)) for each in sides]
                return [exported(self.model, each, *args, **kwargs) for each in inputs], ""
            except Exception as reason:
                return [], first_line(reason)

    def _needs_none(self) -> bool:
        """Whether nothing but known layers is called, one after another or as a description says."""
        if getattr(self.model, "is_described", False):
            return True
        parts = list(self.model.modules())
        hooked = any(part._forward_hooks or part._forward_pre_hooks for part in parts)
        known = (PartitionedLayer, Pointwise, FusedSequential)
        plain = all(isinstance(part, known) or type(part).__module__.startswith("torch.nn.modules") for part in parts)
        return plain and not hooked and isinstance(self.model, FusedSequential)

    def _check_numbers(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], why: str) -> None:
        """Compare blocks with the whole, of random numbers that all ranks have alike. Collective."""
        communicator, layout = self.context.grid.communicator, self._small()
        whole = torch.randn((*x.shape[:2], *layout.shape), generator=torch.Generator().manual_seed(20)).to(x)
        own = take_block(whole, self.context.grid, layout)
        states = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                with communicator.together(), _as_plain(self.model):
                    expected = _tensors(self._plain(whole, args, kwargs))
                self.context.begin_pass_of(layout)
                actual = _tensors(type(self.model).forward(self.model, own, *args, **kwargs))
            finally:
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(states[name])
        for part, expectation in zip(actual, expected, strict=True):
            self._compare(part, expectation, why)

    def _plain(self, whole: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self.model(whole, *args, **kwargs)
        except Exception as error:
            sides = format_triple(_sides(whole))
            raise PartitionError(f"{self.label}: fails with a whole volume of {sides}: {first_line(error)}") from error

    def _small(self) -> Layout:
        """The layout of the volume, or one with as many blocks of 32 voxels where that would be large."""
        entry, dims = self.context.entry, self.context.grid.dims
        if prod(entry.shape) <= LARGEST:
            return entry
        d, h, w = (min(n, 32 * count) for n, count in zip(entry.shape, dims, strict=True))
        return self.context.grid.layout((d, h, w), self.context.multiple)

    def _compare(self, part: Tensor, expected: Tensor, why: str) -> None:
        grid, error = self.context.grid, None
        gathered = gather_blocks(part, grid) if part.dim() == 5 else part
        scale = float(expected.abs().max()) or 1.0
        if gathered.shape != expected.shape or not bool((gathered - expected).abs().max() <= TOLERANCE * scale):
            error = PartitionError(
                f"{self.label}: on {format_triple(grid.dims)} blocks it gives other values than on the whole volume; "
                f"why cannot be said, as torch.export does not take it ({why}): its forward must work voxel by voxel "
                "between layers"
            )
        grid.communicator.raise_together(error)


def _sides(x: Tensor) -> Triple:
    d, h, w = x.shape[2:]
    return d, h, w


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, dict):
        result = list(result.values())
    return [tensor for part in result for tensor in _tensors(part)] if isinstance(result, (list, tuple)) else []


@contextmanager
def _as_plain(model: nn.Module) -> Iterator[None]:
    """The network with torch's own layers in place of partitioned ones, and without what watches it."""
    classes = {part: type(part) for part in model.modules()}
    watched = vars(model).pop("forward", None)
    try:
        for part, twin in classes.items():
            if isinstance(part, (PartitionedLayer, FusedSequential)):
                part.__class__ = next(
                    base for base in twin.__mro__ if base.__module__.startswith("torch.nn") or not _is_ours(base)
                )
        yield
    finally:
        for part, twin in classes.items():
            part.__class__ = twin
        if watched is not None:
            model.forward = watched


def _is_ours(base: type) -> bool:
    return issubclass(base, (PartitionedLayer, FusedSequential))
