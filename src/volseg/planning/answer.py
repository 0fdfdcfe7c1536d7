"""What `plan-partition` was asked, and everything it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from volseg.config import Config
from volseg.geometry import Triple
from volseg.networks.architectures import described
from volseg.networks.deep_supervision import with_training_heads, without_training_heads
from volseg.networks.description import Network
from volseg.planning.command import UNKNOWN, Origin, run_command
from volseg.planning.explanation import (
    why_chosen,
    why_fewest,
    why_no_machines,
    why_resolutions,
    why_scaling,
    why_split,
)
from volseg.planning.memory import MemoryPlan
from volseg.planning.nodes import Node, NodePlan, on_nodes
from volseg.planning.plain_memory import plain_training_bytes
from volseg.planning.profile import Profile
from volseg.planning.resolutions import RunPlan, plan_run
from volseg.planning.sampling import Sampling
from volseg.planning.search import (
    Candidate,
    Question,
    Scaling,
    fastest,
    fewest,
    fits,
    largest_possible,
    scaling,
    splits,
)
from volseg.planning.time_model import Placing


@dataclass(frozen=True)
class Asked:
    """A volume, a network, and what there is to run it on.

    ranks           to plan for; several for the scaling, none for the fewest that fit
    limit           bytes a rank may use
    dims            the grid of a replica, where it is given
    replicas        in training
    cases           to train on; None where their number is not known
    threads         of each rank
    cores_per_node  of a machine; None for those of the profile's
    node_memory     bytes of a machine, where whole machines are planned; `nodes` of them, or the fewest that fit
    origin          where network and scan come from
    stored          the network of a run; None: that of the settings
    why_network     why kernels and strides are what they are; empty where nothing was chosen
    """

    shape: Triple
    settings: Config
    tasks: Sequence[str]
    profile: Profile
    ranks: Sequence[int] = ()
    limit: int | None = None
    dims: Triple | None = None
    replicas: int = 1
    cases: int | None = None
    threads: int = 1
    node_memory: int | None = None
    cores_per_node: int | None = None
    nodes: int | None = None
    agglomerate: str = "none"
    origin: Origin = UNKNOWN
    stored: Network | None = None
    why_network: str = ""

    @cached_property
    def network(self) -> Network:
        """As it segments."""
        return described(self.settings.model) if self.stored is None else without_training_heads(self.stored)

    def question(self, task: str) -> Question:
        """Of one task."""
        per_machine = max(1, (self.cores_per_node or self.profile.cores) // self.threads)
        placing = Placing(per_machine, self.threads)
        training = self.settings.training
        deep = task == "train" and training.deep_supervision
        network = with_training_heads(self.network) if deep else self.network
        return Question(
            self.shape, network, training, task, self.profile, self.limit, placing, self.dims, self.agglomerate,
            Sampling.of(self.settings),
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

    question that `run` answers
    run      the plan; of a training run at its finest resolution
    whole    the training run at all its resolutions; None in segmenting
    least    the fewest ranks that fit; None where there is no limit, a grid is given, or nothing fits
    by_split the ranks as one replica and as several, most cases a second first; in training
    scaling  over the numbers of ranks that were asked for
    nodes    on whole machines
    reasons  in sentences
    command  that runs it; None where it does not fit
    """

    question: Question
    run: Candidate
    whole: RunPlan | None
    least: Candidate | None
    by_split: tuple[Candidate, ...]
    scaling: Scaling | None
    nodes: NodePlan | None
    reasons: tuple[str, ...]
    command: str | None

    @property
    def fits(self) -> bool:
        """Whether every step keeps to the limit, in memory or, in segmenting, with files."""
        return _fits(self.question, self.run, self.whole)

    @property
    def memory(self) -> MemoryPlan:
        """What the task needs: of a training run, at the resolution that needs most."""
        return (self.run if self.whole is None else self.whole.largest).plan.memory

    @property
    def placing(self) -> Placing:
        """Ranks on a machine, at most, and their threads."""
        placing = self.question.placing
        return replace(placing, per_machine=min(placing.per_machine, self.run.ranks))


@dataclass(frozen=True)
class Answer:
    """By task; the first one's run decides the grid that is shown first.

    no_machines  why there is no plan, of tasks that were to be planned for machines and do not fit any
    """

    tasks: dict[str, TaskAnswer]
    no_machines: dict[str, str]
    plain_bytes: int

    @property
    def first(self) -> Candidate | None:
        """The run that is shown first; None where no task fits the machines."""
        return next((one.run for one in self.tasks.values()), None)

    @property
    def fits(self) -> bool:
        """Whether every task does."""
        return not self.no_machines and all(one.fits for one in self.tasks.values())


def answer(asked: Asked) -> Answer:
    """Everything. Raises PartitionError where the volume cannot be split as asked."""
    questions = {task: asked.question(task) for task in asked.tasks}
    plain = plain_training_bytes(asked.network, asked.shape)
    if asked.node is not None:
        return _on_machines(asked, asked.node, questions, plain)
    least = {task: fewest(question) for task, question in questions.items()}
    if len(asked.ranks) > 1:
        return Answer({task: _over_ranks(asked, one, least[task]) for task, one in questions.items()}, {}, plain)
    ranks = _ranks(asked, questions, least)
    tasks = {}
    for task, question in questions.items():
        replicas = asked.replicas if task == "train" else 1
        run, few = fastest(question, ranks[task], replicas), least[task]
        if few is not None and not asked.ranks and replicas == 1 and not fits(question, run):
            run = few  # the fewest of another task, of which this one has no grid that fits
        tasks[task] = _answer(asked, question, run, few)
    return Answer(tasks, {}, plain)


def _over_ranks(asked: Asked, question: Question, least: Candidate | None) -> TaskAnswer:
    """The scaling over several numbers of ranks, and as the run that on the most for which there is a grid."""
    most = largest_possible(question, max(asked.ranks))
    found = scaling(question, sorted({*asked.ranks, most}))
    return _answer(asked, question, found.runs[-1], least, found)


def _on_machines(asked: Asked, node: Node, questions: dict[str, Question], plain: int) -> Answer:
    tasks, none = {}, {}
    for task, question in questions.items():
        plan = on_nodes(question, node, asked.nodes)
        if plan is None:
            none[task] = why_no_machines(question, node, asked.nodes)
        else:
            tasks[task] = _answer(asked, plan.question, plan.run, nodes=plan)
    return Answer(tasks, none, plain)


def _ranks(asked: Asked, questions: dict[str, Question], least: dict[str, Candidate | None]) -> dict[str, int]:
    """Ranks of each task: those asked for, those of the grid, or for all the fewest that fit each of them; or 1."""
    replicas = {task: asked.replicas if task == "train" else 1 for task in questions}
    if asked.dims is not None:
        return {task: prod(asked.dims) * n for task, n in replicas.items()}
    if asked.ranks:
        ranks = dict.fromkeys(questions, asked.ranks[0])
        if asked.replicas > 1 and "segment" in questions:  # all replicas' ranks may be too many for one volume
            ranks["segment"] = largest_possible(questions["segment"], ranks["segment"])
        return ranks
    needed = {task: found.ranks if found is not None else 1 for task, found in least.items()}
    if asked.replicas > 1:
        return {task: n * replicas[task] for task, n in needed.items()}
    return dict.fromkeys(needed, max(needed.values()))


def _answer(
    asked: Asked, question: Question, run: Candidate, least: Candidate | None = None, found: Scaling | None = None,
    nodes: NodePlan | None = None,
) -> TaskAnswer:  # fmt: skip
    whole = None
    if question.task == "train":
        whole = plan_run(question, run, asked.settings, asked.cases)
    by_split: list[Candidate] = []
    if question.task == "train" and run.ranks > 1 and question.dims is None and question.timed:
        by_split = splits(question, run.ranks)
    reasons = [why_chosen(question, run)]
    if asked.limit is not None and asked.dims is None:
        reasons.append(why_fewest(question, least, run.replicas))
    if len(by_split) > 1:  # else there was nothing to compare with: the others do not fit
        chosen = next((c for c in by_split if c.replicas == run.replicas), run)
        reasons.append(why_split(by_split[0], chosen))
    if found is not None:
        reasons += _of_scaling(asked, question, found)
    if whole is not None:
        reasons += why_resolutions(question, whole)
    command = None
    if _fits(question, run, whole):
        command = run_command(question.task, run, question.placing.threads, asked.origin)
    return TaskAnswer(question, run, whole, least, tuple(by_split), found, nodes, tuple(reasons), command)


def _fits(question: Question, run: Candidate, whole: RunPlan | None) -> bool:
    return fits(question, run, files=True) and (whole is None or whole.fits(question))


def _of_scaling(asked: Asked, question: Question, found: Scaling) -> list[str]:
    reasons = [why_scaling(found)] if question.timed else []
    without = sorted(set(asked.ranks) - {run.ranks for run in found.runs})
    if without:
        reasons.append(f"there is no grid of {', '.join(map(str, without))} ranks")
    return reasons
