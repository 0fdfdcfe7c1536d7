"""What layers hold, planned from a description, against what autograd keeps: kernels and strides per axis, dropout."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch

from oracles import serial_grid
from volseg.config import ModelConfig
from volseg.geometry import Triple
from volseg.models.described import DescribedModule
from volseg.networks.description import Convolution, MaxPool, Network, Node, UpConvolution
from volseg.networks.unet import unet
from volseg.nn.convert import partition_module
from volseg.partition.layout import Layout
from volseg.planning.layer_memory import LayerWalk
from volseg.planning.planner import forward_halo_bytes, halo_voxels

SHAPE: Triple = (12, 32, 24)
FLAT: Triple = (1, 2, 2)


def anisotropic(config: ModelConfig) -> Network:
    """The U-Net of `config` with kernels 1x3x3 at stage 0 and strides 1x2x2 to stage 1."""

    def flat(node: Node) -> Node:
        match node:
            case Convolution() if node.stage == 0 and node.kernel == (3, 3, 3):
                return replace(node, kernel=(1, 3, 3))
            case MaxPool() if node.stage == 1:
                return replace(node, window=FLAT)
            case UpConvolution() if node.stage == 0:
                return replace(node, factors=FLAT)
        return node

    network = unet(config)
    nodes = tuple(flat(node) for node in network.nodes)
    return Network(network.in_channels, (network.strides[0], FLAT, *network.strides[2:]), nodes, network.modules)


def config(**changes: object) -> ModelConfig:
    """Of a small network."""
    return replace(ModelConfig(in_channels=1, classes=3, base_channels=8, levels=2), **changes)


NETWORKS = {
    "anisotropic": anisotropic(config()),
    "anisotropic, residual": anisotropic(config(encoder="residual", blocks=(1, 2, 1))),
    "no norm": unet(config(norm="none", encoder="residual", blocks=(1, 1, 1))),
    "ReLU without a norm": unet(config(norm="none", activation="relu", kernel_size=5)),
    "dropout": unet(config(dropout=0.3, up="trilinear")),
    "SiLU behind a norm, dropout": unet(config(activation="silu", dropout=0.3)),
    "sigmoid behind a norm": unet(config(activation="sigmoid")),
    "sigmoid without a norm": unet(config(activation="sigmoid", norm="none")),
    "kernels of one voxel": unet(config(kernel_size=1)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_plan_holds_what_autograd_keeps(name: str) -> None:
    """Between forward and backward, by the storage of the tensors that are saved; afterwards nothing."""
    network = NETWORKS[name]
    twin = partition_module(DescribedModule(network), serial_grid(), 4).train()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = twin(torch.randn(1, 1, *SHAPE))
    assert logits.requires_grad
    walk = LayerWalk(network, Layout.even(SHAPE, (1, 1, 1), 4), training=True)
    walk.forward()
    assert walk.ledger.total == pytest.approx(sum(kept.values()), rel=0.03)
    walk.loss()
    walk.backward()
    assert set(walk.ledger.live) == {"image", "target"}, "something is never freed"


def test_segmenting_holds_the_joined_input_its_window_and_the_output_at_the_peak() -> None:
    network = unet(config(kernel_size=5))
    walk = LayerWalk(network, Layout.even(SHAPE, (1, 1, 1), 4), training=False)
    walk.forward()
    voxels, window = prod(SHAPE), prod(n + 4 for n in SHAPE)
    assert walk.ledger.peak == 4 * (voxels + 16 * voxels + 16 * window + 8 * voxels)
    assert walk.ledger.peak_at == "decoder 0.1"
    assert set(walk.ledger.live) == {"image", "decoder 0.2, activated"}, "what the head reads stays"


def test_halos_are_those_of_each_convolution_on_each_axis() -> None:
    network = anisotropic(config(levels=1))
    along_d = Layout.even((16, 32, 32), (4, 1, 1), 4)
    coarse = [n for n in network.nodes if isinstance(n, Convolution) and n.kernel == (3, 3, 3)]
    assert {node.stage for node in coarse} == {1}, "those of the finest stage have no halo along D"
    channels = sum(sum(network.inputs_of(node)) for node in coarse)
    assert forward_halo_bytes(network, along_d) == 4 * halo_voxels(along_d.coarser(2)) * channels
    along_w = Layout.even((16, 32, 32), (1, 1, 4), 4)
    assert forward_halo_bytes(network, along_w) > forward_halo_bytes(network, along_d)


def test_ghosts_before_and_after_a_block_may_differ() -> None:
    """As those of a strided convolution of 3 do, which reads no voxel behind its block."""
    for ranks, ghosts in ((1, 0), (2, 1), (3, 1), (4, 1)):
        layout = Layout.even((48, 8, 8), (ranks, 1, 1))
        assert halo_voxels(layout, (1, 1, 1), (0, 0, 0)) == ghosts * 64
    assert halo_voxels(Layout.even((48, 8, 8), (3, 1, 1)), (2, 0, 0), (1, 0, 0)) == 3 * 64
    assert halo_voxels(Layout.even((48, 8, 8), (2, 1, 1)), (2, 0, 0), (1, 0, 0)) == 2 * 64
