"""Everything a plan says, as plain values for JSON; sizes in bytes, times in seconds, axes D, H, W."""

from __future__ import annotations

import dataclasses
from typing import Any

from volseg.geometry import Triple
from volseg.networks.choice import network_facts
from volseg.partition.layout import padded_shape
from volseg.planning.answer import Answer, Asked, TaskAnswer
from volseg.planning.listing import ListedStep, listed
from volseg.planning.nodes import NodePlan
from volseg.planning.planner import Plan
from volseg.planning.profile import Profile
from volseg.planning.resolutions import ResolutionPlan
from volseg.planning.search import Candidate, Question, Scaling, fits
from volseg.planning.time_model import TimePlan


def facts(asked: Asked, found: Answer, *, programs: bool = False) -> dict[str, Any]:
    """Of all tasks; with `programs` the steps of each task's busiest rank, too."""
    model, node = asked.settings.model, asked.node
    return {
        "shape": list(asked.shape),
        "padded_shape": list(padded_shape(asked.shape, asked.network.multiple)),
        **_first(found.first, asked.network.deepest),
        "memory_limit_bytes": asked.limit,
        "plain_torch_training_bytes": found.plain_bytes,
        "precision": asked.settings.training.precision,
        "model": dataclasses.asdict(model),
        "network": network_facts(asked.network, asked.why_network),
        "node": None if node is None else {"cores": node.cores, "memory_bytes": node.memory},
        "profile": _profile(asked.profile),
        "tasks": {
            **{str(task): _task(asked, one) | (_program(one) if programs else {}) for task, one in found.tasks.items()},
            **{str(task): {"fits": False, "nodes": None, "reasons": [why]} for task, why in found.no_machines.items()},
        },
    }


def _first(run: Candidate | None, levels: int) -> dict[str, Any]:
    """How the first task's run is split; nothing where no machines hold one."""
    if run is None:
        return {}
    return {
        "ranks": run.ranks,
        "grid": list(run.dims),
        "agglomeration": str(run.plan.agglomeration),
        "grids_by_level": [list(dims) for dims in _grids(run.plan, levels)],
        "boundaries": [list(cuts) for cuts in run.plan.layout.boundaries],
        "largest_block": list(run.plan.layout.largest_block),
        "halo_bytes_per_forward": run.plan.halo_bytes,
    }


def _profile(profile: Profile) -> dict[str, Any]:
    """The machine that times are of, and its messages: latency and sums in seconds."""
    return {
        "machine": profile.machine,
        "cores": profile.cores,
        "memory_bytes": profile.memory,
        "within": dataclasses.asdict(profile.within),
        "between": dataclasses.asdict(profile.between),
        "source": profile.source,
        "date": profile.date,
    }


def _grids(plan: Plan, levels: int) -> list[Triple]:
    """The process grid of each level."""
    return [plan.agglomeration.dims_at(level, plan.layout.dims) for level in range(levels + 1)]


def _task(asked: Asked, one: TaskAnswer) -> dict[str, Any]:
    plan, memory, timed = one.run.plan, one.memory, one.question.timed
    limited = asked.limit is not None or asked.node is not None
    return {
        **_run(one.run, timed),
        "peak_bytes_per_rank": memory.peak,
        "placing": {"ranks_per_machine": one.placing.per_machine, "threads_per_rank": one.placing.threads},
        "command": one.command,
        "process_bytes": memory.process,
        "weights_bytes": memory.weights,
        "activations_bytes": memory.activations,
        "work_bytes": memory.work,
        "activations_bytes_by_level": list(memory.by_level),
        "bytes_by_part": memory.parts,
        "tensor_bytes_by_operation": memory.by_operation,
        "peak_at": memory.peak_at,
        "fits": one.fits if limited else None,
        "schedule": plan.schedule,
        "peak_bytes_per_rank_by_schedule": {s: memory.peak for s, memory in plan.by_schedule.items()},
        "fits_in_memory": fits(one.question, one.run) if limited else None,
        "seconds_by_kind": _by_kind(one.run.time) if timed else None,
        "seconds_by_level": {str(n): seconds for n, seconds in sorted(one.run.time.by_level.items())}
        if timed
        else None,
        **_whole(one),
        "fewest_ranks": None if one.least is None else one.least.ranks,
        "fewest_ranks_grid": None if one.least is None else list(one.least.dims),
        "splits": [_run(run, timed) for run in one.by_split],
        "scaling": None if one.scaling is None else _scaling(one.scaling, timed),
        "nodes": None if one.nodes is None else _nodes(one.nodes, timed),
        "reasons": list(one.reasons),
    }


def _whole(one: TaskAnswer) -> dict[str, Any]:
    """A training run at each of its resolutions, the finest first; nothing in segmenting."""
    whole, timed = one.whole, one.question.timed
    if whole is None:
        return {}
    return {
        "resolutions": [_resolution(each, one.question, whole.in_epoch) for each in whole.resolutions],
        "over_finest_alone": whole.relative if timed else None,
        "run_seconds": whole.seconds if timed else None,
    }


def _resolution(each: ResolutionPlan, question: Question, in_epoch: int | None) -> dict[str, Any]:
    """Seconds are of a step on a whole batch, of an epoch, and of all steps at this resolution."""
    run, plan, seconds = each.run, each.run.plan, each.step_seconds if question.timed else None
    return {
        "level": each.level,
        "shape": list(plan.layout.shape),
        **_run(run, question.timed),
        "peak_at": plan.memory.peak_at,
        "bytes_by_part": plan.memory.parts,
        "halo_bytes_per_forward": plan.halo_bytes,
        "cases_per_step_and_replica": each.cases,
        "share_of_steps": each.share,
        "steps": each.steps,
        "step_seconds": seconds,
        "message_seconds": each.cases * run.time.communication if question.timed else None,
        "epoch_seconds": None if seconds is None or in_epoch is None else in_epoch * seconds,
        "all_seconds": None if seconds is None or each.steps is None else each.steps * seconds,
    }


def _program(answered: TaskAnswer) -> dict[str, Any]:
    """The steps; null where the network runs layer by layer."""
    steps = listed(answered.question, answered.run)
    return {"program": None if steps is None else [_step(step) for step in steps]}


def _step(step: ListedStep) -> dict[str, Any]:
    """Without the figures that are not planned."""
    return {name: value for name, value in dataclasses.asdict(step).items() if value is not None}


def _run(run: Candidate, timed: bool) -> dict[str, Any]:
    return {
        "ranks": run.ranks,
        "replicas": run.replicas,
        "grid": list(run.dims),
        "checkpoint_levels": list(run.checkpoint_levels),
        "agglomeration": str(run.plan.agglomeration),
        "peak_bytes_per_rank": run.plan.memory.peak,
        "seconds": run.seconds if timed else None,
        "cases_per_second": run.cases_per_second if timed else None,
    }


def _by_kind(time: TimePlan) -> dict[str, float]:
    return {str(kind): seconds for kind, seconds in time.by_kind().items() if seconds}


def _scaling(found: Scaling, timed: bool) -> list[dict[str, Any]]:
    return [
        {
            **_run(run, timed),
            "efficiency": share if timed else None,
            "seconds_by_kind": _by_kind(run.time) if timed else None,
            "schedule": _schedule(run.plan),
        }
        for run, share in zip(found.runs, found.efficiency, strict=True)
    ]


def _schedule(plan: Plan) -> str | None:
    return None if plan.schedule is None else str(plan.schedule)


def _nodes(plan: NodePlan, timed: bool) -> dict[str, Any]:
    return {
        "nodes": plan.nodes,
        "ranks_per_node": plan.per_node,
        "threads_per_rank": plan.threads,
        "memory_limit_bytes": plan.question.limit,
        **_run(plan.run, timed),
    }
