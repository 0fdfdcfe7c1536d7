"""The plan of the streamed U-Net's memory holds what the network holds."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from oracles import GRIDS
from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.networks.unet import unet
from volseg.nn.blocks import take_block
from volseg.nn.fused.buffers import Buffers
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.fused.scratch import Store
from volseg.partition.agglomeration import parse_agglomeration
from volseg.partition.layout import Layout
from volseg.partition.share import busy_shares, share_of
from volseg.planning.memory import Beside, segmenting_memory
from volseg.planning.segmenting_pass import SegmentingPass, scratch_bytes
from volseg.planning.work import segmenting_work
from volseg.program.build import segment_program
from volseg.program.ops import Pass
from volseg.program.schedule import IN_PLACE, RECOMPUTE, SPILL, Schedule, schedules_of


def config(**changes: object) -> ModelConfig:
    return ModelConfig(**({"in_channels": 1, "classes": 3, "base_channels": 8, "levels": 2} | changes))  # type: ignore[arg-type]


class CountingStore(Store):
    """Notes what was asked for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def take(self, values: int, dtype: torch.dtype = torch.float32) -> Tensor:
        self.sizes.append(values)
        return super().take(values, dtype)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("schedule", [IN_PLACE, RECOMPUTE])
@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (config(), (48, 24, 32)),
        (config(levels=4, base_channels=4), (64, 32, 32)),
        (config(kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)), strides=((1, 2, 2), (2, 2, 2))), (48, 24, 32)),
        (config(levels=3, down="stride"), (48, 32, 32)),
        (config(up="trilinear", convolutions=3), (64, 32, 32)),
        (config(activation="silu"), (48, 24, 32)),
    ],
)
def test_basins_and_windows_are_the_planned_ones(
    settings: ModelConfig, shape: tuple[int, int, int], schedule: Schedule, communicator: Communicator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("volseg.partition.slabs._ROLLING_FLOATS", 1)
    totals: list[int] = []
    clear = Buffers.clear

    def noted(self: Buffers) -> None:
        totals.append(self.total)
        clear(self)

    monkeypatch.setattr(Buffers, "clear", noted)
    grid = ProcessGrid(communicator, GRIDS[communicator.size][0])
    layout = grid.layout(shape, settings.multiple)
    x = take_block(torch.randn(1, 1, *shape), grid, layout)
    store = CountingStore()
    streamed = FusedNetwork(UNet(settings), grid).eval().streamed(schedule, store)
    for _ in streamed.logit_slabs(TensorImage(x, layout, grid, image_width(streamed.network, schedule)), layout):
        pass
    (share,) = busy_shares(layout, settings.factors, halo=streamed.network.halo)
    walk = SegmentingPass(unet(settings), schedule, share)
    assert max(communicator.gather_all(sum(store.sizes))) == walk.places.files
    if schedule is RECOMPUTE:
        # Of the last pass: windows and the slab of the up-convolution; the walk has some planes of the image besides.
        held = 4 * max(communicator.gather_all(totals[-1]))
        planned = walk.last.by_level[0] - walk.slabs.logits
        assert 0.85 * planned <= held <= planned


@pytest.mark.parallel([2, 3, 4, 8])
@pytest.mark.parametrize("schedule", [IN_PLACE, RECOMPUTE, SPILL])
def test_basins_and_ports_of_an_agglomerated_network_are_the_planned_ones(
    schedule: Schedule, communicator: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On each rank; and what the store holds at once is within what the plan says for it."""
    monkeypatch.setattr("volseg.partition.slabs._ROLLING_FLOATS", 1)
    settings, shape = config(levels=4, base_channels=4), (96, 48, 64)
    for dims, text in AGGLOMERATED[communicator.size]:
        grid, stages = ProcessGrid(communicator, dims), parse_agglomeration(text, 4, dims)
        layout = grid.layout(shape, settings.multiple)
        x = take_block(torch.randn(1, 1, *shape), grid, layout)
        store = LiveStore()
        streamed = FusedNetwork(UNet(settings), grid, agglomeration=stages).eval().streamed(schedule, store)
        for _ in streamed.logit_slabs(TensorImage(x, layout, grid, image_width(streamed.network, schedule)), layout):
            pass
        walk = SegmentingPass(unet(settings), schedule, share_of(grid.coords, layout, settings.factors, stages))
        assert sum(store.sizes) == walk.places.files
        if not walk.places.in_files:
            assert 4 * store.most <= max(sum(moment.by_level) for moment in walk.moments), (dims, text)
        busiest = max(
            SegmentingPass(unet(settings), schedule, share).peak.total
            for share in busy_shares(layout, settings.factors, stages)
        )
        assert busiest == max(communicator.gather_all(walk.peak.total)), (dims, text)
        if schedule is not RECOMPUTE:
            assert scratch_bytes(unet(settings), layout, stages) == 4 * max(communicator.gather_all(sum(store.sizes)))


class LiveStore(CountingStore):
    """Notes also how much of it was there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0

    def take(self, values: int, dtype: torch.dtype = torch.float32) -> Tensor:
        taken = super().take(values, dtype)
        self.held += values
        self.most = max(self.most, self.held)
        weakref.finalize(taken.untyped_storage(), self._gone, values)
        return taken

    def _gone(self, values: int) -> None:
        self.held -= values


AGGLOMERATED = {
    2: [((2, 1, 1), "1:1x1x1"), ((1, 1, 2), "2:1x1x1"), ((1, 2, 1), "4:1x1x1")],
    3: [((1, 3, 1), "2:1x1x1"), ((3, 1, 1), "1:1x1x1")],
    4: [((2, 2, 1), "3:1x1x1"), ((4, 1, 1), "1:2x1x1,2:1x1x1"), ((1, 2, 2), "2:1x2x1,3:1x1x1")],
    8: [((2, 2, 2), "2:1x1x1"), ((4, 2, 1), "2:2x1x1,4:1x1x1"), ((2, 2, 2), "1:1x1x1")],
}


def test_levels_add_up_and_schedules_come_in_order() -> None:
    model = config(levels=4, base_channels=16)
    layout = Layout.even((256, 256, 256), (1, 1, 1), 16)
    plans = [segmenting_memory(unet(model), layout, schedule) for schedule in schedules_of(unet(model))]
    assert [plan.peak for plan in plans] == sorted((plan.peak for plan in plans), reverse=True)
    for plan in plans:
        assert sum(plan.by_level) == plan.activations
        assert plan.peak_at
    assert plans[0].activations <= 100 * 256**3  # bytes a voxel: each level once, a third more than the finest's 64


def test_what_comes_after_the_network_counts_where_it_needs_more() -> None:
    layout = Layout.even((32, 32, 32), (1, 1, 1), 4)
    plain = segmenting_memory(unet(config()), layout, beside=Beside(mask=1000))
    network = plain.activations + plain.work
    same = segmenting_memory(unet(config()), layout, beside=Beside(mask=1000, afterwards=network - 1000))
    assert same == plain
    more = segmenting_memory(unet(config()), layout, beside=Beside(mask=1000, afterwards=network - 1000 + 77))
    assert (more.peak - plain.peak, more.peak_at) == (77, "output")
    assert sum(more.by_level) == more.activations


def test_classes_do_not_raise_the_peak() -> None:
    layout = Layout.even((256, 256, 256), (1, 1, 1), 16)
    few, many = (
        segmenting_memory(unet(config(levels=4, base_channels=16, classes=n)), layout, beside=Beside(mask=256**3))
        for n in (2, 100)
    )
    assert many.peak <= 1.01 * few.peak


def test_spilling_counts_a_whole_tensor_where_faces_touch_all_its_pages() -> None:
    model = config(levels=4, base_channels=16)
    shape = (256, 256, 256)
    slices, columns = (Layout.even(shape, dims, 16) for dims in ((2, 1, 1), (1, 1, 2)))
    assert (
        segmenting_memory(unet(model), slices, SPILL).peak < 0.52 * segmenting_memory(unet(model), columns, SPILL).peak
    )


def test_recomputing_costs_about_twice_the_arithmetic() -> None:
    model = config(levels=4, base_channels=16)
    layouts = [Layout.even((64, 64, 64), (1, 1, 1), 16).coarser(2**level) for level in range(5)]
    once, again = (segmenting_work(unet(model), layouts, s).flops for s in (IN_PLACE, RECOMPUTE))
    assert 1 < again / once < 4
    assert schedules_of(unet(config(levels=0))) == [IN_PLACE, SPILL]


def test_recomputing_takes_one_more_pass_where_activated_values_are_pooled() -> None:
    def passes_of(**changes: object) -> int:
        program = segment_program(unet(config(**changes)), RECOMPUTE)
        return sum(isinstance(step.op, Pass) for step in program.forward)

    assert RECOMPUTE in schedules_of(unet(config(activation="gelu")))
    assert passes_of(activation="silu") == passes_of(down="stride") == 1 + passes_of(activation="sigmoid")
