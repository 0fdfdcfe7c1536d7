"""A network's forward at the floor of memory: slab by slab, each output over its own input.

Three schedules, with the same bits (`program.schedule`): in place, each stage has one tensor at a time; recomputing,
the finest stage is never whole; spilling, the tensors lie in files of a scratch folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from volseg.distributed.merging import LevelGrids
from volseg.errors import PartitionError
from volseg.geometry import Box, Triple
from volseg.models.journal import Journal
from volseg.models.unet import UNet
from volseg.networks.description import IMAGE
from volseg.nn.convert import context_of
from volseg.nn.fused.backend import CPU, Backend, CompiledBackend
from volseg.nn.fused.basin_memory import BasinMemory
from volseg.nn.fused.buffers import Buffers
from volseg.nn.fused.image import Image, reach
from volseg.nn.fused.operand import Operand, Workplace
from volseg.nn.fused.passes import enter_stage, features, find_coefficients, part_of
from volseg.nn.fused.progress import Progress
from volseg.nn.fused.runner import run_step
from volseg.nn.fused.scratch import Store
from volseg.nn.fused.state import State
from volseg.nn.kernels.lines import affine_of
from volseg.nn.kernels.rows import Activation, Affine, Rows, dtype_of
from volseg.partition.ghosts import check_blocks
from volseg.partition.layout import Layout
from volseg.partition.slabs import head_slab_planes, ranges, rolling_planes
from volseg.partition.window import Range
from volseg.precision import FLOAT32, Precision
from volseg.program.build import segment_program
from volseg.program.kinds import Kind
from volseg.program.ops import Classify, Convolve, Fetch, Keep, Normalize, Pass, Pool
from volseg.program.recompute import halo_with_passes
from volseg.program.resume import COARSE
from volseg.program.schedule import IN_PLACE, RECOMPUTE, Schedule
from volseg.program.step import Program, Step
from volseg.program.tensors import Tensor as Named
from volseg.program.tensors import layout_of


class StreamedNetwork:
    """Runs a partitioned network that the program covers (`networks.coverage`), forward only.

    twin      the network as `partition_module` made it
    grids     of its stages
    schedule  how
    store     where tensors lie
    tell      is called with the share of the work that is done, 0 to 1, after each slab
    journal   keeps what the next run need not compute again, and knows what the last one kept
    precision  in which tensors are stored; logits are float32
    backend   who computes, the compiled kernels by default; parameters and results lie on its device
    seconds   of each layer, in RECOMPUTE of each pass; what the caller does with a slab counts with the head

    A run must be gone through to its end, on all ranks.
    """

    def __init__(
        self, twin: UNet, grids: LevelGrids, schedule: Schedule = IN_PLACE, store: Store | None = None,
        tell: Callable[[float], None] | None = None, journal: Journal | None = None, precision: Precision = FLOAT32,
        backend: Backend | None = None,
    ) -> None:  # fmt: skip
        self.twin, self.grids, self.network, self.schedule = twin, grids, twin.network, schedule
        self.grid = grids.grids[0]
        self.backend = backend or CompiledBackend()
        self.store = store or Store(self.backend.device)
        self.tell = tell
        self.journal = journal if self.network.deepest else None
        self.work = Workplace(self.grid, Buffers(dtype_of(precision), self.backend.device), self.backend)
        self.seconds: dict[str, float] = {}
        self.progress: Progress | None = None
        self._affines: dict[str, Affine] = {}

    # what comes out

    def logit_slabs(self, image: Image, layout: Layout) -> Iterator[tuple[int, Tensor]]:
        """First plane and logits [1, K, planes, h, w] of one slab of this rank's block after another. Collective."""
        head, classes = self.twin.logits_layer, self.network.classes
        points, device = self.backend.points, self.backend.device
        weight = points.pack_point(head.weight, head.bias, self.work.buffers.dtype)
        for planes, x in _without_gradients(self.run(image, layout)):
            _, h, w = x.rows.sides
            step = head_slab_planes(x.rows.sides, classes)
            for first, last in ((a + planes[0], b + planes[0]) for a, b in ranges(planes[1] - planes[0], step)):
                with torch.no_grad(), self.work.meter.doing(Kind.HEAD):
                    logits = Rows.of(torch.empty(last - first, h, w, weight.channels, device=device))
                    points.apply(x.activation, weight, logits.seen_from((-first, 0, 0), logits.sides), (first, last))
                yield first, _as_batch(logits.own[..., :classes])

    def feature_slabs(self, image: Image, layout: Layout) -> Iterator[tuple[Range, Tensor]]:
        """What the head reads, [1, C, planes + 1, h + 1, w + 1] for ranges of planes in turn. Collective.

        The further plane, row and column only where the volume goes on; good until the next are asked for.
        """
        activated = 0
        for planes, x in _without_gradients(self.run(image, layout, beyond=1)):
            _, high = reach(layout, self.grid.coords, 1)
            last = min(planes[1] + 1, x.rows.sides[0] + high[0])
            with torch.no_grad(), self.work.meter.doing(Kind.HEAD):
                fresh = part_of(x.rows, (max(activated, planes[0]), last), high)
                self.backend.passes.activate(Activation(fresh, x.affine), fresh)
            activated = last
            yield planes, _as_batch(part_of(x.rows, (planes[0], last), high).own[..., : x.channels].float())

    def run(self, image: Image, layout: Layout, beyond: int = 0) -> Iterator[tuple[Range, Operand]]:
        """Ranges of this rank's planes, and there what the head reads; good until the next are asked for. Collective.

        beyond  voxels around the block that are wanted too, where the volume goes on: 0 or 1
        """
        program = self._program(layout, beyond)
        state = self._state(program, image, layout, beyond)
        try:
            last_read = max(n for n, step in enumerate(program.forward) if _reads_image(step))
            for number, step in enumerate(program.forward):
                with self._during(step.label):
                    if isinstance(step.op, Classify) or (isinstance(step.op, Pass) and step.op.head is not None):
                        yield from self._head(step, state, image, beyond)
                    else:
                        self._execute(step, state, image)
                if number == last_read:
                    image.settled()
                    image.close()
            if self.tell is not None:
                self.tell(1.0)
        finally:
            state.rows.clear()
            self.work.buffers.clear()

    # the steps

    def _program(self, layout: Layout, beyond: int) -> Program:
        known = {} if self.journal is None else self.journal.affines()
        self._affines = {label: affine.on(self.backend.device) for label, affine in known.items()}
        ways = [RECOMPUTE, IN_PLACE] if self.schedule is RECOMPUTE and self.network.deepest else [IN_PLACE]
        programs = [
            segment_program(
                self.network, way, frozenset(self.grids.merges), self.grids.last, beyond=beyond > 0,
                journal=self.journal is not None, known=frozenset(self._affines),
            )
            for way in ways
        ]  # fmt: skip
        if len(programs) > 1:
            try:  # passes read more voxels of the second stage beyond a block, which thin blocks do not have
                halo = halo_with_passes(self.network, programs[0].forward, beyond)
                check_blocks([layout, self._second(layout)], halo[:2])
            except PartitionError:
                programs.pop(0)
        return programs[0]

    def _state(self, program: Program, image: Image, layout: Layout, beyond: int) -> State:
        context = context_of(self.twin)
        context.begin_pass_of(layout)
        context.end_pass()
        layouts = self.grids.agglomeration.layouts(layout, self.network.factors)
        check_blocks(layouts, self.network.halo)
        works = [Workplace(grid, self.work.buffers, self.backend) for grid in self.grids.grids]
        bricks = [context.brick(layout)[0] for layout in layouts]

        def sides(tensor: Named) -> Triple:
            return layout_of(tensor, self.network, layouts).block(works[tensor.grid].grid.coords).shape

        self.progress = Progress(self.network, program, sides, self.tell)
        memory = BasinMemory(self.network, program, works, layouts, image, self.store, self.progress, beyond)
        known = {f"{label}, activated": affine for label, affine in self._affines.items()}
        state = State(self.twin, self.grids, works, layouts, bricks, memory, known)
        state.affines.update(known)
        return state

    def _execute(self, step: Step, state: State, image: Image) -> None:
        """Any step but that of the head."""
        match step.op:
            case Pass(entering=Convolve() | Pool()) as op:
                run_step(step, state, partial(enter_stage, state, op, image))
            case Pass() as op:
                run_step(step, state, partial(find_coefficients, state, op, image))
                self._learn(state, step.label, op.views[-1].node)
            case Fetch() as op:
                run_step(step, state, partial(self._fetch, state, op))
            case Keep() as op:
                run_step(step, state, partial(self._keep, state, op))
            case _:
                run_step(step, state)
        if isinstance(step.op, Normalize) and step.op.view.tensor.stage == 0:
            self._learn(state, step.label, step.op.view.node)

    def _head(self, step: Step, state: State, image: Image, beyond: int) -> Iterator[tuple[Range, Operand]]:
        if isinstance(step.op, Pass):
            yield from features(state, step.op, image, beyond)
            return
        assert isinstance(step.op, Classify)
        self.work.buffers.clear()
        x = state.operand(step.op.source)
        state.wait(step.op.source.tensor)
        for planes in ranges(x.rows.sides[0], rolling_planes(x.rows.sides, x.rows.channels)):
            yield planes, x
            self.store.relax()

    # going on after an interruption

    def _learn(self, state: State, label: str, node: object) -> None:
        """A layer's coefficients are known."""
        self._affines[label] = state.affines[getattr(node, "name", "")]

    def _keep(self, state: State, op: Keep) -> None:
        assert self.journal is not None
        with self.work.meter.doing(Kind.FILES):
            if op.view is not None:
                planes = state.rows[op.view.tensor].own
                self.journal.keep_coarse(
                    self._coarse_box(state), (plane.float().cpu() for plane in self._relaxed(planes))
                )
                self._affines[COARSE] = affine_of(state.operand(op.view).activation)
            self.journal.keep({label: affine.on(CPU) for label, affine in self._affines.items()})

    def _fetch(self, state: State, op: Fetch) -> None:
        assert self.journal is not None
        if op.view.node is not None:
            state.affines[op.view.node.name] = self._affines[COARSE]
        box = self._coarse_box(state)
        with self.work.meter.doing(Kind.FILES):
            for z, plane in enumerate(self._relaxed(state.rows[op.view.tensor].own), start=box.start[0]):
                values = plane.float().cpu()  # of float32 the plane itself, where it lies in the processor's memory
                self.journal.fill_coarse(Box((z, *box.start[1:]), (z + 1, *box.stop[1:])), values.unsqueeze(0))
                plane.copy_(values)

    def _relaxed(self, planes: Tensor) -> Iterator[Tensor]:
        """One plane after the other, none in memory for longer than needed."""
        for plane in planes:
            yield plane
            self.store.relax()

    def _coarse_box(self, state: State) -> Box:
        """At stage 1, on the grid of stage 0."""
        return self._second(state.layouts[0]).block(self.grid.coords)

    def _second(self, layout: Layout) -> Layout:
        """The layout of stage 1 on the grid of stage 0."""
        return layout.coarser(self.network.factors[1])

    @contextmanager
    def _during(self, label: str) -> Iterator[None]:
        begin = time.perf_counter()
        with self.grid.communicator.meter.during(label):
            yield
        if label != COARSE:
            self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - begin


def _reads_image(step: Step) -> bool:
    return any(tensor.name == IMAGE for tensor in step.reads)


def _without_gradients(slabs: Iterator[tuple[Range, Operand]]) -> Iterator[tuple[Range, Operand]]:
    """Not while the caller works on a slab."""
    while True:
        with torch.no_grad():
            slab = next(slabs, None)
        if slab is None:
            return
        yield slab


def _as_batch(rows: Tensor) -> Tensor:
    """[d, h, w, C] as [1, C, d, h, w]."""
    return rows.permute(3, 0, 1, 2).unsqueeze(0)
