"""What is in memory between the steps of a pass through a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor as TorchTensor
from torch import nn

from volseg.distributed.ghost_exchange import GhostExchange
from volseg.distributed.merging import LevelGrids
from volseg.geometry import Triple
from volseg.networks.description import Network
from volseg.nn.fused.backend import Backend
from volseg.nn.fused.normalization import Statistics
from volseg.nn.fused.operand import Operand, Workplace
from volseg.nn.kernels.block_convolution import BrickSums
from volseg.nn.kernels.rows import Affine, Rows
from volseg.partition.layout import Layout
from volseg.partition.window import Range
from volseg.program.ops import Convolve
from volseg.program.step import Place
from volseg.program.tensors import Tensor, View, layout_of

Gradients = dict[nn.Parameter, TorchTensor]
"""This rank's parts of the parameters' gradients."""

LogitSlabs = Iterable[tuple[Range, Rows]]
"""Planes of a head's logits, or of their gradient, some after the others; each rows' own plane is its first."""


class Twin(Protocol):
    """A partitioned module with its description."""

    network: Network

    def get_submodule(self, target: str) -> nn.Module:
        """The layer under a path."""


class Memory(Protocol):
    """Where the tensors of a pass lie.

    overwrites  whether an output may lie over what it is made from, so that all ghosts must be there before
    """

    overwrites: bool

    def take(self, tensor: Tensor, place: Place | None) -> Rows:
        """Uninitialised rows for a tensor."""

    def give(self, tensor: Tensor, rows: Rows) -> None:
        """Nobody reads a tensor any more."""

    def rename(self, before: Tensor, after: Tensor) -> None:
        """A tensor ceases to exist, and another lies where it lay."""

    def slabs(self, op: Convolve) -> Sequence[Range]:
        """The planes of a convolution's output that are computed at a time, in their order."""

    def operand(self, tensor: Tensor, planes: Range) -> Operand | None:
        """A tensor that is never whole, where a convolution of `planes` reads it; None of all others."""

    def computed(self, names: Sequence[str], planes: Range) -> None:
        """Planes of these layers are done."""


@dataclass
class State:
    """A pass through a network.

    twin     the module whose parameters are used
    grids    of the stages
    works    of the stages that this rank takes part in, finest first
    layouts  of all stages, each on its own grid; `bricks` of voxels that no block boundary cuts
    memory   where tensors lie
    known    coefficients that need not be looked for again, by the names of their nodes
    rows     the tensors that are there, and `exchanges` of ghosts that are under way
    affines  the coefficients by which tensors are read, by the names of their nodes, and how they came about
    targets  what heads' losses compare with, [d, h, w] by their names; some move to other ranks
    sums     of gradients before an activation, [2, C] float64 (`winograd.Target`)
    """

    twin: Twin
    grids: LevelGrids
    works: list[Workplace]
    layouts: list[Layout]
    bricks: list[Triple]
    memory: Memory
    known: Mapping[str, Affine] = field(default_factory=dict)
    consume: Callable[[str, int, LogitSlabs], None] | None = None
    logit_gradients: Mapping[str, LogitSlabs] = field(default_factory=dict)
    targets: dict[str, TorchTensor] = field(default_factory=dict)
    rows: dict[Tensor, Rows] = field(default_factory=dict)
    exchanges: dict[Tensor, GhostExchange] = field(default_factory=dict)
    affines: dict[str, Affine] = field(default_factory=dict)
    statistics: dict[str, Statistics | None] = field(default_factory=dict)
    bricks_of: dict[Tensor, BrickSums | None] = field(default_factory=dict)
    signs: dict[str, TorchTensor] = field(default_factory=dict)
    sums: dict[Tensor, TorchTensor] = field(default_factory=dict)
    gradients: Gradients = field(default_factory=dict)

    @property
    def backend(self) -> Backend:
        """Whose functions compute, for all stages."""
        return self.works[0].backend

    def layer(self, path: str) -> nn.Module:
        """The torch layer under a path."""
        return self.twin.get_submodule(path)

    def work(self, tensor: Tensor) -> Workplace:
        """Of the grid that a tensor lies on."""
        return self.works[tensor.grid]

    def layout(self, tensor: Tensor) -> Layout:
        """Of a tensor, on the grid that it lies on."""
        return layout_of(tensor, self.twin.network, self.layouts)

    def operand(self, view: View) -> Operand:
        """A tensor as it is read."""
        return Operand(self.rows[view.tensor], view.tensor.channels, self.affine(view))

    def affine(self, view: View) -> Affine | None:
        """The coefficients by which a tensor is read; None where it is read as it is."""
        return None if view.node is None else self.affines[view.node.name]

    def start_exchange(self, tensor: Tensor) -> None:
        """Begin to fetch the ghosts of a tensor. Collective."""
        rows = self.rows[tensor]
        exchange = GhostExchange(rows.buffer, rows.low, rows.high, self.work(tensor).grid)
        if not exchange.done:
            self.exchanges[tensor] = exchange

    def wait(self, tensor: Tensor) -> None:
        """Return when the ghosts of a tensor are there."""
        exchange = self.exchanges.pop(tensor, None)
        if exchange is not None:
            exchange.wait()

    def pending(self, tensors: Iterable[Tensor]) -> list[GhostExchange]:
        """The exchanges of these tensors that are under way; the caller finishes them."""
        return [self.exchanges.pop(tensor) for tensor in tensors if tensor in self.exchanges]

    def zero_sums(self, gradient: Tensor) -> TorchTensor:
        """Sums of a gradient before an activation, zero where none are there yet."""
        if gradient not in self.sums:
            self.sums[gradient] = torch.zeros(2, gradient.stored, dtype=torch.float64, device=self.backend.device)
        return self.sums[gradient]

    def enter(self, module: nn.Module, weight: TorchTensor | None, bias: TorchTensor | None) -> None:
        """Note gradients of a module's parameters, where it has them, beside those that are there already."""
        for name, value in (("weight", weight), ("bias", bias)):
            parameter = getattr(module, name, None)
            if isinstance(parameter, nn.Parameter) and value is not None:
                before, value = self.gradients.get(parameter), value.to(parameter.device)
                self.gradients[parameter] = value if before is None else before + value
