"""Which levels fewer ranks compute: as it was asked for, or as the time model finds best."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from volseg.errors import PartitionError
from volseg.geometry import Triple
from volseg.networks.coverage import why_not_covered
from volseg.networks.description import Network
from volseg.partition.agglomeration import NONE, Agglomeration, parse_agglomeration
from volseg.partition.layout import Layout
from volseg.planning.time_model import TimePlan

_WORTH = 0.02
"""Of the whole time, that agglomeration must save."""


def choose_agglomeration(
    network: Network, layout: Layout, time_of: Callable[[Agglomeration], TimePlan]
) -> Agglomeration:
    """The stages that save most, one after the other, each at least a fiftieth of the time; none where none does.

    time_of  predicts the time with some stages
    """
    best, plan = NONE, time_of(NONE)
    while not why_not_covered(network):
        # Less communication is all that agglomeration can give.
        if plan.communication < _WORTH * plan.seconds:
            break
        tried = [(time_of(one), one) for one in _with_one_more(best, network.deepest, layout.dims)]
        found = min(tried, key=lambda pair: pair[0].seconds, default=None)
        if found is None or found[0].seconds > (1 - _WORTH) * plan.seconds:
            break
        plan, best = found
    return best


def _with_one_more(before: Agglomeration, deepest: int, finest: Triple) -> Iterator[Agglomeration]:
    """The stages with another one behind them: at each stage left, on each grid that groups of two or more lead to."""
    last = before.stages[-1][0] if before.stages else 0
    for level in range(last + 1, deepest + 1):
        dims = before.dims_at(level, finest)
        while dims != (1, 1, 1):
            d, h, w = (n // _smallest_factor(n) for n in dims)
            dims = d, h, w
            yield Agglomeration((*before.stages, (level, dims)))


def _smallest_factor(number: int) -> int:
    return next((n for n in range(2, number + 1) if number % n == 0), 1)


def agglomeration_for(text: str, network: Network, layout: Layout) -> Agglomeration:
    """What ``--agglomerate`` asks for by name, or "none", for a network on a layout.

    "auto" is none here: what it is, the time model says (`choose_agglomeration`).

    Raises ConfigError for another text, PartitionError where the network or its grid do not allow it.
    """
    if text == "auto":
        return NONE
    found = parse_agglomeration(text, network.deepest, layout.dims)
    reason = why_not_covered(network)
    if found.stages and reason:
        raise PartitionError(
            f"--agglomerate {text}: this network is not agglomerated, as {reason}; use --agglomerate none"
        )
    return found
