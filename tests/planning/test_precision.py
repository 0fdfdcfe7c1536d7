"""Plans of networks whose tensors are stored as bfloat16, against what is there when they run."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate
from math import prod
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from oracles import serial_grid
from planning.test_streamed_memory import CountingStore, config
from volseg.config import TrainingConfig
from volseg.errors import ConfigError
from volseg.geometry import Triple
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.networks.unet import unet
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.fused.scratch import ScratchStore
from volseg.nn.kernels import amx
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.layout import Layout
from volseg.partition.share import busy_shares
from volseg.planning.memory import SEGMENTING_PROCESS, Beside, segmenting_memory, training_memory
from volseg.planning.planner import make_plan
from volseg.planning.scratch import FLOAT, convolving_backward
from volseg.planning.segmenting_pass import SegmentingPass, scratch_bytes
from volseg.planning.training_pass import TrainingPass
from volseg.planning.work import segmenting_work, training_work
from volseg.precision import BFLOAT16, FLOAT32
from volseg.program.build import train_program
from volseg.program.ops import ConvolveBackward
from volseg.program.schedule import IN_PLACE, RECOMPUTE

SHAPE = (48, 24, 32)
LAYOUT = Layout.even(SHAPE, (1, 1, 1), 4)


def test_a_step_holds_what_is_planned_half_of_float32() -> None:
    fused = FusedNetwork(UNet(config()), serial_grid(), precision=BFLOAT16)
    fused.loss(torch.randn(1, 1, *SHAPE), torch.zeros(1, *SHAPE, dtype=torch.uint8))[0].backward()
    network, (share,) = unet(config()), busy_shares(LAYOUT, config().factors)
    half, whole = (TrainingPass(network, train_program(network), share, precision=p) for p in (BFLOAT16, FLOAT32))
    assert half.arena.chunks == list(fused.work.buffers.arena.chunks)
    assert half.tensors == 2 * fused.work.buffers.total == whole.tensors // 2
    assert sum(half.by_level.values()) * 2 == sum(whole.by_level.values())


def peak_of(run: Callable[[], object]) -> int:
    """The most bytes that torch had allocated at once while this ran, above those before; kernels begin with none."""
    gc.collect()  # else what went before may be given back while this runs
    workers.release()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        run()
    events = [e for e in measured.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(sizes))


DEEP, CUBE = config(levels=3, base_channels=32), (32, 32, 32)


def test_segmenting_takes_what_is_planned_kernels_and_all() -> None:
    layout = Layout.even(CUBE, (1, 1, 1), DEEP.multiple)
    twin = FusedNetwork(UNet(DEEP), serial_grid(), precision=BFLOAT16).eval()
    image = TensorImage(torch.randn(1, 1, *CUBE), layout, serial_grid(), image_width(twin.network, IN_PLACE))
    measured = peak_of(lambda: list(twin.streamed(IN_PLACE).logit_slabs(image, layout)))
    plan = segmenting_memory(unet(DEEP), layout, beside=Beside(), precision=BFLOAT16)
    planned = plan.activations + plan.work
    assert 0.98 * measured <= planned <= measured + 0.02 * (SEGMENTING_PROCESS + measured)


@pytest.mark.skipif(not amx.available(), reason=str(amx.refusal()))
def test_gradients_on_tiles_work_in_what_is_planned() -> None:
    """Each convolution's backward: scratch memory, its weight turned, the sums that become the weight's gradient."""
    settings = config(levels=1, base_channels=24, down="stride")
    ops = [step.op for step in train_program(unet(settings)).backward if isinstance(step.op, ConvolveBackward)]
    for op in ops:
        if op.targets:
            work = convolving_backward(op, SIDES[op.gradient.stage], 1, 1, BFLOAT16)
            measured = peak_of(partial(go_back, op, SIDES[op.gradient.stage]))
            assert (work.weights + work.scratch) * FLOAT == pytest.approx(measured, rel=0.1), op.node.name


SIDES = [(8, 24, 40), (4, 12, 20)]


def go_back(op: ConvolveBackward, sides: Triple) -> None:
    """The gradients of a convolution of so many results, on tiles; of zeros, which need no memory of their own."""
    node, channels = op.node, [getattr(source, "whole", source.tensor).channels for source in op.sources]
    shape = [side * step for side, step in zip(sides, node.stride, strict=True)]
    inputs = [Activation(Rows.of(ZEROS[: prod(shape) * c].view(*shape, c))) for c in channels]
    targets = [amx.Target(x.rows) for x in inputs]
    gradient = Rows.of(ZEROS[: prod(sides) * node.channels].view(*sides, node.channels))
    weight = LAYER[: node.channels * sum(channels) * prod(node.kernel)].view(node.channels, -1, *node.kernel)
    into = amx.WeightSums(weight, channels, prod(sides), node.stride)
    turned = amx.pack_turned_weight(weight, channels, node.stride)
    amx.backward(inputs, gradient, turned, targets, into)
    turned.release()
    into.finish()


ZEROS, LAYER = torch.zeros(48 * 2 * prod(SIDES[0]), dtype=torch.bfloat16), torch.zeros(48 * 48 * 27)


@pytest.mark.parametrize("schedule", [IN_PLACE, RECOMPUTE])
def test_segmenting_holds_what_is_planned(schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volseg.partition.slabs._ROLLING_FLOATS", 1)
    store, twin = CountingStore(), FusedNetwork(UNet(config()), serial_grid(), precision=BFLOAT16).eval()
    image = TensorImage(torch.randn(1, 1, *SHAPE), LAYOUT, serial_grid(), image_width(twin.network, schedule))
    for _ in twin.streamed(schedule, store).logit_slabs(image, LAYOUT):
        pass
    (share,) = busy_shares(LAYOUT, config().factors, halo=twin.network.halo)
    half, whole = (SegmentingPass(unet(config()), schedule, share, precision=p) for p in (BFLOAT16, FLOAT32))
    assert sum(store.sizes) == half.places.files
    assert max(half.held) * 2 == max(whole.held) > 0
    assert scratch_bytes(unet(config()), LAYOUT, precision=BFLOAT16) * 2 == scratch_bytes(unet(config()), LAYOUT)


def test_files_are_as_large_as_their_values(tmp_path: Path) -> None:
    taken = ScratchStore(tmp_path).take(1000, torch.bfloat16)
    assert taken.dtype == torch.bfloat16
    assert taken.untyped_storage().nbytes() == 2000


def test_bytes_a_voxel_of_a_large_volume() -> None:
    """The network alone, 16 channels and 4 halvings; the image and the mask are not counted in segmenting."""
    network, training = unet(config(levels=4, base_channels=16)), TrainingConfig(precision="bfloat16")
    layout = Layout.even((256, 256, 256), (1, 1, 1), 16)
    plan = segmenting_memory(network, layout, beside=Beside(), precision=BFLOAT16)
    assert plan.activations + plan.work <= 48 * 256**3
    small = Layout.even((128, 128, 128), (1, 1, 1), 16)
    plan = training_memory(network, training, small)
    assert plan.activations + plan.work <= 210 * 128**3


def test_ghosts_are_half_as_large_but_for_the_image_s() -> None:
    network = unet(config())
    layout = Layout.even((16, 16, 32), (1, 1, 2), 4)
    layouts = [layout.coarser(factor) for factor in network.factors]

    def sent(precision) -> list[int]:
        works = (
            training_work(network, layouts, precision=precision),
            segmenting_work(network, layouts, IN_PLACE, precision),
        )
        return [exchange.bytes for work in works for exchange in work.exchanges]

    half, whole = sent(BFLOAT16), sent(FLOAT32)
    assert half[0] == whole[0]  # training fetches the image's
    assert [2 * size for size in half[1:]] == whole[1:]


def test_what_runs_layer_by_layer_is_planned_in_float32_alone() -> None:
    network, training = unet(config(kernel_size=9, levels=1)), TrainingConfig(precision="bfloat16")
    with pytest.raises(ConfigError, match=r"--precision bfloat16: .* 9x9x9; use --precision float32"):
        make_plan((64, 64, 64), network, 1, "segment", training)
    assert make_plan((64, 64, 64), network, 1, "segment", replace(training, precision="float32")).memory.peak > 0
