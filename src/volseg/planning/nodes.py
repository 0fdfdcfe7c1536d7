"""Plans for machines of a cluster: how many of them, and how many ranks on each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from volseg.errors import PartitionError
from volseg.planning.search import Candidate, Question, fastest, fewest, fits, largest_possible
from volseg.planning.time_model import Placing

SYSTEM = 2 * 2**30
"""Bytes of a machine that are left to its system."""


@dataclass(frozen=True)
class Node:
    """A machine of a cluster; memory in bytes."""

    cores: int
    memory: int

    def limit(self, ranks: int) -> int:
        """Bytes each of so many ranks may use."""
        return max(0, self.memory - SYSTEM) // ranks


@dataclass(frozen=True)
class NodePlan:
    """A job on machines.

    per_node  ranks on each, with `threads` each; on the last one perhaps fewer
    question  that the run answers: its limit a rank
    """

    nodes: int
    per_node: int
    threads: int
    run: Candidate
    question: Question


def on_nodes(question: Question, node: Node, nodes: int | None = None) -> NodePlan | None:
    """The fewest machines that do, or with `nodes` so many, used as fast as can be; None where nothing fits.

    A rank a core, or fewer ranks of more threads where that is what makes it fit: each process costs half a GiB.
    """
    per_node = [n for n in range(node.cores, 0, -1) if node.cores % n == 0]
    placed = [placed_on(question, node, Placing(n, node.cores // n)) for n in per_node]
    least = [(one, found.ranks) for one in placed if (found := _fewest(one)) is not None]
    if not least:
        return None
    if nodes is None:
        nodes = min(-(-ranks // one.placing.per_machine) for one, ranks in least)
    plans = [plan for one, ranks in least if (plan := _filled(one, nodes, ranks)) is not None]
    return min(plans, key=lambda plan: plan.run.seconds) if plans else None


def placed_on(question: Question, node: Node, placing: Placing) -> Question:
    """The question for ranks that share a machine so: its limit is what each of them may use."""
    return replace(question, limit=node.limit(placing.per_machine), placing=placing)


def _fewest(placed: Question) -> Candidate | None:
    """On the grid that is given, or on any, the run on the fewest ranks that fits."""
    if placed.dims is None:
        return fewest(placed)
    run = fastest(placed, prod(placed.dims))
    return run if fits(placed, run) else None


def _filled(placed: Question, nodes: int, least: int) -> NodePlan | None:
    """The run on as many ranks of these machines as there is a grid for that fits; `least` ranks are the fewest."""
    placing = placed.placing
    fewest_here = max(least, (nodes - 1) * placing.per_machine + 1)
    most = min(nodes * placing.per_machine, placed.most_ranks)
    while most >= fewest_here:
        ranks = largest_possible(placed, most)
        if ranks < fewest_here:
            return None
        try:
            run = fastest(placed, ranks)
        except PartitionError:
            run = None  # no grid that the stages suit
        if run is not None and fits(placed, run):
            return NodePlan(nodes, placing.per_machine, placing.threads, run, placed)
        most = ranks - 1
    return None
