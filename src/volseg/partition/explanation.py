"""Why a plan is as it is, in sentences."""

from __future__ import annotations

from volseg.geometry import format_triple
from volseg.machine import gibibytes
from volseg.partition.operations import Kind
from volseg.partition.search import Candidate, Question, Scaling, fastest, fits
from volseg.partition.time_model import TimePlan

_WORTH = 0.5
"""Efficiency below which more ranks are waste."""


def time_text(seconds: float) -> str:
    """Seconds, three digits that count."""
    if seconds >= 3600:
        return f"{seconds / 3600:.3g} h"
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
    text = f"{ranks}: {time_text(run.seconds)} {what} ({shares(run.time)})"
    memory = f"{gibibytes(run.plan.memory.peak)} a rank at most, at {run.plan.memory.peak_at}"
    text += f"; {memory}"
    if run.checkpoint_levels and run.checkpoint_levels != question.training.checkpoint_levels:
        levels = ",".join(map(str, run.checkpoint_levels))
        text += f"; fits because of --checkpoint-levels {levels}"
    if question.limit is not None and not fits(question, run):
        text += f"; that does not fit {gibibytes(question.limit)}"
    return text


def _grid_text(run: Candidate) -> str:
    grid = format_triple(run.dims) + run.plan.agglomeration.described
    return grid if run.replicas == 1 else f"{run.replicas} replicas of {grid}"


def why_fewest(question: Question, least: Candidate | None) -> str:
    """Why no fewer ranks do."""
    assert question.limit is not None
    limit = gibibytes(question.limit)
    if least is None:
        return f"no number of ranks fits {limit} a rank; fewer channels or levels may"
    peak = gibibytes(least.plan.memory.peak)
    text = f"the fewest ranks within {limit} are {least.ranks}, as {_grid_text(least)}, with {peak} a rank"
    if least.ranks > 1:
        try:
            fewer = fastest(question, least.ranks - 1)
        except Exception:  # no grid of so many: nothing to compare with
            return text
        if not fits(question, fewer):
            text += f"; {fewer.ranks} would need {gibibytes(fewer.plan.memory.peak)}"
    return text


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
    worth = [run for run, share in zip(found.runs, found.efficiency, strict=True) if share >= _WORTH]
    last, end = worth[-1], found.runs[-1]
    text = f"up to {last.ranks} ranks at least {_WORTH:.0%} of what they could do is done"
    if last.ranks == end.ranks:
        return text
    small = format_triple(end.plan.layout.largest_block)
    kinds = end.time.by_kind()
    whole = end.seconds
    halo = (kinds[Kind.HALO] + kinds[Kind.REDUCTION] + kinds[Kind.MOVING]) / whole
    return (
        f"{text}; at {end.ranks}, blocks of {small} voxels, it is {found.efficiency[-1]:.0%}: messages take "
        f"{halo:.0%}, and small blocks lose the rest to what does not shrink with them (weights, calls, halos computed)"
    )
