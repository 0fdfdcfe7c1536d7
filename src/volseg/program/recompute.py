"""The finest stage never held: a pass over the image for each norm, for what enters the next stage, for the head."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from volseg.geometry import Triple
from volseg.networks.description import Network
from volseg.program.ops import Classify, Convolve, Keep, Normalize, Pass, Pool
from volseg.program.resume import COARSE, stage_of
from volseg.program.step import Step
from volseg.program.tensors import Lifted, View


def recomputed(steps: Sequence[Step], *, journal: bool = False, known: Collection[str] = ()) -> list[Step]:
    """The steps with those of the finest stage as passes.

    journal  whether coefficients are kept after each pass behind the coarse stages
    known    labels of the finest stage's layers whose coefficients an interrupted run kept
    """
    chain = [step.op for step in steps if isinstance(step.op, Convolve) and step.op.node.stage == 0]
    views = {step.op.view.tensor: step.op.view for step in steps if isinstance(step.op, Normalize)}
    head = next(step for step in steps if isinstance(step.op, Classify))
    assert isinstance(head.op, Classify)
    through = [views[op.output] for op in chain]
    down = next(n for n, op in enumerate(chain) if any(isinstance(source, Lifted) for source in op.sources))
    entering = next((step for step in steps if _enters(step)), None)
    passes = []
    if COARSE not in known:
        passes += [
            _pass(chain[:count], through[:count], clears=count == down and entering is None)
            for count in range(1, down + 1)
        ]
    if entering is not None and isinstance(entering.op, (Convolve, Pool)):
        first = tuple(chain[:down]), tuple(through[:down])
        passes.append(Step(Pass(*first, entering=entering.op, clears=True), entering.label))
    passes += [step for step in steps if stage_of(step) > 0 and step is not entering]
    for count in range(down + 1, len(chain) + 1):
        if chain[count - 1].node.name not in known:
            passes.append(_pass(chain[:count], through[:count]))
            if journal:
                passes.append(Step(Keep(), chain[count - 1].node.name))
    return [*passes, Step(Pass(tuple(chain), tuple(through), head=head.op.node), head.label)]


def halo_with_passes(network: Network, steps: Sequence[Step], beyond: int = 0) -> list[Triple]:
    """`Network.halo` where `beyond` voxels around the block are wanted of what the head reads.

    Where passes make voxels of the finest stage beyond the block, those of the second one beyond it are read.
    """
    d, h, w = (max(n, beyond) for n in network.halo[0])
    halo = [(d, h, w), *network.halo[1:]]
    for op in (step.op for step in steps if isinstance(step.op, Pass)):
        around = (beyond, beyond, beyond) if op.head is not None else op.wanted
        for convolution, width in zip(op.chain, op.widths(around), strict=True):
            for source in (source for source in convolution.sources if isinstance(source, Lifted)):
                d, h, w = (n + more for n, more in zip(width, convolution.node.reach, strict=True))
                below = zip(halo[source.tensor.stage], source.node.reach((d, h, w)), strict=True)
                d, h, w = (max(pair) for pair in below)
                halo[source.tensor.stage] = d, h, w
    return halo


def halo_of_own_grids(network: Network, halo: Sequence[Triple], merges: Collection[int]) -> list[Triple]:
    """What the tensors of each stage have of the ghosts `halo` (`halo_with_passes`) on the stage's own process grid.

    merges  stages whose process grid is coarser than that of the stage before: no pass reaches them
    """
    return [own if stage in merges else wide for stage, (own, wide) in enumerate(zip(network.halo, halo, strict=True))]


def _enters(step: Step) -> bool:
    """Whether a step makes a tensor of the second stage of one of the finest, which it must read activated."""
    match step.op:
        case Convolve() as op:
            return op.node.stage == 1 and any(source.tensor.stage == 0 for source in op.sources)
        case Pool() as op:
            return op.source.tensor.stage == 0
    return False


def _pass(chain: Sequence[Convolve], views: Sequence[View], *, clears: bool = False) -> Step:
    last = chain[-1]
    return Step(Pass(tuple(chain), tuple(views), last.pooled, clears=clears), last.node.name)
