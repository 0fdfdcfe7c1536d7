"""Plans of networks whose tensors are stored as bfloat16, against what is there when they run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oracles import serial_grid
from planning.test_streamed_memory import CountingStore, config
from volseg.config import TrainingConfig
from volseg.errors import ConfigError
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.networks.unet import unet
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.fused.scratch import ScratchStore
from volseg.partition.layout import Layout
from volseg.partition.share import busy_shares
from volseg.planning.memory import Beside, segmenting_memory, training_memory
from volseg.planning.planner import make_plan
from volseg.planning.segmenting_pass import SegmentingPass, scratch_bytes
from volseg.planning.training_pass import TrainingPass
from volseg.planning.work import segmenting_work, training_work
from volseg.precision import BFLOAT16, FLOAT32
from volseg.program.build import train_program
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
