"""How much of a forward pass is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

from volseg.geometry import Triple
from volseg.networks.description import Convolution, Network
from volseg.partition.window import Range
from volseg.program.step import Convolve, Pass, Program, Step


class Progress:
    """Counts planes of convolutions, each by its products.

    sides  of this rank's block, of the stages that it takes part in
    tell   is called with the share that is done, below 1
    whole  all that there is to do
    """

    def __init__(
        self, network: Network, program: Program, sides: Sequence[Triple], tell: Callable[[float], None] | None
    ) -> None:
        self._tell, self._done = tell, 0.0
        self._costs = {
            node.name: sum(network.inputs_of(node)) * node.channels * prod(node.kernel) * prod(sides[node.stage][1:])
            for node in network.nodes
            if isinstance(node, Convolution) and node.stage < len(sides)
        }
        depths = {name: sides[network.stage_of(name)][0] for name in self._costs}
        self.whole = sum(self._costs[name] * depths[name] for step in program.forward for name in _convolved(step))

    def count(self, names: Sequence[str], planes: Range) -> None:
        """Planes of these convolutions are done."""
        self._done += (planes[1] - planes[0]) * sum(self._costs[name] for name in names)
        if self._tell is not None and self.done < 1:  # the end is told once, by the caller
            self._tell(self.done)

    @property
    def done(self) -> float:
        """The share that is done."""
        return self._done / self.whole


def _convolved(step: Step) -> Iterator[str]:
    match step.op:
        case Convolve() as op:
            yield op.node.name
        case Pass() as op:
            yield from (one.node.name for one in op.chain)
