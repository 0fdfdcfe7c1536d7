"""What `plan-partition` was asked, and everything it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from volseg.config import Config
from volseg.geometry import Triple
from volseg.partition.explanation import why_chosen, why_fewest, why_scaling, why_split
from volseg.partition.nodes import Node, NodePlan, on_nodes
from volseg.partition.plain_memory import plain_training_bytes
from volseg.partition.profile import Profile
from volseg.partition.search import (
    Candidate,
    Question,
    Scaling,
    candidate,
    fastest,
    fewest,
    fits,
    largest_possible,
    powers_up_to,
    scaling,
    splits,
)
from volseg.partition.time_model import Placing


@dataclass(frozen=True)
class Asked:
    """A volume, a network, and what there is to run it on.

    ranks                 to plan for; several for the scaling, none for the fewest that fit
    limit                 bytes a rank may use
    dims                  the grid of a replica, where it is given
    node_memory           bytes of a machine, with so many `cores_per_node`; `nodes` of them, or the fewest that fit
    """

    shape: Triple
    settings: Config
    tasks: Sequence[str]
    profile: Profile
    ranks: Sequence[int] = ()
    limit: int | None = None
    dims: Triple | None = None
    replicas: int = 1
    threads: int = 1
    node_memory: int | None = None
    cores_per_node: int | None = None
    nodes: int | None = None
    agglomerate: str = "none"

    def question(self, task: str) -> Question:
        """Of one task."""
        per_machine = max(1, (self.cores_per_node or self.profile.cores) // self.threads)
        placing = Placing(per_machine, self.threads)
        return Question(
            self.shape, self.settings.model, self.settings.training, task, self.profile, self.limit, placing, self.dims,
            self.agglomerate,
        )  # fmt: skip

    @cached_property
    def node(self) -> Node | None:
        """A machine, where whole ones are planned."""
        if self.node_memory is None or self.cores_per_node is None:
            return None
        return Node(self.cores_per_node, self.node_memory)


@dataclass(frozen=True)
class TaskAnswer:
    """Of one task.

    run      the plan
    least    the fewest ranks that fit; None where there is no limit, or nothing fits
    by_split the ranks as one replica and as several, most cases a second first; in training
    scaling  over the numbers of ranks that were asked for
    nodes    on whole machines
    fits     whether `run` keeps to the limit; on machines whether there is a plan
    reasons  in sentences
    """

    run: Candidate
    least: Candidate | None
    by_split: tuple[Candidate, ...]
    scaling: Scaling | None
    nodes: NodePlan | None
    fits: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """By task; the first one's run decides the grid that is shown."""

    tasks: dict[str, TaskAnswer]
    plain_bytes: int

    @property
    def first(self) -> Candidate:
        """The run that is shown first."""
        return next(iter(self.tasks.values())).run


def answer(asked: Asked) -> Answer:
    """Everything. Raises PartitionError where the volume cannot be split as asked."""
    questions = {task: asked.question(task) for task in asked.tasks}
    least = {task: fewest(question) for task, question in questions.items()}
    ranks = max(asked.ranks, default=0)
    if len(asked.ranks) > 1:  # of a range what there is a grid for
        ranks = largest_possible(next(iter(questions.values())), ranks)
    if not ranks:
        ranks = max([found.ranks for found in least.values() if found is not None], default=asked.replicas)
    tasks = {task: _answer(asked, question, least[task], ranks) for task, question in questions.items()}
    return Answer(tasks, plain_training_bytes(asked.settings.model, asked.shape))


def _answer(asked: Asked, question: Question, least: Candidate | None, ranks: int) -> TaskAnswer:
    replicas = asked.replicas if question.task == "train" else 1
    found = scaling(question, powers_between(asked.ranks)) if len(asked.ranks) > 1 else None
    nodes = None
    if asked.node is not None:
        nodes = on_nodes(question, asked.node, asked.nodes)
    if nodes is not None:
        run, question = nodes.run, nodes.question
    elif asked.dims is not None:
        run = candidate(question, asked.dims, replicas)
    else:
        run = fastest(question, ranks, replicas)
    by_split: list[Candidate] = []
    if question.task == "train" and run.ranks > 1:
        by_split = splits(question, run.ranks)
    reasons = _reasons(question, run, least, by_split, found, nodes)
    fit = nodes is not None if asked.node is not None else fits(question, run)
    return TaskAnswer(run, least, tuple(by_split), found, nodes, fit, tuple(reasons))


def _reasons(
    question: Question, run: Candidate, least: Candidate | None, by_split: Sequence[Candidate], found: Scaling | None,
    nodes: NodePlan | None,
) -> list[str]:  # fmt: skip
    reasons = [why_chosen(question, run)]
    if question.limit is not None and nodes is None:
        reasons.append(why_fewest(question, least))
    if by_split:
        whole = next((c for c in by_split if c.replicas == run.replicas), run)
        reasons.append(why_split(by_split[0], whole))
    if found is not None:
        reasons.append(why_scaling(found))
    return reasons


def powers_between(counts: Sequence[int]) -> list[int]:
    """The numbers asked for; of a range of two its ends and the powers of two between."""
    if len(counts) != 2:
        return sorted(set(counts))
    low, high = sorted(counts)
    return sorted({low, *(n for n in powers_up_to(high) if n > low)})
