"""A network that is turned computes in the volume's axes what it computed in its own."""

from __future__ import annotations

import itertools

import pytest
import torch

from volseg.errors import PartitionError
from volseg.models.described import DescribedModule
from volseg.networks.axes import along, turned
from volseg.networks.description import Head, Network
from volseg.networks.layered import PixelUnshuffle
from volseg.networks.nnunet import Architecture, nnunet

OF = Architecture(
    family="plain", features=(4, 6, 8), kernels=((1, 3, 5), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), encoder=(1, 1, 1), decoder=(1, 1),
)  # fmt: skip


def test_values_go_to_the_axes_that_they_belong_to() -> None:
    # The network's first axis runs along the volume's last.
    assert along(("first", "second", "third"), (2, 0, 1)) == ("second", "third", "first")


@pytest.mark.parametrize("transpose", list(itertools.permutations(range(3))))
def test_logits_are_the_same_turned(transpose: tuple[int, int, int]) -> None:
    network = nnunet(OF, 1, 2)
    other = turned(network, transpose)
    torch.manual_seed(0)
    own, its = DescribedModule(network).eval(), DescribedModule(other).eval()
    axes = [2 + n for n in along((0, 1, 2), transpose)]
    state = {n: t.permute(0, 1, *axes) if t.dim() == 5 else t for n, t in own.state_dict().items()}
    its.load_state_dict(state)
    volume = torch.randn(1, 1, 8, 12, 16)  # of the network's axes
    with torch.no_grad():
        found, expected = its(volume.permute(0, 1, *axes)), own(volume).permute(0, 1, *axes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (other == network) == (transpose == (0, 1, 2))


def test_a_network_whose_channels_are_voxels_is_not_turned() -> None:
    nodes = (PixelUnshuffle("blocks", ("image",), 1, 8, (2, 2, 2)), Head("head", ("blocks",), 1, 2, "head"))
    network = Network(1, ((1, 1, 1), (2, 2, 2)), nodes, ("head",))
    assert turned(network, (0, 1, 2)) is network
    with pytest.raises(PartitionError, match="blocks makes voxels of channels"):
        turned(network, (2, 1, 0))
