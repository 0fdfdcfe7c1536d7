"""Plans for machines of a cluster: how many of them, and how many ranks on each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from volseg.errors import PartitionError
from volseg.partition.search import Candidate, Question, fastest, fewest, fits, largest_possible
from volseg.partition.time_model import Placing

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

    per_node  ranks on each, with `threads` each
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
    settings = [Placing(n, node.cores // n) for n in per_node]
    if nodes is None:
        needed = [_fewest_nodes(question, node, placing) for placing in settings]
        found = [n for n in needed if n is not None]
        if not found:
            return None
        nodes = min(found)
    plans = [plan for placing in settings if (plan := _filled(question, node, placing, nodes)) is not None]
    return min(plans, key=lambda plan: plan.run.seconds) if plans else None


def _placed(question: Question, node: Node, placing: Placing) -> Question:
    return replace(question, limit=node.limit(placing.per_machine), placing=placing)


def _fewest_nodes(question: Question, node: Node, placing: Placing) -> int | None:
    found = fewest(_placed(question, node, placing))
    return None if found is None else -(-found.ranks // placing.per_machine)


def _filled(question: Question, node: Node, placing: Placing, nodes: int) -> NodePlan | None:
    """The run on as many ranks of these machines as there is a grid for that fits."""
    placed = _placed(question, node, placing)
    ranks = largest_possible(placed, nodes * placing.per_machine)
    while ranks > (nodes - 1) * placing.per_machine:
        try:
            run = fastest(placed, ranks)
        except PartitionError:
            run = None
        if run is not None and fits(placed, run):
            return NodePlan(nodes, placing.per_machine, placing.threads, run, placed)
        ranks = largest_possible(placed, ranks - 1) if ranks > 1 else 0
    return None
