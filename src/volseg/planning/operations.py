"""Operations, messages and reductions as the time model knows them.

They stand under the names that the meter uses, so a time that was measured can be laid beside the time that was
planned, layer by layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from volseg.program.kinds import Kind

DOUBLE = 8
GRADIENTS = "gradients of the weights"
"""As the meter calls the layer of what is summed over all ranks once a step."""


class Family(StrEnum):
    """Operations whose time follows one law of channels and voxels, so that measuring some of them tells the others."""

    FORWARD = "convolution"
    BACKWARD = "convolution backward"
    IMAGE_BACKWARD = "convolution of an image, backward"
    UP = "up-convolution"
    UP_BACKWARD = "up-convolution backward"
    NORM = "norm"
    NORM_BACKWARD = "norm backward"
    POOLING = "pooling backward"
    HEAD = "head, loss and their backward"
    LOAD = "reading a block"
    OPTIMIZER = "optimizer"
    REST = "everything else of a step"
    SEGMENT_FORWARD = "convolution, segmenting"
    SEGMENT_UP = "up-convolution, segmenting"
    SEGMENT_NORM = "norm, segmenting"
    SEGMENT_HEAD = "head and mask"
    SEGMENT_LOAD = "reading planes"
    SEGMENT_REST = "everything else of segmenting"
    REFERENCE = "a convolution alone"


@dataclass(frozen=True)
class Operation:
    """Work of one kind in one layer.

    layer            as the meter names it, such as "decoder 1.1, backward"
    inputs, outputs  channels; of the optimizer 1 and 1
    voxels           of the rank's block at the operation's output; of the optimizer the number of weights
    times            how often it is done, or of kernels of other sizes the share of a 3x3x3 one's products
    effort           time of a product over that of a 3x3x3 kernel's, which machines are measured by
    """

    layer: str
    kind: Kind
    family: Family
    level: int
    inputs: int
    outputs: int
    voxels: int
    times: float = 1.0
    effort: float = 1.0

    @property
    def flops(self) -> float:
        """Multiplications and additions of the direct sums; 0 for what is no product."""
        return self.times * flops(self.family, self.inputs, self.outputs, self.voxels)


_TAPS = {
    Family.FORWARD: 27, Family.SEGMENT_FORWARD: 27, Family.REFERENCE: 27,
    Family.BACKWARD: 54, Family.IMAGE_BACKWARD: 27,
    Family.UP: 1, Family.SEGMENT_UP: 1, Family.UP_BACKWARD: 3, Family.HEAD: 4, Family.SEGMENT_HEAD: 1,
}  # fmt: skip


def flops(family: Family, inputs: int, outputs: int, voxels: int) -> float:
    """Multiplications and additions of the direct sums of one operation of a family."""
    return 2.0 * _TAPS.get(family, 0) * inputs * outputs * voxels


@dataclass(frozen=True)
class Exchange:
    """Ghosts of one tensor.

    axes  for each axis that is cut: the axis, messages, and bytes sent, of the busiest rank
    grid  the level whose grid exchanges it: where a level's output comes back from fewer ranks, that of the level above
    """

    layer: str
    level: int
    axes: tuple[tuple[int, int, int], ...]
    grid: int

    @property
    def bytes(self) -> int:
        """Sent in all."""
        return sum(size for _, _, size in self.axes)


@dataclass(frozen=True)
class Reduction:
    """A sum or maximum over all ranks of a level's grid, of so many bytes; or something small told to all of them.

    group  whether it goes over a group of ranks whose blocks are merged at this level instead
    """

    layer: str
    level: int
    bytes: int
    ranks: int
    group: bool = False


@dataclass(frozen=True)
class Transfer:
    """Blocks of a level gathered on fewer ranks, or scattered from there: what the leader receives or sends."""

    layer: str
    level: int
    messages: int
    bytes: int


@dataclass
class Work:
    """All of it, in the order in which it is done."""

    operations: list[Operation] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    reductions: list[Reduction] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)

    @property
    def flops(self) -> float:
        """Of all operations."""
        return sum(operation.flops for operation in self.operations)
