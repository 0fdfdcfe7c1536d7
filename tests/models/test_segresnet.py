"""SegResNet: what is its own beside what `test_described_networks` shows of all networks."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oracles import GRIDS, relative_error, serial_grid
from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import ConfigError
from volseg.geometry import Box
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.networks.architectures import described
from volseg.networks.description import IMAGE, ONES, Addition, Convolution, Head, Network, Normalization
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.gradients import sum_gradients
from volseg.nn.losses import dice_cross_entropy
from volseg.program.build import train_program
from volseg.program.ops import AddBackward, NormalizeBackward, UpConvolve
from volseg.program.schedule import IN_PLACE, SPILL, schedules_of

SETTINGS = ModelConfig(
    in_channels=1, classes=3, base_channels=8, levels=2, architecture="segresnet", norm="group", activation="relu"
)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("encoder", "residual"), ("down", "stride"), ("convolutions", 3), ("dropout", 0.1)],
)
def test_settings_of_a_unet_are_refused_and_each_remedy_works(setting, value):
    asked = replace(SETTINGS, **{setting: value})
    with pytest.raises(
        ConfigError, match=f"model.{setting} = {value!r}: a segresnet has no such setting; leave it out"
    ):
        asked.check()
    SETTINGS.check()
    replace(asked, architecture="unet").check()


def test_blocks_are_monais_by_default_and_can_be_set():
    assert replace(SETTINGS, levels=4).block_counts == (1, 2, 2, 4, 4)
    asked = replace(SETTINGS, blocks=(3, 1, 1))
    asked.check()
    assert sum(isinstance(node, Addition) and node.name.startswith("encoder 0") for node in described(asked).nodes) == 3
    with pytest.raises(ConfigError, match="must be 3 numbers"):
        replace(SETTINGS, blocks=(1, 1)).check()


@pytest.mark.parametrize(("up", "theirs"), [("transpose", "deconv"), ("trilinear", "nontrainable")])
def test_layers_and_logits_are_those_of_monai(up, theirs):
    nets = pytest.importorskip("monai.networks.nets")
    model = UNet(replace(SETTINGS, levels=3, up=up)).eval()
    net = nets.SegResNet(
        3, init_filters=8, in_channels=1, out_channels=3, upsample_mode=theirs, blocks_down=(1, 2, 2, 4)
    ).eval()
    weights = {name.replace("head.", "conv_final.2.conv."): value for name, value in model.state_dict().items()}
    net.load_state_dict(weights)
    x = torch.randn(1, 1, 16, 24, 16)
    with torch.no_grad():
        assert relative_error(net(x), model(x)) < 1e-6


def test_only_tensors_with_several_readings_have_several_gradients():
    steps = train_program(described(SETTINGS)).backward
    own = [step.op for step in steps if isinstance(step.op, NormalizeBackward) and step.op.total is not None]
    normed = {op.view.tensor.name for op in own}
    assert {"initial", "down 1", "up 0 sum"} <= normed
    # The last sum of a stage is read raw alone, by the skip connection and the next stage; a block's convolutions
    # through a norm alone or raw alone.
    assert not normed & {"encoder 0.2 sum", "encoder 0.1", "encoder 0.2", "decoder 0.1", "decoder 0.2 sum"}
    plain = train_program(described(ModelConfig(in_channels=1, classes=3, encoder="residual"))).backward
    assert all(step.op.total is None for step in plain if isinstance(step.op, NormalizeBackward))


def test_raw_terms_of_a_sum_are_not_kept_for_backward():
    program = train_program(described(SETTINGS))
    terms = {step.op.output for step in program.forward if isinstance(step.op, UpConvolve)}
    assert terms
    assert not any(terms & set(step.reads) for step in program.backward)
    assert all(len(step.reads) <= 2 for step in program.backward if isinstance(step.op, AddBackward))


@pytest.mark.parallel([1, 2])
def test_a_bias_before_raw_readings_has_its_gradient(communicator: Communicator) -> None:
    def convolution(name: str, reads: str) -> Convolution:
        return Convolution(name, (reads,), 0, 8, (3, 3, 3), ONES, bias=True, module=f"layers.{name}")

    nodes = (
        convolution("1", IMAGE), convolution("2", "1"),
        Normalization("1, activated", ("1",), 0, 8, "instance", 0.0, module="layers.3"),
        convolution("4", "1, activated"), Addition("sum", ("4", "2"), 0, 8), Head("head", ("sum",), 0, 3, "head"),
    )  # fmt: skip
    network = Network(1, (ONES,), nodes, ("layers", "head"))
    torch.manual_seed(3)
    model = UNet(replace(SETTINGS, levels=0), described=network).train()
    whole, target = torch.randn(1, 1, 12, 16, 20), torch.randint(0, 3, (1, 12, 16, 20), dtype=torch.uint8)
    plain = copy.deepcopy(model).double()
    dice_cross_entropy(plain(whole.double()), target, serial_grid().communicator)[0].backward()
    for dims in GRIDS[communicator.size]:
        grid, own = ProcessGrid(communicator, dims), copy.deepcopy(model)
        layout = grid.layout((12, 16, 20), ONES)
        here = target[(slice(None), *grid.block(layout).slices)]
        FusedNetwork(own, grid).loss(take_block(whole, grid, layout), here)[0].backward()
        sum_gradients(own.parameters(), communicator)
        expected = dict(plain.named_parameters())
        for key, p in own.named_parameters():
            assert relative_error(p.grad, expected[key].grad.float(), floor=1e-2) < 2e-4, (key, dims)


class Kept:
    """A journal in memory."""

    def __init__(self) -> None:
        self.coefficients: dict = {}
        self.planes: dict[int, Tensor] = {}

    def affines(self):
        return dict(self.coefficients)

    def keep(self, affines):
        self.coefficients = dict(affines)

    def keep_coarse(self, box: Box, slabs):
        self.planes = {z: slab.clone() for z, slab in enumerate(slabs, start=box.start[0])}

    def fill_coarse(self, box: Box, out: Tensor):
        out.copy_(torch.stack([self.planes[z] for z in range(box.start[0], box.stop[0])]))


@pytest.mark.parallel([1, 2, 4])
def test_going_on_behind_the_coarse_stages_gives_the_same_bits(communicator: Communicator) -> None:
    torch.manual_seed(4)
    model, whole = UNet(SETTINGS).eval(), torch.randn(1, 1, 16, 24, 32)
    assert schedules_of(model.network) == [IN_PLACE, SPILL]
    grid = ProcessGrid(communicator, GRIDS[communicator.size][0])
    layout = grid.layout((16, 24, 32), SETTINGS.multiple)
    journal, results = Kept(), []
    for _ in range(2):
        network = FusedNetwork(model, grid).eval().streamed(IN_PLACE, None, None, journal)
        image = TensorImage(take_block(whole, grid, layout), layout, grid, image_width(model.network, IN_PLACE))
        parts = [part.clone() for _, part in network.logit_slabs(image, layout)]
        results.append(gather_blocks(torch.cat(parts, 2), grid))
        assert "coarse" in journal.coefficients
    assert torch.equal(*results)
    with torch.no_grad():
        assert torch.equal(results[0], FusedNetwork(model, serial_grid()).eval()(whole))
