"""The time model: what work there is, and what messages cost."""

from dataclasses import replace
from math import log2, prod

import pytest

from volseg.config import ModelConfig, TrainingConfig
from volseg.geometry import Triple
from volseg.networks.description import IMAGE, Convolution
from volseg.networks.unet import unet
from volseg.partition.layout import Layout
from volseg.planning.operations import Family
from volseg.planning.planner import forward_halo_bytes
from volseg.planning.profile import Cost, Network, Profile, Setting
from volseg.planning.time_model import Placing, TimePlan, segmenting_time, step_seconds, training_time
from volseg.planning.work import effort, segmenting_work, training_work
from volseg.precision import FLOAT32
from volseg.program.kinds import Kind
from volseg.program.ops import Convolve
from volseg.program.schedule import RECOMPUTE
from volseg.program.tensors import Tensor, View

MODEL = ModelConfig(in_channels=1, classes=3, base_channels=8, levels=2)
ALPHA, BETA, REDUCTION = 1e-5, 1e9, 2e-5


def machine(unit=1e-9):
    """Every operation takes `unit` for each product of channels and voxels."""
    costs = tuple(Cost(family, 8, 8, n**3, unit * 64 * n**3) for family in Family for n in (4, 64))
    network = Network(ALPHA, BETA, REDUCTION)
    return Profile("m", 1, 2**34, 1e12, 1e12, (Setting(1, 1, costs),), network, Network(1e-3, 1e8, 1e-3))


def layouts(shape, dims, model=MODEL):
    layout = Layout.even(shape, dims, model.multiple)
    return [layout.coarser(2**level) for level in range(model.levels + 1)]


def step_flops(model, voxels):
    """Of the direct sums of a training step: forward, two gradients of each, the image's first again and once."""
    total = 0.0
    for level, width in enumerate(model.widths):
        here = voxels / 8**level
        first = (model.in_channels, *model.widths)[level]
        image = level == 0
        total += 2 * 27 * here * (first * width * 3 + 3 * width * width)
        if level < model.levels:
            total += 3 * 2 * 27 * here * 3 * width * width
            total += (1 + 3) * 2 * here * model.widths[level + 1] * width
        assert not image or first == model.in_channels
    return total + 4 * 2 * voxels * model.widths[0] * model.classes  # the head's forward twice


def test_the_work_of_a_step_is_that_of_the_network():
    work = training_work(unet(MODEL), layouts((32, 32, 32), (1, 1, 1)))
    assert work.flops == pytest.approx(step_flops(MODEL, 32**3))
    assert not work.exchanges
    assert not work.reductions


def test_checkpointing_computes_the_first_convolutions_again():
    plain, again = (
        training_work(unet(MODEL), layouts((32, 32, 32), (1, 1, 1)), levels).flops for levels in ((), (1,))
    )  # fmt: skip
    width, here = MODEL.widths[1], 16**3
    encoder, decoder = MODEL.widths[0] * width, 2 * width * width
    assert again - plain == pytest.approx(2 * here * (27 * (encoder + decoder) + MODEL.widths[2] * width))


def test_forward_ghosts_are_those_that_the_planner_counts():
    """The plan's halo bytes are what a rank in the middle receives: as many as it sends."""
    model = ModelConfig(in_channels=8, classes=3, base_channels=8, levels=2)
    found = layouts((96, 96, 96), (3, 3, 3), model)
    forward = segmenting_work(unet(model), found)
    # The up-convolution is made from a tensor with ghosts, half of the channels that the planner counts for a joined
    # one lie a level deeper; so compare with all ghosts counted once where a tensor is read.
    sent = sum(exchange.bytes for exchange in forward.exchanges)
    assert 0.5 * forward_halo_bytes(unet(model), found[0]) < sent < 1.1 * forward_halo_bytes(unet(model), found[0])


def test_more_ranks_take_less_time_and_say_what_messages_cost():
    one = training_time(unet(MODEL), TrainingConfig(), layouts((64, 64, 64), (1, 1, 1)), machine())
    eight = training_time(unet(MODEL), TrainingConfig(), layouts((64, 64, 64), (2, 2, 2)), machine(), Placing(8, 1))
    assert one.communication == 0
    assert eight.communication > 0
    computing = eight.seconds - eight.communication
    assert computing == pytest.approx(one.seconds / 8, rel=0.02)
    assert sum(eight.by_kind().values()) == pytest.approx(eight.seconds)
    assert sum(eight.by_level.values()) == pytest.approx(eight.seconds)


def test_reductions_grow_with_the_logarithm_of_the_ranks():
    def reductions(ranks):
        found = layouts((4 * ranks, 8, 8), (ranks, 1, 1))
        plan = training_time(unet(MODEL), TrainingConfig(), found, machine(), Placing(ranks, 1))
        count = len(training_work(unet(MODEL), found).reductions)
        gradients = 2 * 4 * unet(MODEL).parameters() * (ranks - 1) / ranks / BETA
        return plan.by_kind()[Kind.REDUCTION] - gradients, count

    (two, count), (sixteen, same) = reductions(2), reductions(16)
    assert count == same
    assert two >= count * REDUCTION * log2(2)
    assert sixteen == pytest.approx(4 * two, rel=0.05)


def test_machines_are_further_apart_than_cores():
    found = layouts((64, 64, 64), (4, 2, 2))
    within, between = (
        training_time(unet(MODEL), TrainingConfig(), found, machine(), Placing(n, 1)).communication for n in (16, 4)
    )
    assert between > 3 * within


def test_replicas_sum_their_gradients_over_all_ranks():
    found = layouts((32, 32, 32), (1, 1, 1))
    alone, shared = (
        training_time(unet(MODEL), TrainingConfig(), found, machine(), Placing(8, 1), replicas) for replicas in (1, 4)
    )
    assert alone.communication == 0
    moved = 2 * 4 * unet(MODEL).parameters() * 3 / 4 / BETA
    assert shared.communication == pytest.approx(4 * REDUCTION + moved, rel=1e-3)  # gradients, and losses


def test_recompute_computes_the_finest_level_again():
    found = layouts((32, 32, 32), (1, 1, 1))
    held, again = segmenting_work(unet(MODEL), found), segmenting_work(unet(MODEL), found, RECOMPUTE)
    assert again.flops > 1.5 * held.flops
    fast, slow = (segmenting_time(unet(MODEL), found, machine(), s).seconds for s in ("in-place", RECOMPUTE))
    assert slow > fast


def test_blocks_are_those_of_the_busiest_rank():
    found = layouts((24, 8, 8), (4, 1, 1))  # 6 pieces of 4 on 4 ranks: the largest have 8 planes
    work = training_work(unet(MODEL), found)
    finest = [op.voxels for op in work.operations if op.level == 0 and op.kind is Kind.CONVOLUTION]
    assert set(finest) == {prod((8, 8, 8))}


def test_what_is_done_once_a_step_is_counted_once():
    one, other = TimePlan(), TimePlan()
    for plan, seconds in ((one, 3.0), (other, 5.0)):
        plan.add("enc0", Kind.CONVOLUTION, 0, seconds)
        plan.add("optimizer", Kind.OPTIMIZER, 0, 1.0)
    assert step_seconds([one]) == 4
    assert step_seconds([one, other, one]) == 12


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "expected"),
    [
        (16, (3, 3, 3), (1, 1, 1), 1),
        (16, (1, 3, 3), (1, 1, 1), 1),  # as many products a tap on D
        (64, (3, 3, 3), (1, 1, 1), 1),
        (64, (1, 3, 3), (1, 1, 1), 1.5),  # where a cube has pairs of planes
        (16, (3, 3, 3), (2, 2, 2), 2.25),
        (64, (1, 1, 1), (1, 1, 1), 1.5 * 2.25),
    ],
)
def test_kernels_that_were_not_measured_take_their_products_by_their_own_way(
    channels: int, kernel: Triple, stride: Triple, expected: float
) -> None:
    """Of a convolution in float32; an image of few channels is summed directly, whatever the kernel."""
    node = Convolution("one", ("half",), 0, channels, kernel, stride, False, "one")
    half = Tensor("half", 0, 0, channels)
    op = Convolve(node, (View(half, None),), Tensor("one", 0, 0, channels))
    assert effort(op, 1, FLOAT32) == pytest.approx(expected)
    image = replace(op, sources=(View(Tensor(IMAGE, 0, 0, 1), None),))
    assert effort(image, 1, FLOAT32) == 1


def test_what_is_counted_as_done_are_the_products_of_direct_sums_whatever_computes_them() -> None:
    """So that rates in GF/s compare: of kernels of other sizes and of strides, too."""
    network = unet(replace(MODEL, kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)), down="stride"))
    work = segmenting_work(network, layouts((32, 32, 32), (1, 1, 1)))
    done = {one.layer: one.flops for one in work.operations if one.kind is Kind.CONVOLUTION}
    nodes = [node for node in network.nodes if isinstance(node, Convolution) and node.name in done]
    assert len(nodes) == len(done) > 8
    for node in nodes:
        products = prod(node.kernel) * sum(network.inputs_of(node)) * node.channels * 32**3 / 8**node.stage
        assert done[node.name] == pytest.approx(2 * products), node.name
