"""The finest stage never held: a pass over the image for each of its norms, and one for the head."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from volseg.program.resume import COARSE, stage_of
from volseg.program.step import Classify, Convolve, Keep, Lifted, Normalize, Pass, Step, View


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
    passes = []
    if COARSE not in known:
        passes += [_pass(chain[:count], through[:count], clears=count == down) for count in range(1, down + 1)]
    passes += [step for step in steps if stage_of(step) > 0]
    for count in range(down + 1, len(chain) + 1):
        if chain[count - 1].node.name not in known:
            passes.append(_pass(chain[:count], through[:count]))
            if journal:
                passes.append(Step(Keep(), chain[count - 1].node.name))
    return [*passes, Step(Pass(tuple(chain), tuple(through), head=head.op.node), head.label)]


def _pass(chain: Sequence[Convolve], views: Sequence[View], *, clears: bool = False) -> Step:
    last = chain[-1]
    return Step(Pass(tuple(chain), tuple(views), last.pooled, clears=clears), last.node.name)
