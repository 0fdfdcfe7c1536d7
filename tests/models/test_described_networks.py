"""Networks of every kind that a description can say: run by their programs, they are the plain torch modules."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oracles import GRIDS, relative_error, serial_grid
from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import PartitionError
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.networks.activations import activation_named
from volseg.networks.architectures import described
from volseg.networks.coverage import why_not_covered
from volseg.networks.deep_supervision import without_training_heads
from volseg.networks.description import Convolution, Network
from volseg.networks.nnunet import Architecture, Family, nnunet
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.fused.scratch import ScratchStore
from volseg.nn.gradients import sum_gradients
from volseg.nn.losses import dice_cross_entropy
from volseg.partition.agglomeration import parse_agglomeration
from volseg.partition.ghosts import check_blocks
from volseg.partition.layout import Layout, padded_shape
from volseg.partition.share import busy_shares, share_of
from volseg.planning.segmenting_pass import SegmentingPass
from volseg.planning.training_pass import TrainingPass
from volseg.program.build import train_program
from volseg.program.schedule import IN_PLACE, SPILL, schedules_of


def config(**changes) -> Network:
    return described(ModelConfig(**({"in_channels": 1, "classes": 3, "base_channels": 4, "levels": 2} | changes)))


def of_nnunet(family: Family, **changes) -> Network:
    """As nnU-Net's planner makes them, with biases before the norms, but narrow."""
    usual = {
        "features": (4, 8, 12), "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)), "encoder": (1, 2, 1), "decoder": (1, 2),
    }  # fmt: skip
    return without_training_heads(nnunet(Architecture(family=family, **(usual | changes)), 1, 3))


def with_biases(network: Network) -> Network:
    """With a bias in every convolution."""
    nodes = [replace(node, bias=True) if isinstance(node, Convolution) else node for node in network.nodes]
    return replace(network, nodes=tuple(nodes))


THIN = {"kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)), "strides": ((1, 2, 2), (2, 2, 2))}
NETWORKS = {
    "residual": config(encoder="residual", blocks=(1, 2, 1)),
    "residual, group norm": config(encoder="residual", norm="group", base_channels=8, blocks=(2, 1, 1)),
    "residual, batch norm, two channels": config(encoder="residual", norm="batch", in_channels=2, blocks=(1, 1, 1)),
    "residual, no norm, relu": config(encoder="residual", norm="none", blocks=(1, 1, 1), activation="relu"),
    "residual, strided": config(encoder="residual", blocks=(1, 2, 1), down="stride"),
    "anisotropic": config(**THIN),
    "anisotropic, residual, strided": config(**THIN, encoder="residual", blocks=(1, 1, 2), down="stride"),
    "strided": config(down="stride"),
    "three convolutions": config(convolutions=3),
    "one convolution": config(convolutions=1, features=(8, 12, 20)),
    "kernels of 5": config(kernel_size=5, levels=1),
    "kernels of each size": config(kernels=((1, 5, 7), (3, 1, 5), (1, 1, 3))),
    "segresnet": config(architecture="segresnet", base_channels=8, blocks=(1, 2, 1), activation="relu"),
    "segresnet, group norm": config(
        architecture="segresnet", norm="group", base_channels=8, blocks=(1, 1, 1), in_channels=2
    ),
    "segresnet, no norm": config(architecture="segresnet", norm="none", blocks=(1, 1, 1)),
    "anisotropic segresnet, batch norm": config(**THIN, architecture="segresnet", norm="batch", blocks=(2, 1, 1)),
    "silu": config(activation="silu"),
    "silu, residual, batch norm": config(activation="silu", encoder="residual", norm="batch", blocks=(1, 1, 1)),
    "gelu, anisotropic, one convolution": config(**THIN, activation="gelu", convolutions=1),
    "gelu by tanh, segresnet": config(architecture="segresnet", blocks=(1, 1, 1), activation="gelu_tanh"),
    "sigmoid, no norm": config(activation="sigmoid", norm="none", kernels=((3, 3, 3), (1, 1, 1), (5, 1, 3))),
    "segresnet, trilinear": config(architecture="segresnet", up="trilinear", base_channels=8, blocks=(1, 1, 1)),
    "anisotropic segresnet, nearest": config(**THIN, architecture="segresnet", up="nearest", blocks=(1, 1, 1)),
    "trilinear": config(up="trilinear"),
    "nearest, group norm": config(up="nearest", norm="group", base_channels=8),
    "anisotropic, trilinear, residual": config(**THIN, up="trilinear", encoder="residual", blocks=(1, 1, 2)),
    "trilinear, pooled on one axis": config(
        up="trilinear", strides=((2, 1, 1), (1, 2, 2)), kernels=((1, 3, 1), (3, 1, 3), (1, 3, 3))
    ),
    "kernels of 5, trilinear": config(up="trilinear", kernel_size=5, levels=1),
    "plain of nnU-Net": of_nnunet("plain", encoder=(2, 2, 2), decoder=(2, 2)),
    "plain of nnU-Net, batch norm, relu": of_nnunet("plain", norm="batch", activation=activation_named("relu")),
    "residual encoder of nnU-Net": of_nnunet("residual encoder"),
    "residual of nnU-Net": of_nnunet("residual", features=(4, 8, 8)),
    "plain of nnU-Net, norms without scales": of_nnunet("plain", affine=False),
    "plain of nnU-Net, no norm": of_nnunet("plain", norm="none"),
    "group norm behind biases": with_biases(config(norm="group", base_channels=8)),
    "pooled on one axis": config(strides=((2, 1, 1), (1, 2, 2)), kernels=((3, 1, 1), (3, 3, 3), (1, 3, 3))),
}


def make(settings: Network) -> UNet:
    torch.manual_seed(4)
    model = UNet(ModelConfig(architecture="imported"), described=settings)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model


def volume(settings: Network, shape: tuple[int, int, int] = (15, 22, 30)) -> Tensor:
    whole = padded_shape(shape, settings.multiple)
    return torch.randn(1, settings.in_channels, *whole, generator=torch.Generator().manual_seed(1))


def grids(settings: Network, communicator: Communicator, whole: Tensor) -> list[tuple[int, int, int]]:
    """Those that leave every rank a block that is as thick as what is read beyond it."""
    suited = []
    for dims in GRIDS[communicator.size]:
        with contextlib.suppress(PartitionError):
            layout = Layout.even(tuple(whole.shape[2:]), dims, settings.multiple)
            check_blocks([layout.coarser(factor) for factor in settings.factors], settings.halo)
            suited.append(dims)
    assert suited
    return suited


def targets(whole: Tensor) -> Tensor:
    return torch.randint(0, 3, (1, *whole.shape[2:]), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def logits_of_torch(model: UNet, whole: Tensor) -> Tensor:
    """In float64."""
    with torch.no_grad():
        return copy.deepcopy(model).eval().double()(whole.double())


def logits_of_one_rank(model: UNet, whole: Tensor) -> Tensor:
    with torch.no_grad():
        return FusedNetwork(copy.deepcopy(model).eval(), serial_grid()).eval()(whole)


def training_of_torch(model: UNet, whole: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by the plain module in float64, these as float32."""
    plain = copy.deepcopy(model).double()
    loss = dice_cross_entropy(plain(whole.double()), targets(whole), serial_grid().communicator)[0]
    loss.backward()
    return float(loss.detach()), {key: p.grad.float() for key, p in plain.named_parameters()}


def gradients_of_one_rank(model: UNet, whole: Tensor) -> dict[str, Tensor]:
    plain = copy.deepcopy(model).train()
    FusedNetwork(plain, serial_grid()).loss(whole, targets(whole))[0].backward()
    return {key: p.grad for key, p in plain.named_parameters()}


@pytest.mark.parallel([3, 8])
@pytest.mark.parametrize("name", ["residual, strided", "anisotropic", "three convolutions", "segresnet"])
def test_bits_are_the_same_on_odd_and_many_ranks(name: str, communicator: Communicator, tmp_path) -> None:
    test_logits_are_those_of_torch_and_have_the_same_bits_on_any_grid(name, communicator, tmp_path)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_torch_and_have_the_same_bits_on_any_grid(
    name: str, communicator: Communicator, tmp_path
) -> None:
    settings = NETWORKS[name]
    model, whole = make(settings).eval(), volume(settings)
    assert not why_not_covered(model.network)
    expected, alone = communicator.on_root(lambda: (logits_of_torch(model, whole), logits_of_one_rank(model, whole)))
    assert relative_error(alone, expected.float()) < 1e-5
    for dims in grids(settings, communicator, whole):
        grid = ProcessGrid(communicator, dims)
        layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
        block = take_block(whole, grid, layout)
        for schedule in schedules_of(model.network):
            store = ScratchStore(tmp_path) if schedule is SPILL else None
            network = FusedNetwork(model, grid).eval().streamed(schedule, store)
            width = image_width(model.network, schedule)
            image = TensorImage(block, layout, grid, width)
            parts = [part.clone() for _, part in network.logit_slabs(image, layout)]
            assert torch.equal(gather_blocks(torch.cat(parts, 2), grid), alone), (dims, schedule)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_torch(name: str, communicator: Communicator) -> None:
    settings = NETWORKS[name]
    model, whole = make(settings).train(), volume(settings)
    plain_loss, expected = communicator.on_root(lambda: training_of_torch(model, whole))
    for dims in grids(settings, communicator, whole)[:2]:
        grid = ProcessGrid(communicator, dims)
        layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
        for checkpoints in ((), (0, 1)):
            own = copy.deepcopy(model)
            fused = FusedNetwork(own, grid, checkpoints)
            block = take_block(whole, grid, layout)
            here = targets(whole)[(slice(None), *grid.block(layout).slices)]
            loss, _ = fused.loss(block, here)
            loss.backward()
            sum_gradients(own.parameters(), communicator)
            assert abs(float(loss) / plain_loss - 1) < 1e-5
            for key, p in own.named_parameters():
                error = relative_error(p.grad, expected[key], floor=1e-2)
                assert error < 2e-4, (key, dims, checkpoints, float(error))
            assert fused.work.buffers.idle


STAGES = {2: ((2, 1, 1), "1:1x1x1"), 3: ((1, 3, 1), "2:1x1x1"), 4: ((2, 2, 1), "1:2x1x1,2:1x1x1")}


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_fewer_ranks_for_coarse_stages_give_the_same(name: str, communicator: Communicator) -> None:
    settings, (dims, text) = NETWORKS[name], STAGES[communicator.size]
    if settings.deepest == 1:
        text = "1:1x1x1"
    model, whole = make(settings), volume(settings)
    grid, stages = ProcessGrid(communicator, dims), parse_agglomeration(text, settings.deepest, dims)
    layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
    block, here = take_block(whole, grid, layout), targets(whole)[(slice(None), *grid.block(layout).slices)]
    alone, expected = communicator.on_root(
        lambda: (logits_of_one_rank(model, whole), gradients_of_one_rank(model, whole))
    )
    with torch.no_grad():
        network = FusedNetwork(copy.deepcopy(model).eval(), grid, agglomeration=stages).eval()
        assert torch.equal(gather_blocks(network(block), grid), alone)
    own = copy.deepcopy(model).train()
    fused = FusedNetwork(own, grid, agglomeration=stages)
    fused.loss(block, here)[0].backward()
    sum_gradients(own.parameters(), communicator)
    for key, p in own.named_parameters():
        assert relative_error(p.grad, expected[key], floor=1e-2) < 1e-5, key
    share = share_of(grid.coords, layout, settings.factors, stages, halo=model.network.halo)
    planned = TrainingPass(model.network, train_program(model.network, share.merges, share.last), share)
    assert planned.tensors == 4 * fused.work.buffers.total


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_memory_is_planned_by_the_steps_that_run(name: str, communicator: Communicator) -> None:
    settings = NETWORKS[name]
    model, whole = make(settings), volume(settings)
    grid = ProcessGrid(communicator, grids(settings, communicator, whole)[0])
    layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
    fused = FusedNetwork(model, grid)
    block = take_block(whole, grid, layout)
    fused.loss(block, targets(whole)[(slice(None), *grid.block(layout).slices)])[0].backward()
    (share,) = busy_shares(layout, settings.factors, halo=model.network.halo)
    planned = TrainingPass(model.network, train_program(model.network), share)
    assert max(communicator.gather_all(fused.work.buffers.total)) * 4 == planned.tensors
    store = Counting()
    network = FusedNetwork(model, grid).eval().streamed(IN_PLACE, store)
    image = TensorImage(block, layout, grid, image_width(model.network, IN_PLACE))
    for _ in network.logit_slabs(image, layout):
        pass
    assert max(communicator.gather_all(store.most)) * 4 == planned_lanes(SegmentingPass(model.network, IN_PLACE, share))


def planned_lanes(planned: SegmentingPass) -> int:
    """Bytes of the basins at the moment with most of them."""
    return max(moment.parts["tensors of the levels"] + moment.parts["halos"] for moment in planned.moments)


class Counting(ScratchStore):
    """Memory of which it is known how much there was at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def take(self, values: int, dtype: torch.dtype = torch.float32) -> Tensor:
        import weakref

        tensor = torch.empty(values, dtype=dtype)
        self.now += values
        self.most = max(self.most, self.now)
        weakref.finalize(tensor.untyped_storage(), self._gone, values)
        return tensor

    def _gone(self, values: int) -> None:
        self.now -= values

    def relax(self) -> None:
        pass
