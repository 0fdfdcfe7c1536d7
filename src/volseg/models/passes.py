"""The passes of a training step through a network: its steps run, and the memory that passes keep for each other."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from volseg.distributed.ghost_exchange import ghost_widths
from volseg.distributed.merging import LevelGrids
from volseg.models.described import DescribedModule
from volseg.networks.description import IMAGE
from volseg.nn.convert import context_of
from volseg.nn.fused.arena_memory import ArenaMemory
from volseg.nn.fused.backend import Backend
from volseg.nn.fused.buffers import Buffers
from volseg.nn.fused.forward import logits as logits_of
from volseg.nn.fused.operand import Workplace
from volseg.nn.fused.runner import run
from volseg.nn.fused.state import Gradients, LogitSlabs, State
from volseg.nn.kernels.rows import Rows
from volseg.partition.ghosts import check_blocks
from volseg.partition.layout import Layout
from volseg.program.build import train_program
from volseg.program.ops import Classify
from volseg.program.step import Program
from volseg.program.tensors import Tensor as Named


class Passes:
    """Runs the program of a training step.

    twin         the network as `partition_module` made it
    grids        of its stages
    checkpoints  stages of which less is kept, and made again in backward
    backend      who computes
    dtype        in which tensors are stored
    work         where tensors lie
    """

    def __init__(
        self, twin: DescribedModule, grids: LevelGrids, checkpoints: Collection[int], backend: Backend,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.twin, self.network, self.grids, self.grid = twin, twin.network, grids, grids.grids[0]
        self.checkpoints, self.backend, self.dtype = frozenset(checkpoints), backend, dtype
        self.rest()
        self._shape: tuple[int, ...] = ()
        self._state: weakref.ref[State] | None = None

    @property
    def program(self) -> Program:
        """The steps of this rank."""
        return train_program(self.network, frozenset(self.grids.merges), self.grids.last, self.checkpoints)

    def rest(self) -> None:
        """Give back the memory that passes keep for each other."""
        self.work = Workplace(self.grid, Buffers(self.dtype, self.backend.device), self.backend)

    @contextmanager
    def layouts(self, x: Tensor) -> Iterator[list[Layout]]:
        """The layout of this input at each stage, on that stage's grid. Collective."""
        context = context_of(self.twin)
        context.begin_pass(x)
        try:
            layout = context.layout_of(self.twin, x)
            layouts = self.grids.agglomeration.layouts(layout, self.network.factors)
            check_blocks(layouts, self.network.halo)
            yield layouts
        finally:
            context.end_pass()

    def forward(
        self, x: Tensor, consume: Callable[[str, int, LogitSlabs], None], targets: dict[str, Tensor] | None = None
    ) -> State:
        """The forward steps; `consume` gets the logits of each head, by its name and stage. Collective.

        targets  what the heads' losses compare with, [d, h, w] of this rank's block, by the heads' names; those of
                 stages on coarser process grids become those grids' blocks, and go on ranks that take no part there
        """
        with self.layouts(x) as layouts:
            work = self._begin(x)
            works = [Workplace(grid, work.buffers, self.backend) for grid in self.grids.grids]
            bricks = [context_of(self.twin).brick(layout)[0] for layout in layouts]
            memory = ArenaMemory(self.network, works, layouts, bricks)
            state = State(self.twin, self.grids, works, layouts, bricks, memory, consume=consume, targets=targets or {})
            self._enter_image(state, x)
            self._state = weakref.ref(state)
            run(self.program.forward, state)
        return state

    def backward(self, state: State, slabs: Mapping[str, LogitSlabs]) -> Gradients:
        """The gradients of all parameters from slabs of the logits' gradients, by head. Collective."""
        state.logit_gradients = slabs
        run(self.program.backward, state)
        return state.gradients

    def logits_again(self, state: State) -> Mapping[str, LogitSlabs]:
        """The logits of each head that the forward steps gave, by its name."""
        steps = (step.op for step in self.program.forward)
        return {op.node.name: logits_of(state, op) for op in steps if isinstance(op, Classify)}

    def _begin(self, x: Tensor) -> Workplace:
        """Memory for a pass: that of the last one, unless somebody still holds its state."""
        last = None if self._state is None else self._state()
        if last is not None and not self.work.buffers.idle:
            self.rest()
        elif self._shape != tuple(x.shape) or not self.work.buffers.idle:  # not idle: a pass was broken off
            self.work.buffers.clear()
        self._shape = tuple(x.shape)
        return self.work

    def _enter_image(self, state: State, x: Tensor) -> None:
        image = Named(IMAGE, 0, 0, x.shape[1])
        low, high = ghost_widths(self.grid, self.network.halo[0])
        rows = x.detach()[0].permute(1, 2, 3, 0)
        if low == high == (0, 0, 0):
            state.rows[image] = Rows.of(rows.contiguous())
            return
        block = state.layouts[0].block(self.grid.coords).shape
        shape = (*(n + a + b for n, a, b in zip(block, low, high, strict=True)), x.shape[1])
        state.rows[image] = Rows(torch.empty(shape, device=x.device), low, block)
        state.rows[image].own.copy_(rows)
        state.start_exchange(image)
