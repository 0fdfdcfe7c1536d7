"""The U-Net's forward at the floor of memory: slab by slab, each output over its own input.

Three schedules, with the same bits:

    in-place   each level holds one tensor: its skip, or what is being computed (`partition.basin`)
    recompute  the finest level is never held: five passes over the image compute it again as far as each needs
               (`nn.fused.chain`), two for the encoder, three for the decoder and the head
    spill      in-place, with the tensors in files of a scratch folder, of which a few planes are in memory at a time
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from volseg.distributed.halo import ghost_widths
from volseg.distributed.merging import LevelGrids
from volseg.geometry import Box, Triple
from volseg.models.journal import COARSE, Journal
from volseg.models.layers import as_batch, context_of, layer_of, sit_out
from volseg.models.merged_levels import spread_output
from volseg.models.unet import UNet
from volseg.nn.fused import layer as fused
from volseg.nn.fused import merging
from volseg.nn.fused.buffers import Buffers
from volseg.nn.fused.chain import Chain, Stage
from volseg.nn.fused.image import Image, reach, read_planes
from volseg.nn.fused.layer import Held, Layer, Workplace, brick_sums, channel_signs, kept_channels, needs_statistics
from volseg.nn.fused.normalization import normalize
from volseg.nn.fused.scratch import Store
from volseg.nn.fused.up import Up
from volseg.nn.kernels import passes, pointwise, winograd
from volseg.nn.kernels.rows import Activation, Affine, Rows
from volseg.partition.basin import Basin, basins
from volseg.partition.layout import Layout
from volseg.partition.slabs import head_slab_planes, ranges, rolling_planes
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range
from volseg.program.kinds import Kind
from volseg.program.schedule import IN_PLACE, RECOMPUTE, Schedule, layer_costs, level_of


@dataclass
class _Level:
    """A level of a run: its layout and brick; its basin, and the memory of that; and the tensors that lie there.

    work  its grid, which is this rank's too
    """

    work: Workplace
    layout: Layout
    brick: Triple
    basin: Basin | None = None
    memory: Tensor | None = None
    held: dict[str, Held] = field(default_factory=dict)

    @property
    def sides(self) -> Triple:
        """Of this rank's block."""
        return self.work.grid.block(self.layout).shape


class StreamedUNet:
    """Runs a partitioned U-Net that the fused layers cover (`program.schedule.covers`), forward only.

    twin      the network as `partition_module` made it
    grids     of its levels
    schedule  see above
    store     where tensors lie
    tell      is called with the share of the work that is done, 0 to 1, after each slab
    journal   keeps what the next run need not compute again, and knows what the last one kept
    seconds   of each layer, in RECOMPUTE of each pass; what the caller does with a slab counts with the head

    A run must be gone through to its end, on all ranks.
    """

    def __init__(
        self, twin: UNet, grids: LevelGrids, schedule: Schedule = IN_PLACE, store: Store | None = None,
        tell: Callable[[float], None] | None = None, journal: Journal | None = None,
    ) -> None:  # fmt: skip
        self.twin, self.grids, self.config, self.schedule = twin, grids, twin.config, schedule
        self.grid = grids.grids[0]
        self.store = store or Store()
        self.tell = tell
        self.journal = journal if twin.config.levels else None
        self._affines: dict[str, Affine] = {}
        self.work = Workplace(self.grid, Buffers())
        self._levels: list[_Level] = []  # that this rank takes part in
        self._ports: dict[int, Held] = {}  # of a level with a grid of its own: what goes there, and what comes back
        self.seconds: dict[str, float] = {}
        self._costs: dict[str, float] = {}
        self._done = self._whole = 0.0
        self._beyond = 0

    # what comes out

    def logit_slabs(self, image: Image, layout: Layout) -> Iterator[tuple[int, Tensor]]:
        """First plane and logits [1, K, planes, h, w] of one slab of this rank's block after another. Collective."""
        head, classes = self.twin.head, self.config.classes
        weight = pointwise.pack_point(head.weight, head.bias)
        for planes, held in self._without_gradients(self.run(image, layout)):
            _, h, w = held.rows.sides
            step = head_slab_planes(held.rows.sides, classes)
            for first, last in ((a + planes[0], b + planes[0]) for a, b in ranges(planes[1] - planes[0], step)):
                with torch.no_grad(), self.work.meter.doing(Kind.HEAD):
                    logits = Rows.of(torch.empty(last - first, h, w, weight.channels))
                    pointwise.apply(
                        held.activation, weight, logits.seen_from((-first, 0, 0), logits.sides), (first, last)
                    )
                yield first, as_batch(logits.own[..., :classes])

    def feature_slabs(self, image: Image, layout: Layout) -> Iterator[tuple[Range, Tensor]]:
        """What the head reads, [1, C, planes + 1, h + 1, w + 1] for ranges of planes in turn. Collective.

        The further plane, row and column only where the volume goes on; good until the next are asked for.
        """
        activated = 0
        for planes, held in self._without_gradients(self.run(image, layout, beyond=1)):
            _, high = reach(layout, self.grid.coords, 1)
            last = min(planes[1] + 1, held.rows.sides[0] + high[0])
            with torch.no_grad(), self.work.meter.doing(Kind.HEAD):
                fresh = _part(held.rows, (max(activated, planes[0]), last), high)
                passes.activate(Activation(fresh, held.affine), fresh)
            activated = last
            yield planes, as_batch(_part(held.rows, (planes[0], last), high).own[..., : held.channels])

    def _without_gradients(self, slabs: Iterator[tuple[Range, Held]]) -> Iterator[tuple[Range, Held]]:
        """Not while the caller works on a slab."""
        while True:
            with torch.no_grad():
                found = next(slabs, None)
            if found is None:
                return
            yield found

    def run(self, image: Image, layout: Layout, beyond: int = 0) -> Iterator[tuple[Range, Held]]:
        """Ranges of this rank's planes, and there what the head reads; good until the next are asked for. Collective.

        beyond  voxels around the block that are wanted too, where the volume goes on: 0 or 1
        """
        # The up-convolution to voxels beyond the block reads a voxel more, which thin blocks do not have.
        thin = beyond and min(min(n.shape) for n in layout.at_level(1).blocks()) < 2 if self.config.levels else True
        recompute = self.schedule is RECOMPUTE and not thin
        self._begin(layout, RECOMPUTE if recompute else IN_PLACE, beyond)
        try:
            if recompute:
                yield from self._recompute(image, beyond)
            else:
                yield from self._in_place(image, beyond)
            if self.tell is not None:
                self.tell(1.0)
        finally:
            self._levels = []
            self._ports.clear()
            self.work.buffers.clear()

    # the two ways

    def _in_place(self, image: Image, beyond: int) -> Iterator[tuple[Range, Held]]:
        top, gone_on = self.config.levels, self._coarse_is_known()
        self._encode(0, self._image_slabs(image), ghosts=top > 0 or beyond > 0, pool=not gone_on)
        image.settled()
        image.close()
        if gone_on:
            self._fetch_coarse()
        else:
            self._coarse()
            self._keep_coarse()
        if top:
            self._decode(0, ghosts=beyond > 0)
        self.work.buffers.clear()
        last = self._levels[0].held["decoder 2" if top else "encoder 2"]
        last.wait()
        with self._during("head"):
            for planes in self._slabs(0, last.rows.sides[0]):
                yield planes, last
                self.store.relax()

    def _recompute(self, image: Image, beyond: int) -> Iterator[tuple[Range, Held]]:
        stages = [self._stage(part, number) for part in ("encoder", "decoder") for number in (1, 2)]
        if self._coarse_is_known():
            self._fetch_coarse()
        else:
            self._pass(image, stages[:1])
            self._pass(image, stages[:2], pool=True)
            self.work.buffers.clear()  # the coarser levels need their room
            self._coarse()
            self._keep_coarse()
        below = self._above(0)
        below.wait()
        stages[2].up = self._up(0, below)
        for count in (3, 4):
            if stages[count - 1].affine is None:
                self._pass(image, stages[:count])
                self._keep()
        chain = self._chain(image, stages, beyond)
        with self._during("head"):
            for planes, held in chain.run():
                self._count([stage.layer for stage in stages], planes)
                yield planes, held
        image.settled()
        image.close()

    def _coarse(self) -> None:
        """Down from level 1 to the deepest, and up to it again."""
        top, last = self.config.levels, self.grids.last
        for level in range(1, last + 1):
            self._gather_input(level)
            self._encode_coarse(level, ghosts=level < top or level not in self.grids.merges)
        if last < top:
            self._gather_input(last + 1)
            sit_out(self.twin, last + 1)
        for level in reversed(range(1, min(last + 1, top))):
            self._spread_output(level + 1)
            self._decode(level, ghosts=level not in self.grids.merges)
        if top:
            self._spread_output(1)

    def _encode_coarse(self, level: int, *, ghosts: bool) -> None:
        pooled = self._levels[level].held.pop("pooled")
        pooled.wait()
        slabs = ((planes, [pooled]) for planes in self._slabs(level, pooled.rows.sides[0]))
        self._encode(level, slabs, ghosts=ghosts)

    # levels with a grid of their own

    def _port(self, level: int, channels: int, ghosts: int) -> Held:
        """Room for a tensor of `level` on the grid of the level above, with so many ghosts where that is cut."""
        above = self._levels[level - 1]
        d, h, w = (n // 2 for n in above.sides)
        low, high = ghost_widths(above.work.grid, ghosts)
        shape = (*(n + a + b for n, a, b in zip((d, h, w), low, high, strict=True)), padded_channels(channels))
        return Held(Rows(self.store.take(prod(shape)).view(shape), low, (d, h, w)), channels)

    def _gather_input(self, level: int) -> None:
        """Where a level has a grid of its own, its input goes to those who take part in it. Collective."""
        merge = self.grids.merges.get(level)
        if merge is None:
            return
        own, rows = self._ports.pop(level), None
        layout = self._levels[level - 1].layout.at_level(1)
        if level <= self.grids.last:
            rows = self._place(level, own.channels, "high")
        with self._during(f"level {level}, gathered"):
            merging.gather(merge, layout, own.rows, rows, self.work.buffers)
        if rows is not None:
            whole = self._levels[level].held["pooled"] = Held(rows, own.channels, own.affine)
            self._levels[level].work.start_exchange(whole)
        self.store.relax()

    def _spread_output(self, level: int) -> None:
        """Where a level has a grid of its own, its output goes back to the grid of the level above. Collective."""
        merge = self.grids.merges.get(level)
        if merge is None:
            return
        above, whole = self._levels[level - 1], None
        if level <= self.grids.last:
            whole = self._levels[level].held[self._output(level)]
        spread = self._room_for_spread(level)
        layout = above.layout.at_level(1)
        with self._during(f"level {level}, scattered"):
            spread_output(self.twin, merge, level, layout, whole, spread, self.work.buffers)
        if whole is not None:
            self._release(level)
        above.work.start_exchange(spread)
        self._ports[level] = spread
        self.store.relax()

    def _room_for_spread(self, level: int) -> Held:
        return self._port(level, self.config.widths[level], self._ghosts_of(level))

    def _room_for_pooled(self, level: int) -> Rows:
        """For what `level` reads of the one above, on the grid of that."""
        channels = self.config.widths[level - 1]
        if level in self.grids.merges:
            return self._port(level, channels, 0).rows
        return self._place(level, channels, "high")

    def _hold_pooled(self, level: int, pooled: Held) -> None:
        if level in self.grids.merges:
            self._ports[level] = pooled
        else:
            self._levels[level].held["pooled"] = pooled

    def _release(self, level: int) -> None:
        """Nobody reads anything of a level any more."""
        self._ports.pop(level, None)
        if level <= self.grids.last:
            self._levels[level].held.clear()
            self._levels[level].memory = None

    # in place

    def _encode(self, level: int, slabs: Iterator[fused.Slab], *, ghosts: bool, pool: bool = True) -> None:
        first = self._convolve("encoder", level, 1, slabs, "low", ghosts=True)
        first.wait()
        falling = ((planes, [first]) for planes in reversed(self._slabs(level, first.rows.sides[0])))
        small = None
        if pool and level < self.config.levels:
            small = self._room_for_pooled(level + 1)
        self._convolve("encoder", level, 2, falling, "high", ghosts=ghosts, small=small)
        self._levels[level].held.pop("encoder 1")

    def _decode(self, level: int, *, ghosts: bool) -> None:
        planes = self._slabs(level, self._levels[level].held["encoder 2"].rows.sides[0])
        first = self._convolve("decoder", level, 1, self._skip_and_up(level, planes), "low", ghosts=True)
        first.wait()
        self._levels[level].held.pop("encoder 2")
        self._release(level + 1)
        falling = ((part, [first]) for part in reversed(planes))
        self._convolve("decoder", level, 2, falling, "high", ghosts=ghosts)
        self._levels[level].held.pop("decoder 1")

    def _skip_and_up(self, level: int, planes: Sequence[Range]) -> Iterator[fused.Slab]:
        """What a decoder's first convolution reads."""
        skip, below = self._levels[level].held["encoder 2"], self._above(level)
        skip.wait()
        below.wait()
        for part, up in self._up(level, below).slabs_of(self.work, planes):
            yield part, [skip, up]

    def _convolve(
        self, part: str, level: int, number: int, slabs: Iterator[fused.Slab], end: str, *, ghosts: bool,
        small: Rows | None = None,
    ) -> Held:  # fmt: skip
        here, layer = self._levels[level], self._layer(part, level, number)
        rows = self._place(level, layer.channels, end)
        with self._during(layer.label):
            output, pooled = fused.forward(
                here.work,
                layer,
                self._watched(slabs, layer),
                here.layout,
                here.brick,
                rows,
                small,
                ghosts=ghosts,
                small_ghosts=level + 1 not in self.grids.merges,
                known=self._affines.get(layer.label),
            )
        here.held[f"{part} {number}"] = output.held
        self._found(layer.label, output.held.affine)
        if pooled is not None:
            self._hold_pooled(level + 1, pooled)
        return output.held

    def _watched(self, slabs: Iterator[fused.Slab], layer: Layer) -> Iterator[fused.Slab]:
        """The slabs, told of when they are done."""
        for planes, inputs in slabs:
            yield planes, inputs
            self._count([layer], planes)
            self.store.relax()

    def _place(self, level: int, channels: int, end: str) -> Rows:
        """Room for a tensor at the low or the high end of a level's basin."""
        here, stored = self._levels[level], padded_channels(channels)
        basin = here.basin
        assert basin is not None
        if here.memory is None:
            if basin.host is None:
                here.memory = self.store.take(basin.size)
            else:
                host = self._levels[basin.host].memory
                assert host is not None
                here.memory = host[basin.offset : basin.offset + basin.size]
        begin = 0 if end == "low" else basin.at_high_end(stored)
        shape = (*(n + a + b for n, a, b in zip(basin.sides, basin.low, basin.high, strict=True)), stored)
        buffer = here.memory[begin : begin + basin.floats(stored)].view(shape)
        return Rows(buffer, basin.low, basin.sides)

    def _slabs(self, level: int, depth: int) -> list[Range]:
        basin = self._levels[level].basin
        assert basin is not None
        return ranges(depth, basin.planes)

    def _image_slabs(self, image: Image) -> Iterator[fused.Slab]:
        layout, coords = self._levels[0].layout, self.grid.coords
        for planes in self._slabs(0, self._levels[0].sides[0]):
            with self.work.meter.doing(Kind.FILES):
                held = read_planes(image, layout, coords, planes)
            yield planes, [held]

    # chains

    def _stage(self, part: str, number: int) -> Stage:
        layer = self._layer(part, 0, number)
        return Stage(layer, self._affines.get(layer.label))

    def _chain(self, image: Image, stages: Sequence[Stage], beyond: int = 0) -> Chain:
        step = rolling_planes(self._levels[0].sides, padded_channels(self.config.widths[0]))
        return Chain(self.work, self._levels[0].layout, image, stages, step, beyond)

    def _pass(self, image: Image, stages: Sequence[Stage], pool: bool = False) -> None:
        """A pass that finds the last stage's coefficients, and with `pool` its output pooled. Collective."""
        here, layer = self._levels[0], stages[-1].layer
        chain, stored = self._chain(image, stages), padded_channels(layer.channels)
        sums = brick_sums(here.sides, stored, here.brick) if needs_statistics(layer.norm) else None
        small = Held(self._room_for_pooled(1), layer.channels) if pool else None
        pooled = None if small is None else winograd.Pooled(small.rows, channel_signs(layer.norm, stored))
        if sums is not None or pooled is not None:
            with self._during(layer.label):
                for planes, _ in chain.run(sums, pooled):
                    self._count([stage.layer for stage in stages], planes)
            image.settled()
        if small is not None:
            if 1 not in self.grids.merges:
                self.work.start_exchange(small)
            self._hold_pooled(1, small)

        def raw() -> Iterator[Tensor]:
            for planes, part in chain.run():
                yield _part(part.rows, planes, (0, 0, 0)).own

        with self.work.meter.doing(Kind.NORM):
            stages[-1].affine, _ = normalize(
                layer.norm, layer.channels, stored, raw, sums, here.layout.shape, layer.slope, kept_channels(layer),
                self.grid.communicator,
            )  # fmt: skip
        self._found(layer.label, stages[-1].affine)
        if small is not None:
            small.affine = stages[-1].affine

    # going on after an interruption

    def _found(self, label: str, affine: Affine | None) -> None:
        """A layer's coefficients are known."""
        if affine is not None and level_of(label) == 0:
            self._affines[label] = affine

    def _coarse_is_known(self) -> bool:
        return self.journal is not None and COARSE in self._affines

    def _keep(self) -> None:
        if self.journal is not None:
            self.journal.keep(self._affines)

    def _keep_coarse(self) -> None:
        if self.journal is None:
            return
        below = self._above(0)
        assert below.affine is not None
        with self.work.meter.doing(Kind.FILES):
            self.journal.keep_coarse(self._coarse_box, self._relaxed(below.rows.own))
            self._affines[COARSE] = below.affine
            self.journal.keep(self._affines)

    def _relaxed(self, planes: Tensor) -> Iterator[Tensor]:
        """One plane after the other, none in memory for longer than needed."""
        for plane in planes:
            yield plane
            self.store.relax()

    def _fetch_coarse(self) -> None:
        """Instead of `_coarse`."""
        assert self.journal is not None
        channels, merged = self.config.widths[1], 1 in self.grids.merges
        below = self._room_for_spread(1) if merged else Held(self._place(1, channels, "high"), channels)
        below.affine = self._affines[COARSE]
        box = self._coarse_box
        with self.work.meter.doing(Kind.FILES):
            for z, plane in enumerate(self._relaxed(below.rows.own), start=box.start[0]):
                self.journal.fill_coarse(Box((z, *box.start[1:]), (z + 1, *box.stop[1:])), plane.unsqueeze(0))
        self.work.start_exchange(below)
        if merged:
            self._ports[1] = below
        else:
            self._levels[1].held[self._output(1)] = below
        self._done += sum(cost * self._depth(label) for label, cost in self._costs.items() if level_of(label) > 0)

    @property
    def _coarse_box(self) -> Box:
        """At level 1, on the grid of level 0."""
        return self._levels[0].layout.at_level(1).block(self.grid.coords)

    # both

    def _begin(self, layout: Layout, schedule: Schedule, beyond: int) -> None:
        context = context_of(self.twin)
        context.begin_pass_of(layout)
        context.end_pass()
        layouts = self.grids.agglomeration.layouts(layout, self.config.levels)
        works = [Workplace(grid, self.work.buffers) for grid in self.grids.grids]
        self._levels = [_Level(work, one, context.brick(one)[0]) for work, one in zip(works, layouts, strict=False)]
        self._beyond = beyond if schedule is RECOMPUTE else 0
        ghosts = [
            ghost_widths(work.grid, 1 if level in self.grids.merges else self._ghosts_of(level))
            for level, work in enumerate(works)
        ]
        widths = [padded_channels(width) for width in self.config.widths]
        sides = [here.sides for here in self._levels]
        for level, basin in basins(sides, ghosts, widths, schedule.finest_held).items():
            self._levels[level].basin = basin
        self._costs = self._own_costs(IN_PLACE, layouts)
        costs = self._own_costs(schedule, layouts)
        self._whole = sum(cost * self._depth(label) for label, cost in costs.items())
        self._done = 0.0
        self._affines = {} if self.journal is None else self.journal.affines()

    def _ghosts_of(self, level: int) -> int:
        """Voxels around its block that the up-convolution from a level reads, where the volume goes on."""
        return 1 + self._beyond * (level == 1)

    def _own_costs(self, schedule: Schedule, layouts: Sequence[Layout]) -> dict[str, float]:
        """The cost of a plane of each layer that this rank takes part in; planes of merged blocks are larger."""
        costs = {}
        for label, cost in layer_costs(self.config, schedule).items():
            level = level_of(label)
            if level <= self.grids.last:
                merged = prod(layouts[0].dims[1:]) / prod(layouts[level].dims[1:])
                costs[label] = cost * merged
        return costs

    def _depth(self, label: str) -> int:
        """Planes of this rank's block at a layer's level."""
        return self._levels[level_of(label)].sides[0]

    @contextmanager
    def _during(self, label: str) -> Iterator[None]:
        begin = time.perf_counter()
        with self.grid.communicator.meter.during(label):
            yield
        self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - begin

    def _count(self, layers: Sequence[Layer], planes: Range) -> None:
        """Planes of these layers are done."""
        self._done += (planes[1] - planes[0]) * sum(self._costs[layer.label] for layer in layers)
        share = self._done / self._whole
        if self.tell is not None and share < 1:  # the end is told once, by `run`
            self.tell(share)

    def _above(self, level: int) -> Held:
        """What the up-convolution to a level reads."""
        if level + 1 in self.grids.merges:
            return self._ports[level + 1]
        return self._levels[level + 1].held[self._output(level + 1)]

    def _output(self, level: int) -> str:
        """The tensor that a level gives to the one above."""
        return "encoder 2" if level == self.config.levels else "decoder 2"

    def _up(self, level: int, below: Held) -> Up:
        return Up(cast(nn.ConvTranspose3d, self.twin.up[level]), below)

    def _layer(self, part: str, level: int, number: int) -> Layer:
        return layer_of(self.twin, part, level, number)


def _part(rows: Rows, planes: Range, high: Triple) -> Rows:
    """Some planes of a block with the voxels after it on H and W, as a block of its own."""
    sides = planes[1] - planes[0], rows.sides[1] + high[1], rows.sides[2] + high[2]
    cut = [
        slice(low + first, low + first + side)
        for low, first, side in zip(rows.low, (planes[0], 0, 0), sides, strict=True)
    ]
    return Rows(rows.buffer[tuple(cut)], (0, 0, 0), sides)
