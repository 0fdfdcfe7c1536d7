"""What the planner says a step consists of, against what the program does: reductions, and bytes of messages."""

from collections import Counter

import pytest
import torch

from volseg.config import ModelConfig
from volseg.distributed.communicator import MpiCommunicator
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.networks.architectures import described
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.gradients import sum_gradients
from volseg.partition.agglomeration import parse_agglomeration
from volseg.partition.layout import Layout
from volseg.planning.work import segmenting_work, training_work
from volseg.precision import BFLOAT16, FLOAT32
from volseg.program.schedule import Schedule

DIMS = {2: (2, 1, 1), 4: (2, 2, 1)}


class Watched:
    """The calls of all communicators of this rank: (bytes, ranks) of reductions, bytes sent as ghosts and as blocks."""

    def __init__(self, monkeypatch):
        self.reductions, self.ghosts, self.blocks = Counter(), 0, 0
        reduce, send = MpiCommunicator.reduce_all_in_place, MpiCommunicator.start_send_receive

        def watched_reduce(communicator, values, how="sum"):
            if communicator.size > 1:
                self.reductions[values.nbytes, communicator.size] += 1
            return reduce(communicator, values, how)

        def watched_send(communicator, sends, receives):
            sent = sum(buffer.nbytes for _, buffer in sends)
            if "gathered" in communicator.meter._layer or "scattered" in communicator.meter._layer:
                self.blocks += sent
            else:
                self.ghosts += sent
            return send(communicator, sends, receives)

        monkeypatch.setattr(MpiCommunicator, "reduce_all_in_place", watched_reduce)
        monkeypatch.setattr(MpiCommunicator, "start_send_receive", watched_send)

    def clear(self):
        self.reductions.clear()
        self.ghosts = self.blocks = 0


def network(communicator, norm, stages, deep=False, precision=FLOAT32, **settings):
    config = ModelConfig(**({"in_channels": 1, "classes": 3, "base_channels": 8, "levels": 2, "norm": norm} | settings))
    grid = ProcessGrid(communicator, DIMS[communicator.size])
    agglomeration = parse_agglomeration(stages, config.levels, grid.dims)
    layout = Layout.even((16, 16, 16), grid.dims, config.multiple)
    torch.manual_seed(0)
    twin = FusedNetwork(UNet(config, deep), grid, agglomeration=agglomeration, precision=precision)
    x = torch.randn(1, 1, *grid.block(layout).shape)
    return config, grid, layout, agglomeration.layouts(layout, config.factors), twin, x


def expected_reductions(work):
    """Those that are reductions: what a group is told is a broadcast, its float32 coefficients."""
    told = [r for r in work.reductions if r.group and r.bytes % 16]
    assert not told
    groups = [r for r in work.reductions if r.group and "backward" in r.layer]
    return Counter((r.bytes, r.ranks) for r in [*(r for r in work.reductions if not r.group), *groups])


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("stages", ["none", "2:1x1x1", "1:1x1x1"])
def test_a_training_step(communicator, monkeypatch, norm, stages):
    check_training(communicator, monkeypatch, *network(communicator, norm, stages))


@pytest.mark.parallel([2, 4])
def test_messages_of_bfloat16(communicator, monkeypatch):
    asked = network(communicator, "instance", "2:1x1x1", precision=BFLOAT16)
    check_training(communicator, monkeypatch, *asked)
    check_segmenting(communicator, monkeypatch, Schedule.RECOMPUTE, *asked)


SEGRESNET = {"architecture": "segresnet", "blocks": (1, 1, 1)}


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("stages", ["none", "2:1x1x1", "1:1x1x1"])
def test_a_training_step_of_a_segresnet(communicator, monkeypatch, stages):
    check_training(communicator, monkeypatch, *network(communicator, "instance", stages, **SEGRESNET))


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("name", ["interpolation", "strided", "anisotropic", "silu"])
@pytest.mark.parametrize("stages", ["none", "1:1x1x1", "2:1x1x1"])
def test_a_training_step_of_other_networks(communicator, monkeypatch, stages, name):
    check_training(communicator, monkeypatch, *network(communicator, "instance", stages, **OTHERS[name]))


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("stages", ["none", "1:1x1x1", "2:1x1x1"])
def test_a_training_step_with_deep_supervision(communicator, monkeypatch, stages):
    check_training(communicator, monkeypatch, *network(communicator, "instance", stages, deep=True, levels=3))


def check_training(communicator, monkeypatch, config, grid, layout, layouts, twin, x):
    """The reductions and messages of a step are those of its plan."""
    target = torch.zeros(1, *x.shape[2:], dtype=torch.uint8)
    twin.train()
    twin.loss(x, target)[0].backward()  # the first time it asks more
    watched = Watched(monkeypatch)
    twin.loss(x, target)[0].backward()
    sum_gradients(twin.parameters(), communicator)
    work = training_work(twin.network, layouts, precision=twin.precision)
    # A rank that does not lead takes no part in coarse levels; the model is that of a leader of all of them.
    if communicator.is_root:
        assert watched.reductions == expected_reductions(work)
        assert watched.ghosts == sum(exchange.bytes for exchange in work.exchanges)
    moved = sum(communicator.gather_all(watched.blocks))
    assert (moved > 0) == bool(work.transfers)
    # Each transfer is received, or sent, by a leader, and all groups are as large here.
    assert moved == sum(transfer.bytes for transfer in work.transfers)


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("schedule", [Schedule.IN_PLACE, Schedule.RECOMPUTE])
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("stages", ["none", "2:1x1x1", "1:1x1x1"])
def test_segmenting(communicator, monkeypatch, norm, stages, schedule):
    check_segmenting(communicator, monkeypatch, schedule, *network(communicator, norm, stages))


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("stages", ["none", "2:1x1x1", "1:1x1x1"])
def test_segmenting_by_a_segresnet(communicator, monkeypatch, stages):
    asked = network(communicator, "instance", stages, **SEGRESNET)
    check_segmenting(communicator, monkeypatch, Schedule.IN_PLACE, *asked)


OTHERS = {
    "interpolation": {"up": "trilinear"},
    "strided": {"down": "stride"},
    "silu": {"activation": "silu"},
    "anisotropic": {"kernels": ((1, 3, 3), (3, 3, 3), (5, 3, 1)), "strides": ((1, 2, 2), (2, 2, 2))},
}


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("schedule", [Schedule.IN_PLACE, Schedule.RECOMPUTE])
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("stages", ["none", "2:1x1x1", "1:1x1x1"])
def test_segmenting_by_other_networks(communicator, monkeypatch, stages, name, schedule):
    asked = network(communicator, "instance", stages, **OTHERS[name])
    check_segmenting(communicator, monkeypatch, schedule, *asked)


def check_segmenting(communicator, monkeypatch, schedule, config, grid, layout, layouts, twin, x):
    """The reductions and messages of a scan are those of its plan."""
    twin.eval()
    image = TensorImage(x, layout, grid, image_width(twin.network, schedule))
    watched = Watched(monkeypatch)
    for _ in twin.streamed(schedule).logit_slabs(image, layout):
        pass
    work = segmenting_work(described(config), layouts, schedule, twin.precision)
    if communicator.is_root:
        assert watched.reductions == expected_reductions(work)
        assert watched.ghosts == sum(exchange.bytes for exchange in work.exchanges)
    assert sum(communicator.gather_all(watched.blocks)) == sum(transfer.bytes for transfer in work.transfers)
