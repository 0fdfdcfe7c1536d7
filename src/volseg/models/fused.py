"""A network on one rank's block as volseg trains it: the same parameters, a fraction of the memory.

The steps are those of its program (`program.build`). Of each convolution its raw output is in memory and nothing else
(see `nn.fused`); the output of an up-convolution and the logits exist slab by slab, and skips are neither copied nor
concatenated. The backward is written out as steps: autograd would hold every intermediate and could not hand memory
from one operation to the next.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.merging import LevelGrids
from volseg.errors import PartitionError
from volseg.geometry import Triple
from volseg.models.bringing_back import with_far_ghosts
from volseg.models.journal import Journal
from volseg.models.passes import Passes
from volseg.models.streamed import StreamedNetwork
from volseg.models.unet import UNet
from volseg.networks.coverage import why_not_covered
from volseg.networks.deep_supervision import loss_weights
from volseg.nn.convert import partition_module
from volseg.nn.fused.backend import Backend, CompiledBackend, backend_for
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.fused.operand import Workplace
from volseg.nn.fused.scratch import Store
from volseg.nn.fused.state import LogitSlabs, State
from volseg.nn.kernels import amx, block_convolution
from volseg.nn.kernels.rows import Rows, dtype_of
from volseg.nn.losses import DiceOfBatch, LossSums, VolumeLoss, loss_of_logits
from volseg.nn.region_loss import RegionSums
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.partition.layout import Layout
from volseg.partition.slabs import head_slab_planes
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range
from volseg.precision import BFLOAT16, FLOAT32, Precision
from volseg.program.kinds import Kind
from volseg.program.schedule import IN_PLACE, Schedule, check_precision


def backend_of(model: nn.Module, communicator: Communicator) -> Backend:
    """The backend of the device that a model's parameters lie on; the same kind on all ranks. Collective.

    Raises as `backend_for` does.
    """
    device = next(model.parameters()).device
    compiled = np.array([float(block_convolution.available())])
    return backend_for(device, os.environ, bool(communicator.reduce_all(compiled, "min")[0]))


def _check_processors(precision: Precision, backend: Backend, communicator: Communicator) -> None:
    """Raise PartitionError, on all ranks, where some compute bfloat16 on tiles and others do not: their bits differ."""
    if precision is not BFLOAT16 or not isinstance(backend, CompiledBackend):
        return
    tiles = communicator.gather_all(amx.available())
    if any(tiles) and not all(tiles):
        first = tiles.index(False)
        raise PartitionError(
            f"--precision bfloat16: processors of two kinds: {tiles.count(False)} of {len(tiles)} ranks, the first of "
            f"them rank {first}, lack the bfloat16 tiles (AMX) that the others compute on, and results would depend on "
            "the ranks; run on nodes of one kind, or give --precision float32"
        )


class FusedNetwork(nn.Module):
    """The partitioned twin of a `UNet`, run by its program; it shares the model's parameters.

    x       [1, in_channels, d, h, w]  this rank's block of the padded volume
    logits  [1, classes, d, h, w]      the same bits on every grid, and those of `partition_module`

    class_weights      of the classes in the loss's cross-entropy; none: all 1
    checkpoint_levels  stages that keep one tensor less in each of encoder and decoder and make it again in backward
    agglomeration      which stages only some of the ranks take part in; the bits of the logits do not change
    regions            values of the labels in each region, where the logits are of overlapping ones; none: of classes
    precision          in which tensors are stored; sums, coefficients, logits and gradients of weights are float32
    backend            who computes; by default `backend_of` the model, which lies on its device already

    To make one is collective. Raises PartitionError, on all ranks, where the agglomeration does not suit network, grid
    or processors, or these are of two kinds and the precision is bfloat16; ConfigError where the precision does not.

    What the program does not cover (`networks.coverage`; several samples together, a gradient for the image, another
    device than the backend's, float64) goes through the layers of `partition_module`; which of the two it is follows
    from model and input alone, so it is the same on all ranks. There all ranks take part in all stages.
    """

    def __init__(
        self, model: UNet, grid: ProcessGrid, checkpoint_levels: Collection[int] = (),
        agglomeration: Agglomeration = NONE, class_weights: Sequence[float] = (),
        regions: Sequence[Sequence[int]] = (), precision: Precision = FLOAT32, backend: Backend | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.grid = model.network, grid
        self.twin = cast(UNet, partition_module(model, grid, multiple_of=self.network.factors[-1]))
        self.class_weights, self.regions = tuple(class_weights), tuple(regions)
        self.supervised = {head.stage: head.name for head in sorted(self.network.heads, key=lambda head: head.stage)}
        self.shares = loss_weights(len(self.supervised) - 1)
        self.backend = backend or backend_of(model, grid.communicator)
        reason = why_not_covered(self.network)
        self.covered = not reason
        if agglomeration.stages and reason:
            raise PartitionError(
                f"--agglomerate {agglomeration}: this network is not agglomerated, as {reason}; use --agglomerate none"
            )
        check_precision(self.network, precision)
        _check_processors(precision, self.backend, grid.communicator)
        self.precision = precision
        self.grids = LevelGrids(grid, self.network.deepest, agglomeration)
        self.passes = Passes(self.twin, self.grids, checkpoint_levels, self.backend, dtype_of(precision))

    @property
    def device(self) -> torch.device:
        """On which inputs are taken, and outputs come."""
        return self.backend.device

    @property
    def work(self) -> Workplace:
        """Where the tensors of a training step lie."""
        return self.passes.work

    def forward(self, x: Tensor, features_only: bool = False) -> Tensor:
        """Logits; with `features_only` what the head reads, [1, channels, d, h, w]. Collective."""
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
        self, x: Tensor, target: Tensor, batch: Sequence[DiceOfBatch] | None = None, unknown: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The loss of the logits, which are made slab by slab and never whole. Collective.

        It is `dice_cross_entropy`, of regions that of `RegionSums`.
        Where the model has heads at coarser stages, the weighted mean of that of all of them; at stage i of the target
        at every 2^i-th voxel.

        target  [1, d, h, w] class per voxel, `losses.IGNORE` where it does not count
        batch   of each stage with a head, where the Dice is that of all cases of a step
        unknown  classes or regions that nobody has annotated in this case
        out     loss [], soft Dice per class [K] at full resolution (float64, no gradient)
        """
        if not self.covers(x):
            return self._loss_of_layers(x, target, batch, unknown)
        parameters = [p for p in self.twin.parameters() if p.requires_grad]
        loss, dice = _Loss.apply(self, x, target, batch, unknown, *parameters)  # type: ignore[no-untyped-call]
        return loss, dice

    @torch.no_grad()
    def overlaps(self, x: Tensor, target: Tensor, unknown: Sequence[int] = ()) -> list[Tensor]:
        """`VolumeLoss.overlaps` of each stage with a head, [3 K] each, for the Dice of several cases. Collective."""
        sums = {stage: self.sums_of(None, unknown) for stage in self.supervised}
        if self.covers(x):
            targets = self.targets_of(target)
            self.passes.forward(x, self.adding_up(targets, sums), targets)
        else:
            deep: dict[int, Tensor] = {}
            for stage, logits in ({0: self.twin(x, deep_logits=deep)} | deep).items():
                sums[stage].add(logits.movedim(1, -1), coarse(target, self.network.factors[stage]))
        for some in sums.values():
            some.finish(self.grid.communicator)
        return [some.overlaps for some in sums.values()]

    def sums_of(self, batch: DiceOfBatch | None, unknown: Sequence[int]) -> VolumeLoss:
        """What adds up the loss at one head.

        batch    the Dice of all cases of a step, if it is that
        unknown  classes or regions that nobody has annotated in this case
        """
        if self.regions:
            return RegionSums(self.regions, batch, unknown)
        return LossSums(self.network.classes, self.class_weights, batch, unknown)

    def with_batch(self, batch: Sequence[DiceOfBatch] | None) -> list[tuple[int, DiceOfBatch | None]]:
        """The stages with a head, each with its Dice of all cases, if there is one."""
        return [(stage, None if batch is None else batch[n]) for n, stage in enumerate(self.supervised)]

    def targets_of(self, target: Tensor) -> dict[str, Tensor]:
        """What the loss of each head compares with, by its name: of this rank's block, at the head's stage."""
        return {name: coarse(target, self.network.factors[stage])[0] for stage, name in self.supervised.items()}

    def adding_up(
        self, targets: Mapping[str, Tensor], sums: Mapping[int, VolumeLoss]
    ) -> Callable[[str, int, LogitSlabs], None]:
        """What adds the logits of each head to the sums of its stage."""

        def consume(name: str, stage: int, slabs: LogitSlabs) -> None:
            here = targets[name]
            for (first, last), rows in slabs:
                with self.work.meter.doing(Kind.HEAD):
                    sums[stage].add(rows.own[..., : self.network.classes], here[first:last])

        return consume

    def _loss_of_layers(
        self, x: Tensor, target: Tensor, batch: Sequence[DiceOfBatch] | None, unknown: Sequence[int]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        deep: dict[int, Tensor] = {}
        logits = {0: self.twin(x, deep_logits=deep)} | deep
        losses, scores = zip(
            *(
                loss_of_logits(
                    logits[n],
                    coarse(target, self.network.factors[n]),
                    self.grid.communicator,
                    self.sums_of(dice, unknown),
                )
                for n, dice in self.with_batch(batch)
            ),
            strict=True,
        )
        return cast(Tensor, sum(share * loss for share, loss in zip(self.shares, losses, strict=True))), scores[0]

    def logit_slabs(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """First plane and logits [1, K, planes, h, w] of one slab of this rank's block after another. Collective."""
        if not self.covers(x):
            features = self.twin(x, features_only=True)
            d, h, w = features.shape[2:]
            planes = head_slab_planes((d, h, w), self.network.classes)
            for start in range(0, features.shape[2], planes):
                yield start, self.twin.logits_layer(features[:, :, start : start + planes])
            return
        yield from self.streamed().logit_slabs(*self._streamed_input(x))

    def feature_slabs(self, x: Tensor, layout: Layout) -> Iterator[tuple[Range, Tensor]]:
        """What the head reads, for ranges of planes in turn, with a voxel more where the volume goes on. Collective.

        Forward only: gradients are off.
        """
        if self.covers(x):
            image = TensorImage(x, layout, self.grid, image_width(self.network, IN_PLACE, 1))
            yield from self.streamed().feature_slabs(image, layout)
        else:
            yield (0, x.shape[2]), with_far_ghosts(self.twin(x, features_only=True), layout, self.grid)

    def streamed(
        self, schedule: Schedule = IN_PLACE, store: Store | None = None, tell: Callable[[float], None] | None = None,
        journal: Journal | None = None,
    ) -> StreamedNetwork:  # fmt: skip
        """The same network, forward only and at the floor of memory. What training keeps in memory goes back first."""
        self.rest()
        return StreamedNetwork(self.twin, self.grids, schedule, store, tell, journal, self.precision, self.backend)

    def rest(self) -> None:
        """Give back the memory that passes keep for each other."""
        self.passes.rest()

    def _streamed_input(self, x: Tensor) -> tuple[TensorImage, Layout]:
        """Collective."""
        with self.passes.layouts(x) as layouts:
            return TensorImage(x, layouts[0], self.grid, image_width(self.network, IN_PLACE)), layouts[0]

    def covers(self, x: Tensor) -> bool:
        """Whether the program takes an input of this kind."""
        device = self.backend.device.type
        plain = x.device.type == device and x.dtype == torch.float32 and x.shape[0] == 1
        wanted = torch.is_grad_enabled() and x.requires_grad
        weight = next(self.twin.parameters())
        ours = self.covered and weight.device.type == device and weight.dtype == torch.float32
        return plain and not wanted and ours


def coarse(target: Tensor, factor: Triple) -> Tensor:
    """A block's classes [N, d, h, w] at every so manieth voxel of each axis: the volume's, as blocks begin on such."""
    d, h, w = factor
    return target[:, ::d, ::h, ::w]


def _as_rows(x: Tensor, stored: int) -> Rows:
    """[1, C, d, h, w] as rows of `stored` channels, the further ones zero."""
    rows = torch.zeros(*x.shape[2:], stored, device=x.device)
    rows[..., : x.shape[1]] = x[0].permute(1, 2, 3, 0)
    return Rows.of(rows)


class _Logits(torch.autograd.Function):
    """A whole forward and backward as one node of autograd."""

    @staticmethod
    def forward(ctx: Any, network: FusedNetwork, x: Tensor, *parameters: nn.Parameter) -> Tensor:
        parts: list[Tensor] = []

        def consume(name: str, stage: int, slabs: LogitSlabs) -> None:
            if stage == 0:
                parts.extend(rows.own[..., : network.network.classes] for _, rows in slabs)

        ctx.state = network.passes.forward(x, consume)
        ctx.network, ctx.parameters = network, parameters
        return torch.cat(parts).permute(3, 0, 1, 2).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        state, network = _once(ctx), ctx.network
        rows = _as_rows(grad, padded_channels(grad.shape[1]))
        slabs = dict.fromkeys(network.supervised.values(), ())
        gradients = network.passes.backward(state, slabs | {network.network.head.name: [((0, rows.sides[0]), rows)]})
        return None, None, *(gradients.get(p) for p in ctx.parameters)


class _Loss(torch.autograd.Function):
    """Forward, loss and backward as one node of autograd."""

    @staticmethod
    def forward(
        ctx: Any, network: FusedNetwork, x: Tensor, target: Tensor, batch: Sequence[DiceOfBatch] | None,
        unknown: Sequence[int], *parameters: nn.Parameter,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.sums = {stage: network.sums_of(dice, unknown) for stage, dice in network.with_batch(batch)}
        ctx.targets = network.targets_of(target)
        ctx.state = network.passes.forward(x, network.adding_up(ctx.targets, ctx.sums), ctx.targets)
        meter, label = network.work.meter, network.network.head.name
        with meter.during(label), meter.doing(Kind.HEAD):
            losses, scores = zip(*(sums.finish(network.grid.communicator) for sums in ctx.sums.values()), strict=True)
        loss = sum(share * value for share, value in zip(network.shares, losses, strict=True))
        ctx.network, ctx.parameters = network, parameters
        ctx.mark_non_differentiable(scores[0])
        return loss.float().to(x.device), scores[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        state, network = _once(ctx), ctx.network
        logits = network.passes.logits_again(state)
        slabs = {}
        for share, (stage, sums) in zip(network.shares, ctx.sums.items(), strict=True):
            name = network.supervised[stage]
            if name in logits:  # else other ranks have them
                slabs[name] = _logit_gradients(network, logits[name], ctx.targets[name], sums, share * float(grad))
        gradients = network.passes.backward(state, slabs)
        return None, None, None, None, None, *(gradients.get(p) for p in ctx.parameters)


def _logit_gradients(
    network: FusedNetwork, slabs: LogitSlabs, target: Tensor, sums: VolumeLoss, factor: float
) -> LogitSlabs:
    for (first, last), rows in slabs:
        logits = rows.own[..., : network.network.classes]
        with network.work.meter.doing(Kind.HEAD):
            sums.gradient(logits, target[first:last], factor, out=logits)
        yield (first, last), rows


def _once(ctx: Any) -> State:
    state: State | None = ctx.state
    ctx.state = None
    if state is None:
        raise RuntimeError("the fused network goes backward once for each forward")
    return state
