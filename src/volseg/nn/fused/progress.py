"""How much of a forward pass is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

from volseg.geometry import Triple
from volseg.networks.description import Network
from volseg.partition.window import Range
from volseg.program.ops import Convolve, Pass
from volseg.program.step import Program, Step
from volseg.program.tensors import Tensor


class Progress:
    """Counts planes of convolutions, each by its products.

    sides  of this rank's block of a tensor
    tell   is called with the share that is done, below 1
    whole  all that there is to do
    """

    def __init__(
        self, network: Network, program: Program, sides: Callable[[Tensor], Triple],
        tell: Callable[[float], None] | None,
    ) -> None:  # fmt: skip
        self._tell, self._done, self.whole = tell, 0.0, 0.0
        self._costs: dict[str, float] = {}
        for step in program.forward:
            for op in _convolved(step):
                depth, height, breadth = sides(op.output)
                products = sum(network.inputs_of(op.node)) * op.node.channels * prod(op.node.kernel)
                self._costs[op.node.name] = products * height * breadth
                self.whole += products * height * breadth * depth

    def count(self, names: Sequence[str], planes: Range) -> None:
        """Planes of these convolutions are done."""
        self._done += (planes[1] - planes[0]) * sum(self._costs[name] for name in names)
        if self._tell is not None and self.done < 1:  # the end is told once, by the caller
            self._tell(self.done)

    @property
    def done(self) -> float:
        """The share that is done."""
        return self._done / self.whole


def _convolved(step: Step) -> Iterator[Convolve]:
    match step.op:
        case Convolve() as op:
            yield op
        case Pass() as op:
            yield from op.convolutions
