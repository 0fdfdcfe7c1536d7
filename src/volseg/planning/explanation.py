"""Why a plan is as it is, in sentences."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile

from volseg.errors import PartitionError
from volseg.geometry import format_triple
from volseg.machine import gibibytes
from volseg.networks.coverage import why_not_covered
from volseg.planning.nodes import SYSTEM, Node, on_nodes, placed_on
from volseg.planning.resolutions import RunPlan
from volseg.planning.search import Candidate, Question, Scaling, fastest, fewest, fits, largest_possible
from volseg.planning.time_model import Placing, TimePlan

_WORTH = 0.5
"""Efficiency below which more ranks are waste."""


def time_text(seconds: float) -> str:
    """Seconds, three digits that count."""
    if seconds >= 3600:
        return f"{seconds / 3600:.3g} h"
    if seconds >= 600:
        return f"{seconds / 60:.3g} min"
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


def shares(time: TimePlan, least: float = 0.01) -> str:
    """Where the time goes: ``convolution 82 %, halo 3 %``; kinds of at least a hundredth."""
    whole = time.seconds or 1.0
    kinds = sorted(((s / whole, kind) for kind, s in time.by_kind().items()), reverse=True)
    return ", ".join(f"{kind} {share:.0%}" for share, kind in kinds if share >= least)


def why_chosen(question: Question, run: Candidate) -> str:
    """What the run is, and what limits it."""
    what = "a step" if question.task == "train" else "a scan"
    ranks = f"{run.ranks} rank{'s' if run.ranks > 1 else ''} as {_grid_text(run)}"
    memory = f"{gibibytes(run.plan.memory.peak)} a rank at most, at {run.plan.memory.peak_at}"
    if question.timed:
        text = f"{ranks}: {time_text(run.seconds)} {what} ({shares(run.time)}); {memory}"
    else:
        text = f"{ranks}: {memory}; no time, for {why_not_covered(question.network)}, which was not measured"
    if run.checkpoint_levels and run.checkpoint_levels != question.training.checkpoint_levels:
        levels = ",".join(map(str, run.checkpoint_levels))
        text += f"; fits because of --checkpoint-levels {levels}"
    if question.limit is not None and not fits(question, run):
        limit = gibibytes(question.limit)
        if fits(question, run, files=True):
            text += f"; it fits {limit} only with files (spill), and its time is without the disk's"
        else:
            text += f"; that does not fit {limit}"
    return text


def _grid_text(run: Candidate) -> str:
    grid = format_triple(run.dims) + run.plan.agglomeration.described
    return grid if run.replicas == 1 else f"{run.replicas} replicas of {grid}"


def why_fewest(question: Question, least: Candidate | None, replicas: int = 1) -> str:
    """Why no fewer ranks do, for each of so many replicas."""
    assert question.limit is not None
    limit = gibibytes(question.limit)
    if least is None:
        return f"no number of ranks fits {limit} a rank in memory; fewer channels or levels may"
    peak = gibibytes(least.plan.memory.peak)
    ranks = "ranks" if replicas == 1 else "ranks of a replica"
    text = f"the fewest {ranks} within {limit} are {least.ranks}, as {_grid_text(least)}, with {peak} a rank"
    if least.ranks > 1:
        try:
            fewer = fastest(question, least.ranks - 1)
        except PartitionError:  # no grid of so many: nothing to compare with
            return text
        if not fits(question, fewer):
            text += f"; {fewer.ranks} would need {gibibytes(fewer.plan.memory.peak)}"
    return text


def why_too_large(question: Question, run: Candidate, whole: RunPlan | None) -> str:
    """That a run, or a training run at one of its resolutions, does not fit, what it needs, and what would fit."""
    assert question.limit is not None
    if whole is not None and fits(question, run):
        return "; ".join(why_resolutions(question, whole))
    peak, limit = gibibytes(run.plan.memory.peak), gibibytes(question.limit)
    least = fewest(replace(question, dims=None))
    remedy = "fewer channels or levels may fit" if least is None else f"{least.ranks} ranks would do"
    return f"{question.task} on {run.ranks} rank(s) needs {peak} a rank, and may use {limit}; {remedy}"


def why_resolutions(question: Question, whole: RunPlan) -> list[str]:
    """What the coarser resolutions of a training run change, in its time and in what it needs."""
    if len(whole.resolutions) == 1:
        return []
    said, needs = [], whole.largest
    if question.timed:
        said.append(f"multigrid: {whole.relative:.2f} of the time of as many steps at the finest resolution")
    if needs is not whole.resolutions[0].run:
        level = next(each.level for each in whole.resolutions if each.run is needs)
        memory = needs.plan.memory
        said.append(f"level {level} of the multigrid needs most: {gibibytes(memory.peak)} a rank, at {memory.peak_at}")
    too_large = next((each.level for each in whole.resolutions if not fits(question, each.run)), 0)
    if too_large and question.limit is not None:
        said.append(f"--multigrid {too_large} would fit {gibibytes(question.limit)} a rank")
    return said


def why_split(best: Candidate, whole: Candidate) -> str:
    """Why ranks are better used as replicas, or not."""
    gain = best.cases_per_second / whole.cases_per_second
    if best.replicas == 1 or gain < 1.05:
        return "one replica on all ranks is as fast as several"
    return (
        f"{best.replicas} replicas of {format_triple(best.dims)} train {gain:.2f} times as many cases a second, "
        f"{best.cases_per_second:.3g}, in batches of {best.replicas}"
    )


def why_scaling(found: Scaling) -> str:
    """Up to where more ranks pay, and what takes over."""
    shares_done = zip(found.runs, found.efficiency, strict=True)
    last = [run for run, _ in takewhile(lambda pair: pair[1] >= _WORTH, shares_done)][-1]
    end = found.runs[-1]
    text = f"up to {last.ranks} rank{'s' if last.ranks > 1 else ''} at least {_WORTH:.0%} of what they could do is done"
    if last.ranks == end.ranks:
        return text
    small = format_triple(end.plan.layout.largest_block)
    text += f"; at {end.ranks}, blocks of {small} voxels, it is {found.efficiency[-1]:.0%}"
    if found.efficiency[-1] >= _WORTH:
        return f"{text} again"
    messages = end.time.communication / end.seconds
    return (
        f"{text}: messages take {messages:.0%}, and the rest goes to what does not shrink with blocks (weights, calls, "
        "halos computed) and to cores that share caches and memory"
    )


def why_no_machines(question: Question, node: Node, nodes: int | None) -> str:
    """Why `on_nodes` found nothing, and what would do."""
    if nodes is not None:
        most = question.most_ranks
        if nodes > most:
            return f"--nodes {nodes} are more than the {most} blocks there can be; give --nodes {most} or fewer"
        few = on_nodes(question, node)
        if few is not None and few.nodes > nodes:
            return f"--nodes {nodes} of {gibibytes(node.memory)} do not hold a run; give --nodes {few.nodes} or more"
        if few is not None:
            return f"no grid of the volume has ranks for all of --nodes {nodes}; {few.nodes} would do"
    text = (
        f"no number of machines of {gibibytes(node.memory)} holds a run; {gibibytes(SYSTEM)} of each are its system's"
    )
    alone = placed_on(question, node, Placing(1, node.cores))
    try:
        run = fastest(alone, largest_possible(alone, question.most_ranks))
    except PartitionError:  # no grid of so many that the stages suit
        return text
    need = f"even as {format_triple(run.dims)}, one rank a machine, a rank needs {gibibytes(run.plan.memory.peak)}"
    return f"{text}, and {need}; fewer channels or levels may fit"
