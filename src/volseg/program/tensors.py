"""Tensors of a program, and how steps read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from volseg.networks.description import Convolution, Interpolation, Network, Normalization, UpConvolution
from volseg.partition.layout import Layout
from volseg.partition.slabs import Lift
from volseg.partition.tiling import padded_channels


@dataclass(frozen=True)
class Tensor:
    """A rank's block of a tensor, with room for ghosts.

    stage     its resolution
    grid      the stage on whose process grid it lies
    channels  that are there; `stored` are rounded up to vectors
    """

    name: str
    stage: int
    grid: int
    channels: int

    @property
    def stored(self) -> int:
        """Channels in memory."""
        return padded_channels(self.channels)

    @property
    def gradient(self) -> Tensor:
        """The tensor of its gradient."""
        return replace(self, name=f"gradient of {self.name}")

    @property
    def is_gradient(self) -> bool:
        """Whether it is that of another tensor."""
        return self.name.startswith("gradient of ")


def layout_of(tensor: Tensor, network: Network, layouts: Sequence[Layout]) -> Layout:
    """The layout of a tensor on the grid that it lies on; `layouts` are those of the stages, each on its own grid."""
    if tensor.grid == tensor.stage:
        return layouts[tensor.grid]
    return layouts[tensor.grid].coarser(network.factor_between(tensor.grid, tensor.stage))


@dataclass(frozen=True)
class View:
    """A tensor as it is read: through the norm and activation of a node. `node` None: as it is."""

    tensor: Tensor
    node: Normalization | None = None

    @property
    def own_gradient(self) -> Tensor:
        """The gradient of the raw values as read through the norm alone, where there are other readers."""
        assert self.node is not None
        return replace(self.tensor, name=f"gradient of {self.node.name}")


@dataclass(frozen=True)
class Lifted:
    """The output of an up-convolution or an interpolation, of which a few planes exist at a time."""

    view: View
    node: UpConvolution | Interpolation

    @property
    def tensor(self) -> Tensor:
        """What it is made from."""
        return self.view.tensor

    @property
    def whole(self) -> Tensor:
        """The output itself; of an interpolation's there is a gradient."""
        return Tensor(self.node.name, self.node.stage, self.node.stage, self.node.channels)

    def lift(self, reader: Convolution) -> Lift:
        """How it follows from what it is made from, and how far beside a slab a convolution reads it."""
        return Lift(self.node.factors, reader.reach[0])


Source = View | Lifted
