"""The U-Net on one rank's block as volseg trains and runs it: the same parameters, a fraction of the memory.

Of each convolution its raw output is held and nothing else (see `nn.fused`); the output of an up-convolution and the
logits exist slab by slab, and skips are neither copied nor concatenated. The backward is written out, operation by
operation: autograd would hold every intermediate and could not hand memory from one operation to the next.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from volseg.distributed.grid import ProcessGrid
from volseg.distributed.halo import ghost_widths
from volseg.distributed.merging import LevelGrids
from volseg.errors import PartitionError
from volseg.models.bringing_back import with_far_ghosts
from volseg.models.journal import Journal
from volseg.models.layers import as_batch, context_of, layer_of, output_of, sit_out
from volseg.models.merged_levels import MergedLevels
from volseg.models.streamed_unet import StreamedUNet
from volseg.models.tape import Tape
from volseg.models.unet import UNet
from volseg.networks.deep_supervision import check_not_agglomerated, deep_slab_planes, loss_weights
from volseg.nn.convert import partition_module
from volseg.nn.fused import layer as fused
from volseg.nn.fused.buffers import Buffers
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.fused.layer import Gradients, Held, Output, Slot, Workplace
from volseg.nn.fused.scratch import Store
from volseg.nn.fused.up import Up, bias_sums
from volseg.nn.kernels import passes, pointwise, winograd
from volseg.nn.kernels.rows import Rows
from volseg.nn.losses import DiceOfBatch, LossSums, dice_cross_entropy
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.partition.layout import Layout
from volseg.partition.slabs import head_slab_planes, ranges
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range
from volseg.planning.fused_memory import made_again
from volseg.program.kinds import Kind
from volseg.program.schedule import IN_PLACE, Schedule, covers


class FusedUNet(nn.Module):
    """The partitioned twin of a `UNet`, with fused layers; it shares the model's parameters.

    x       [1, in_channels, d, h, w]  this rank's block of the padded volume
    logits  [1, classes, d, h, w]      the same bits on every grid, and those of `partition_module`

    class_weights      of the classes in the loss's cross-entropy; none: all 1
    checkpoint_levels  levels that keep one tensor less in each of encoder and decoder and make it again in backward
    agglomeration      which levels only some of the ranks take part in; the bits of the logits do not change
    kernels            whether all ranks' processors run the kernels of the fused layers

    To make one is collective. Raises PartitionError, on all ranks, where the agglomeration does not suit network, grid
    or processors.

    Settings that the fused layers do not cover (several samples together, kernels other than 3, up-sampling by
    interpolation, a gradient for the image, other devices and types) go through the layers of `partition_module`; which
    of the two it is follows from model and input alone, so it is the same on all ranks. There all ranks take part in
    all levels.
    """

    def __init__(
        self, model: UNet, grid: ProcessGrid, checkpoint_levels: Collection[int] = (),
        agglomeration: Agglomeration = NONE, class_weights: Sequence[float] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.grid = model.config, grid
        self.twin = cast(UNet, partition_module(model, grid, multiple_of=model.config.multiple))
        self.checkpoint_levels, self.class_weights = frozenset(checkpoint_levels), tuple(class_weights)
        self.supervised = [0, *(int(level) for level in model.deep_heads)]
        self.shares = loss_weights(len(model.deep_heads))
        self.work = Workplace(grid, Buffers())
        self._shape: tuple[int, ...] = ()
        self._tape: weakref.ref[Tape] | None = None
        kernels = np.array([float(winograd.available())])
        self.kernels = bool(grid.communicator.reduce_all(kernels, "min")[0])  # the same way on all ranks
        if agglomeration.stages and not (self.kernels and covers(self.config)):
            raise PartitionError(
                f"--agglomerate {agglomeration}: the layers that this network or a rank's processor needs are not "
                "agglomerated; use --agglomerate none"
            )
        if len(self.supervised) > 1:
            check_not_agglomerated(agglomeration)
        self.grids = LevelGrids(grid, self.config.levels, agglomeration)
        self.merged = MergedLevels(self.twin, self.grids)

    def forward(self, x: Tensor, features_only: bool = False) -> Tensor:
        """Logits; with `features_only` what the head reads, [1, base_channels, d, h, w]. Collective."""
        if not self.covers(x):
            y: Tensor = self.twin(x, features_only)
            return y
        parameters = [p for p in self.twin.parameters() if p.requires_grad]
        if torch.is_grad_enabled() and parameters and not features_only:
            logits: Tensor = _Logits.apply(self, x, *parameters)  # type: ignore[no-untyped-call]
            return logits
        if features_only:
            h, w = x.shape[3:]
            parts = [
                part[:, :, : b - a, :h, :w].clone()
                for (a, b), part in self.streamed().feature_slabs(*self._streamed_input(x))
            ]
        else:
            parts = [part for _, part in self.logit_slabs(x)]
        return torch.cat(parts, 2)

    def loss(
        self, x: Tensor, target: Tensor, batch: Sequence[DiceOfBatch] | None = None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """`dice_cross_entropy` of the logits, which are made slab by slab and never held. Collective.

        Where the model has heads at coarser levels, the weighted mean of that of all of them; at level i of the target
        at every 2^i-th voxel.

        target  [1, d, h, w] class per voxel, `losses.IGNORE` where it does not count
        batch   of each level with a head, where the Dice is that of all cases of a step
        out     loss [], soft Dice per class [K] at full resolution (float64, no gradient)
        """
        if not self.covers(x):
            return self._loss_of_layers(x, target, batch)
        parameters = [p for p in self.twin.parameters() if p.requires_grad]
        loss, dice = _Loss.apply(self, x, target, batch, *parameters)  # type: ignore[no-untyped-call]
        return loss, dice

    @torch.no_grad()
    def overlaps(self, x: Tensor, target: Tensor) -> list[Tensor]:
        """`LossSums.overlaps` of each level with a head, [3 K] each, for the Dice of several cases. Collective."""
        sums = {level: LossSums(self.config.classes) for level in self.supervised}
        if self.covers(x):
            with self._layouts(x) as layouts:
                tape = self._encode_decode(x, layouts)
                self._add_up(tape, target, sums)
        else:
            deep: dict[int, Tensor] = {}
            for level, logits in ({0: self.twin(x, deep_logits=deep)} | deep).items():
                sums[level].add(logits.movedim(1, -1), coarse(target, level))
        for some in sums.values():
            some.finish(self.grid.communicator)
        return [some.overlaps for some in sums.values()]

    def _with_batch(self, batch: Sequence[DiceOfBatch] | None) -> list[tuple[int, DiceOfBatch | None]]:
        """The levels with a head, each with its Dice of all cases, if there is one."""
        return [(level, None if batch is None else batch[n]) for n, level in enumerate(self.supervised)]

    def _add_up(self, tape: Tape, target: Tensor, sums: Mapping[int, LossSums]) -> None:
        for level, some in sums.items():
            here = coarse(target, level)[0]
            for (first, last), rows in self._logits(tape, level):
                with tape.works[0].meter.doing(Kind.HEAD):
                    some.add(rows.own[..., : self.config.classes], here[first:last])

    def _loss_of_layers(
        self, x: Tensor, target: Tensor, batch: Sequence[DiceOfBatch] | None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        deep: dict[int, Tensor] = {}
        logits = {0: self.twin(x, deep_logits=deep)} | deep
        losses, scores = zip(
            *(
                dice_cross_entropy(logits[n], coarse(target, n), self.grid.communicator, self.class_weights, dice)
                for n, dice in self._with_batch(batch)
            ),
            strict=True,
        )
        return cast(Tensor, sum(share * loss for share, loss in zip(self.shares, losses, strict=True))), scores[0]

    def logit_slabs(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """First plane and logits [1, K, planes, h, w] of one slab of this rank's block after another. Collective."""
        if not self.covers(x):
            features = self.twin(x, features_only=True)
            d, h, w = features.shape[2:]
            planes = head_slab_planes((d, h, w), self.config.classes)
            for start in range(0, features.shape[2], planes):
                yield start, self.twin.head(features[:, :, start : start + planes])
            return
        yield from self.streamed().logit_slabs(*self._streamed_input(x))

    def feature_slabs(self, x: Tensor, layout: Layout) -> Iterator[tuple[Range, Tensor]]:
        """What the head reads, for ranges of planes in turn, with a voxel more where the volume goes on. Collective.

        Forward only: gradients are off.
        """
        if self.covers(x):
            image = TensorImage(x, layout, self.grid, image_width(IN_PLACE, 1))
            yield from self.streamed().feature_slabs(image, layout)
        else:
            yield (0, x.shape[2]), with_far_ghosts(self.twin(x, features_only=True), layout, self.grid)

    def streamed(
        self, schedule: Schedule = IN_PLACE, store: Store | None = None, tell: Callable[[float], None] | None = None,
        journal: Journal | None = None,
    ) -> StreamedUNet:  # fmt: skip
        """The same network, forward only and at the floor of memory. What training keeps in memory goes back first."""
        self.rest()
        return StreamedUNet(self.twin, self.grids, schedule, store, tell, journal)

    def rest(self) -> None:
        """Give back the memory that passes keep for each other."""
        self.work = Workplace(self.grid, Buffers())

    def _streamed_input(self, x: Tensor) -> tuple[TensorImage, Layout]:
        """Collective."""
        with self._layouts(x) as layouts:
            return TensorImage(x, layouts[0], self.grid, image_width(IN_PLACE)), layouts[0]

    def covers(self, x: Tensor) -> bool:
        """Whether the fused layers take an input of this kind."""
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[0] == 1
        wanted = torch.is_grad_enabled() and x.requires_grad
        weight = self.twin.head.weight
        ours = self.kernels and weight.device.type == "cpu" and weight.dtype == torch.float32
        return plain and not wanted and ours and covers(self.config)

    # forward

    @contextmanager
    def _layouts(self, x: Tensor) -> Iterator[list[Layout]]:
        """The layout of this input at each level, on that level's grid. Collective."""
        context = context_of(self.twin)
        context.begin_pass(x)
        try:
            layout = context.layout_of(self, x)
            yield self.grids.agglomeration.layouts(layout, self.config.levels)
        finally:
            context.end_pass()

    def _up(self, tape: Tape, level: int) -> Up:
        return Up(cast(nn.ConvTranspose3d, self.twin.up[level]), tape.above(level))

    def _encode_decode(self, x: Tensor, layouts: list[Layout]) -> Tape:
        work = self._begin(x)
        works = [Workplace(grid, work.buffers) for grid in self.grids.grids]
        bricks = [context_of(self.twin).brick(layout)[0] for layout in layouts]
        tape = Tape(works, layouts, bricks, self._image(work, x, layouts[0]))
        self._tape = weakref.ref(tape)
        top, last = self.config.levels, self.grids.last
        for level in range(last + 1):
            if level:
                self.merged.gather_input(tape, level)
            self._encoder(tape, level, tape.pooled[level - 1] if level else tape.image)
        if last < top:
            self.merged.gather_input(tape, last + 1)
            sit_out(self.twin, last + 1)
        for level in reversed(range(min(last + 1, top))):
            self.merged.spread_output(tape, level + 1)
            self._decoder(tape, level)
        return tape

    def _during(self, label: str) -> AbstractContextManager[None]:
        return self.grid.communicator.meter.during(label)

    def _needs_ghosts(self, part: str, level: int) -> bool:
        """Whether the output of a level's second convolution is read with its ghosts on the level's own grid."""
        if f"{part} {level}.2" != output_of(self.twin, level):
            return True  # a skip
        return level > 0 and level not in self.grids.merges

    def _begin(self, x: Tensor) -> Workplace:
        """Memory for a pass: that of the last one, unless somebody still holds its tape."""
        last = None if self._tape is None else self._tape()
        if last is not None and not self.work.buffers.idle:
            self.work = Workplace(self.grid, Buffers())
        elif self._shape != tuple(x.shape) or not self.work.buffers.idle:  # not idle: a pass was broken off
            self.work.buffers.clear()
        self._shape = tuple(x.shape)
        return self.work

    def _image(self, work: Workplace, x: Tensor, layout: Layout) -> Held:
        low, high = ghost_widths(self.grid, 1)
        block = layout.block(self.grid.coords).shape
        rows = x.detach()[0].permute(1, 2, 3, 0)
        if low == high == (0, 0, 0):
            return Held(Rows.of(rows.contiguous()), x.shape[1])
        shape = (*(n + a + b for n, a, b in zip(block, low, high, strict=True)), x.shape[1])
        held = Held(Rows(torch.empty(shape), low, block), x.shape[1])
        held.rows.own.copy_(rows)
        work.start_exchange(held)
        return held

    def _encoder(self, tape: Tape, level: int, below: Held) -> None:
        whole = self._planes(tape, level)
        first = self._run(tape, "encoder", level, 1, [(whole, [below])], ghosts=True)
        pooled = tape.before(level + 1) if level < self.config.levels else None
        ghosts = self._needs_ghosts("encoder", level)
        self._run(tape, "encoder", level, 2, [(whole, [first])], ghosts=ghosts, pooled=pooled)
        self._leave_first(tape, "encoder", level)

    def _decoder(self, tape: Tape, level: int) -> None:
        whole = self._planes(tape, level)
        tape.above(level).wait()
        tape.outputs[f"encoder {level}.2"].held.wait()
        slabs = self._first_slabs(tape, "decoder", level, [])
        first = self._run(tape, "decoder", level, 1, slabs, ghosts=True)
        self._run(tape, "decoder", level, 2, [(whole, [first])], ghosts=self._needs_ghosts("decoder", level))
        self._leave_first(tape, "decoder", level)

    def _planes(self, tape: Tape, level: int) -> Range:
        """All of this rank's block."""
        return 0, tape.works[level].grid.block(tape.layouts[level]).shape[0]

    def _run(
        self, tape: Tape, part: str, level: int, number: int, slabs: Iterable[fused.Slab], *, ghosts: bool,
        pooled: Layout | None = None,
    ) -> Held:  # fmt: skip
        layer, work, layout = layer_of(self.twin, part, level, number), tape.works[level], tape.layouts[level]
        rows = work.rows(layout, layer.channels)
        small_rows = work.rows(pooled, layer.channels) if pooled is not None else None
        with self._during(layer.label):
            output, small = fused.forward(
                work,
                layer,
                slabs,
                layout,
                tape.bricks[level],
                rows,
                small_rows,
                ghosts=ghosts,
                small_ghosts=level + 1 not in self.grids.merges,
            )
        if part == "decoder" and number == 1:
            output.inputs = []  # its slabs were for this pass
        tape.outputs[layer.label] = output
        if small is not None:
            tape.pooled[level] = small
        return output.held

    def _first_slabs(self, tape: Tape, part: str, level: int, inputs: list[Held]) -> Iterator[fused.Slab]:
        """What the first convolution of a level reads: in the decoder the skip and slabs from below, else `inputs`."""
        if part == "encoder":
            yield self._planes(tape, level), inputs
            return
        skip = tape.outputs[f"encoder {level}.2"].held
        for planes, slab in self._up(tape, level).slabs(tape.works[level], tape.bricks[level][0]):
            yield planes, [skip, slab]

    def _leave_first(self, tape: Tape, part: str, level: int) -> None:
        """Give the first convolution's output back, where it is made again."""
        output = tape.outputs[f"{part} {level}.1"]
        output.held.wait()
        if self._made_again(part, level):
            tape.works[level].buffers.give(output.held.rows)

    def _made_again(self, part: str, level: int) -> bool:
        return made_again(self.config, part, level, self.checkpoint_levels)

    def _head(self, level: int) -> nn.Conv3d:
        """The head of a level, of those that the loss is taken at."""
        return cast(nn.Conv3d, self.twin.deep_heads[str(level)]) if level else self.twin.head

    def _logits(self, tape: Tape, level: int = 0) -> Iterator[tuple[Range, Rows]]:
        """A level's logits of some planes after the others, stored so that their own plane is their first."""
        head, held = self._head(level), tape.output(level).held
        weight = pointwise.pack_point(head.weight, head.bias)
        d, h, w = held.rows.sides
        many = head_slab_planes((d, h, w), self.config.classes)
        if level:
            many = deep_slab_planes((d, h, w), self.config.classes, held.rows.channels)
        for planes in ranges(d, many):
            with self.work.meter.doing(Kind.HEAD):
                logits = Rows.of(torch.empty(planes[1] - planes[0], h, w, weight.channels))
                pointwise.apply(held.activation, weight, _shifted(logits, planes[0]), planes)
            yield planes, logits

    # backward

    def _backward_from_logits(self, tape: Tape, slabs: Mapping[int, Iterable[tuple[Range, Rows]]]) -> Gradients:
        """Gradients of all parameters from slabs of the logits' gradient, by level. Collective."""
        gradients: Gradients = {}
        self._head_backward(tape, 0, slabs[0], gradients)
        top, finest = self.config.levels, self.grids.last
        for level in range(min(finest + 1, top)):
            self._decoder_backward(tape, level, gradients)
            self.merged.gather_gradient(tape, level + 1)
            if level + 1 in slabs:
                self._head_backward(tape, level + 1, slabs[level + 1], gradients)
        for level in reversed(range(finest + 1)):
            self._encoder_backward(tape, level, gradients)
        return gradients

    def _head_backward(
        self, tape: Tape, level: int, slabs: Iterable[tuple[Range, Rows]], gradients: Gradients
    ) -> None:  # fmt: skip
        """Of a level's head: at full resolution the whole gradient of what it reads, else what it adds to that.

        The gradient from the finer level went through the activation before; this is linear, so parts add up, and so
        do their sums.
        """
        head, held, work = self._head(level), tape.output(level).held, tape.works[level]
        stored = padded_channels(self.config.classes)
        turned = pointwise.pack_turned_point(head.weight, stored)
        if level == 0:
            fused.slot_before_activation(work, held)
        found = held.gradient
        assert found is not None
        weight = torch.zeros(stored, held.rows.channels, dtype=torch.float64)
        bias = torch.zeros(stored, dtype=torch.float64)
        for planes, given in slabs:
            with work.meter.doing(Kind.HEAD):
                bias += bias_sums(given)
                target = found
                if level:
                    more = Rows.of(torch.empty(*given.sides, held.rows.channels))
                    target = _shifted(more, planes[0])
                weight += pointwise.gradients(
                    held.activation, _shifted(given, planes[0]), turned, target, held.sums, planes
                )[0]
                if level:
                    found.own[planes[0] : planes[1]] += more.own
        k, c = head.weight.shape[:2]
        fused.enter(gradients, head, weight[:k, :c].float().view_as(head.weight), bias[:k].float())

    def _second_backward(self, tape: Tape, part: str, level: int, gradients: Gradients) -> Output:
        """The second convolution of a level: leaves the gradient of the first one's output, which is returned."""
        first, second = (tape.outputs.pop(f"{part} {level}.{n}") for n in (1, 2))
        work = tape.works[level]
        if self._made_again(part, level):
            with self._during(f"{first.layer.label}, again"):
                fused.again(work, first, self._first_slabs(tape, part, level, first.inputs))
        whole: Range = (0, first.held.rows.sides[0])
        with self._during(f"{second.layer.label}, backward"):
            gradient = fused.output_gradient(work, second, gradients)
            slot = fused.slot_before_activation(work, first.held)
            fused.backward(work, second, gradient, [(whole, [first.held], [slot])], gradients)
        return first

    def _decoder_backward(self, tape: Tape, level: int, gradients: Gradients) -> None:
        first = self._second_backward(tape, "decoder", level, gradients)
        below, skip = tape.above(level), tape.outputs[f"encoder {level}.2"].held
        up, work = self._up(tape, level), tape.works[level]
        with self._during(f"{first.layer.label}, backward"):
            gradient = fused.output_gradient(work, first, gradients)
            skip_slot = fused.slot_behind_activation(work, skip)
            below_slot = fused.slot_before_activation(work, below)
            found = _UpGradients()
            slabs = self._up_slabs(work, up, skip, skip_slot, below_slot, found)
            fused.backward(work, first, gradient, slabs, gradients)
        assert found.weight is not None
        assert found.bias is not None
        up.enter(found.weight, found.bias, gradients)

    def _up_slabs(
        self, work: Workplace, up: Up, skip: Held, skip_slot: Slot, below_slot: Slot, found: _UpGradients
    ) -> Iterator[fused.SlabWithSlots]:
        """Slabs for a decoder's first convolution; each slab's gradient goes through the up-convolution at once."""
        for planes, slab in up.slabs(work, 2):
            sides = (planes[1] - planes[0], *slab.rows.sides[1:])
            given = work.buffers.slab("its gradient", sides, slab.rows.channels)
            shifted = _shifted(given, planes[0])
            yield planes, [skip, slab], [skip_slot, Slot(shifted)]
            found.weight = up.backward(work, planes, shifted, below_slot, found.weight)
            with work.meter.doing(Kind.UP):
                sums = bias_sums(given)
            found.bias = sums if found.bias is None else found.bias + sums

    def _encoder_backward(self, tape: Tape, level: int, gradients: Gradients) -> None:
        second, work = tape.outputs[f"encoder {level}.2"], tape.works[level]
        if level < self.config.levels:
            held, small = second.held, self.merged.input_gradient(tape, level + 1)
            assert held.gradient is not None
            assert second.signs is not None
            held.sums = torch.zeros(2, held.rows.channels, dtype=torch.float64)
            with self._during(f"{second.layer.label}, backward"), work.meter.doing(Kind.POOLING):
                passes.unpool(held.gradient, held.activation, second.signs, small, held.sums)
            work.buffers.give(small)
        first = self._second_backward(tape, "encoder", level, gradients)
        whole: Range = (0, first.held.rows.sides[0])
        with self._during(f"{first.layer.label}, backward"):
            gradient = fused.output_gradient(work, first, gradients, ghosts=level > 0)
            slots = [fused.slot_behind_activation(work, x) for x in first.inputs if x is not tape.image]
            fused.backward(work, first, gradient, [(whole, first.inputs, slots)], gradients)


@dataclass
class _UpGradients:
    """Sums over the slabs of an up-convolution."""

    weight: Tensor | None = None
    bias: Tensor | None = None


def _shifted(rows: Rows, first: int) -> Rows:
    """Rows that hold the planes from `first` on, addressed by the planes of the whole block."""
    return Rows(rows.buffer, (-first, 0, 0), rows.sides)


def _as_rows(x: Tensor, stored: int) -> Rows:
    """[1, C, d, h, w] as rows of `stored` channels, the further ones zero."""
    rows = torch.zeros(*x.shape[2:], stored)
    rows[..., : x.shape[1]] = x[0].permute(1, 2, 3, 0)
    return Rows.of(rows)


class _Logits(torch.autograd.Function):
    """A whole forward and backward as one node of autograd."""

    @staticmethod
    def forward(ctx: Any, network: FusedUNet, x: Tensor, *parameters: nn.Parameter) -> Tensor:
        with network._layouts(x) as layouts:
            ctx.tape = network._encode_decode(x, layouts)
            logits = torch.cat([rows.own[..., : network.config.classes] for _, rows in network._logits(ctx.tape)])
        ctx.network, ctx.parameters = network, parameters
        return as_batch(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tape, network = _once(ctx), ctx.network
        rows = _as_rows(grad, padded_channels(grad.shape[1]))
        found = network._backward_from_logits(tape, {0: [((0, rows.sides[0]), rows)]})
        return None, None, *(found.get(p) for p in ctx.parameters)


class _Loss(torch.autograd.Function):
    """Forward, loss and backward as one node of autograd."""

    @staticmethod
    def forward(
        ctx: Any, network: FusedUNet, x: Tensor, target: Tensor, batch: Sequence[DiceOfBatch] | None,
        *parameters: nn.Parameter,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        with network._layouts(x) as layouts:
            ctx.tape = network._encode_decode(x, layouts)
            ctx.sums = {
                level: LossSums(network.config.classes, network.class_weights, dice)
                for level, dice in network._with_batch(batch)
            }
            network._add_up(ctx.tape, target, ctx.sums)
        with ctx.tape.works[0].meter.doing(Kind.HEAD):
            losses, scores = zip(*(sums.finish(network.grid.communicator) for sums in ctx.sums.values()), strict=True)
        loss = sum(share * one for share, one in zip(network.shares, losses, strict=True))
        ctx.network, ctx.parameters = network, parameters
        ctx.save_for_backward(target)
        ctx.mark_non_differentiable(scores[0])
        return loss.float(), scores[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (target,) = ctx.saved_tensors
        tape, network = _once(ctx), ctx.network
        slabs = {
            level: _logit_gradients(network, tape, level, coarse(target, level)[0], sums, share * float(grad))
            for share, (level, sums) in zip(network.shares, ctx.sums.items(), strict=True)
        }
        found = network._backward_from_logits(tape, slabs)
        return None, None, None, None, *(found.get(p) for p in ctx.parameters)


def _logit_gradients(
    network: FusedUNet, tape: Tape, level: int, target: Tensor, sums: LossSums, factor: float
) -> Iterator[tuple[Range, Rows]]:
    for (first, last), rows in network._logits(tape, level):
        logits = rows.own[..., : network.config.classes]
        with tape.works[0].meter.doing(Kind.HEAD):
            sums.gradient(logits, target[first:last], factor, out=logits)
        yield (first, last), rows


def coarse(target: Tensor, level: int) -> Tensor:
    """A block's classes [N, d, h, w] at every 2^level-th voxel: the volume's, as block boundaries lie on such."""
    step = 2**level
    return target[:, ::step, ::step, ::step]


def _once(ctx: Any) -> Tape:
    tape: Tape | None = ctx.tape
    ctx.tape = None
    if tape is None:
        raise RuntimeError("the fused U-Net goes backward once for each forward")
    return tape
