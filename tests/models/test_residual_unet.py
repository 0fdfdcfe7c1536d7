"""The residual encoder: the plain module on any grid, its logits the same bits, layer by layer."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from models.test_unet import config, make, padded
from oracles import GRIDS, assert_matches_serial, relative_error, serial_grid
from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import ConfigError, PartitionError
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.networks.description import Convolution
from volseg.networks.unet import unet
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module
from volseg.partition.layout import Layout
from volseg.planning.agglomeration_choice import agglomeration_for
from volseg.planning.layer_memory import LayerWalk
from volseg.planning.planner import forward_halo_bytes
from volseg.program.checkpointing import made_again
from volseg.program.schedule import IN_PLACE, LAYERS, SPILL, covers, schedules_of

VARIANTS = {
    "instance": config(encoder="residual"),
    "group, blocks": config(encoder="residual", norm="group", base_channels=8, blocks=(2, 1, 2)),
    "batch, as many channels": config(encoder="residual", norm="batch", in_channels=4, blocks=(1, 1, 1)),
    "no norm": config(encoder="residual", norm="none", blocks=(1, 1, 1)),
}


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_partitioned_equals_serial(name: str, communicator: Communicator) -> None:
    """Logits and their bits, input gradient, every weight gradient, running statistics."""
    settings = VARIANTS[name]
    grid = ProcessGrid(communicator, GRIDS[communicator.size][-1])
    layout = grid.layout((16, 24, 16), settings.multiple)
    assert_matches_serial(
        make(settings), grid, layout, settings.in_channels, multiple_of=settings.multiple, tolerance=1e-3
    )


@pytest.mark.parallel([1, 2, 3, 4])
def test_logits_have_the_same_bits_on_any_grid(communicator: Communicator) -> None:
    settings = VARIANTS["instance"]
    model = make(settings).eval()
    whole = padded((19, 29, 31), settings.multiple)
    with torch.inference_mode():
        alone = FusedNetwork(model, serial_grid()).eval()(whole)
        assert relative_error(alone, model(whole)) < 1e-4
        layers = partition_module(model, serial_grid(), settings.multiple)(whole)
        assert relative_error(layers, alone) < 1e-5
        for dims in GRIDS[communicator.size]:
            grid = ProcessGrid(communicator, dims)
            block = take_block(whole, grid, grid.layout(tuple(whole.shape[2:]), settings.multiple))
            fused = FusedNetwork(model, grid).eval()
            assert fused.covers(block)
            assert torch.equal(gather_blocks(fused(block), grid), alone), dims


def test_a_block_is_he_s() -> None:
    """Its parts put together by hand, with the projection and without."""
    for channels in (4, 6):
        settings = config(encoder="residual", in_channels=channels, base_channels=6, levels=0, blocks=(1,))
        torch.manual_seed(0)
        model, x = UNet(settings).train(), torch.randn(1, channels, 8, 8, 8)
        block = model.encoder.get_submodule("0.0")
        y = x
        for path in ("body.0", "body.1", "", "body.3", "body.4"):
            y = block.get_submodule(path)(y) if path else torch.nn.functional.leaky_relu(y, 0.01)
        shortcut = x
        if channels != 6:
            assert block.get_submodule("skip.0").kernel_size == (1, 1, 1)
            shortcut = block.get_submodule("skip.1")(block.get_submodule("skip.0")(x))
        else:
            assert "skip" not in dict(block.named_children())
        expected = torch.nn.functional.leaky_relu(y + shortcut, 0.01)
        assert torch.equal(model(x, features_only=True), expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_models_of_memory_and_halos_count_its_layers(name: str) -> None:
    settings = VARIANTS[name]
    model = UNet(settings)
    assert unet(settings).parameters() == sum(p.numel() for p in model.parameters())
    found = [m for m in model.modules() if isinstance(m, torch.nn.Conv3d) and m.kernel_size == (3, 3, 3)]
    described = [n for n in unet(settings).nodes if isinstance(n, Convolution) and n.kernel == (3, 3, 3)]
    assert len(found) == len(described)
    counts = [len(list(level.children())) for level in model.encoder.children()]
    assert counts == list(settings.block_counts)
    layout = Layout.even((32, 32, 32), (1, 1, 2), settings.multiple)
    plain = replace(settings, encoder="plain", blocks=())
    assert forward_halo_bytes(unet(settings), layout) >= forward_halo_bytes(unet(plain), layout)


@pytest.mark.parametrize(
    "settings",
    [
        config(encoder="residual", base_channels=8),
        config(encoder="residual", base_channels=8, blocks=(2, 1, 1)),
        config(up="trilinear", base_channels=8),
    ],
    ids=["residual", "blocks", "plain"],
)
def test_the_plan_holds_what_autograd_keeps(settings: ModelConfig) -> None:
    """Between forward and backward, by the storage of the tensors that are saved."""
    twin = partition_module(UNet(settings), serial_grid(), settings.multiple).train()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = twin(torch.randn(1, 1, 32, 32, 32))
    assert logits.requires_grad
    walk = LayerWalk(unet(settings), Layout.even((32, 32, 32), (1, 1, 1), settings.multiple), training=True)
    walk.forward()
    assert walk.ledger.total == pytest.approx(sum(kept.values()), rel=0.02)
    walk.loss()
    walk.backward()
    assert set(walk.ledger.live) == {"image", "target"}, "something is never freed"


def test_default_blocks_are_nnunet_s() -> None:
    assert ModelConfig(encoder="residual", levels=5).block_counts == (1, 3, 4, 6, 6, 6)
    assert ModelConfig(levels=2).block_counts == (0, 0, 0)


def test_it_has_a_program_and_its_finest_stage_is_held() -> None:
    settings = VARIANTS["instance"]
    assert covers(settings)
    assert schedules_of(settings) == [IN_PLACE, SPILL]
    layout = Layout.even((16, 16, 16), (2, 1, 1), 4)
    assert str(agglomeration_for("1:1x1x1", settings, layout)) == "1:1x1x1"


def test_what_has_no_program_is_not_agglomerated() -> None:
    settings = config(encoder="residual", up="trilinear")
    assert schedules_of(settings) == [LAYERS]
    with pytest.raises(PartitionError, match="as up 1 is an interpolation; use --agglomerate none"):
        agglomeration_for("1:1x1x1", settings, Layout.even((16, 16, 16), (2, 1, 1), 4))


def test_dropout_follows_the_last_block() -> None:
    model = UNet(config(encoder="residual", dropout=0.3))
    assert all(isinstance(list(level.children())[-1], torch.nn.Dropout3d) for level in model.encoder.children())
    x = torch.randn(1, 1, 8, 8, 8)
    first = copy.deepcopy(model)(x)
    assert not torch.equal(first, model(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (1, 1, 1)}, "a plain encoder has none; set encoder = 'residual'"),
        ({"encoder": "residual", "blocks": (1, 1)}, "must be 3 numbers of 1 to 32"),
        ({"encoder": "residual", "blocks": (1, 0, 1)}, "must be 3 numbers of 1 to 32"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes).check()


def test_backward_makes_no_output_again_that_is_smaller_than_its_weights() -> None:
    """With 8 channels a voxel of stage 3 has 64 for 512 of the image, an eighth; stage 2 has 32 for 64."""
    network = unet(config(encoder="residual", levels=3, base_channels=8, blocks=(1, 1, 2, 2)))
    assert {f"encoder {stage}.1" for stage in range(3)} | {"encoder 2.3"} <= made_again(network, ())
    assert not any(name.startswith("encoder 3") for name in made_again(network, ()))
    assert "encoder 3.3" in made_again(network, (3,))
