"""Everything a plan says, as plain values for JSON; sizes in bytes, times in seconds, axes D, H, W."""

from __future__ import annotations

import dataclasses
from typing import Any

from volseg.geometry import Triple
from volseg.partition.answer import Answer, Asked, TaskAnswer
from volseg.partition.nodes import NodePlan
from volseg.partition.planner import Plan
from volseg.partition.search import Candidate, Scaling
from volseg.partition.time_model import TimePlan


def facts(asked: Asked, found: Answer) -> dict[str, Any]:
    """Of all tasks."""
    first = found.first
    return {
        "shape": list(first.plan.shape),
        "padded_shape": list(first.plan.layout.shape),
        "ranks": first.ranks,
        "grid": list(first.dims),
        "agglomeration": str(first.plan.agglomeration),
        "grids_by_level": [list(dims) for dims in _grids(first.plan, asked.settings.model.levels)],
        "boundaries": [list(cuts) for cuts in first.plan.layout.boundaries],
        "largest_block": list(first.plan.layout.largest_block),
        "halo_bytes_per_forward": first.plan.halo_bytes,
        "memory_limit_bytes": asked.limit,
        "plain_torch_training_bytes": found.plain_bytes,
        "model": dataclasses.asdict(asked.settings.model),
        "profile": {"machine": asked.profile.machine, "source": asked.profile.source, "date": asked.profile.date},
        "tasks": {str(task): _task(asked, one) for task, one in found.tasks.items()},
    }


def _grids(plan: Plan, levels: int) -> list[Triple]:
    """The process grid of each level."""
    return [plan.agglomeration.dims_at(level, plan.layout.dims) for level in range(levels + 1)]


def _task(asked: Asked, one: TaskAnswer) -> dict[str, Any]:
    plan, memory = one.run.plan, one.run.plan.memory
    limited = asked.limit is not None or asked.node is not None
    return {
        **_run(one.run),
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
        "seconds_by_kind": _by_kind(one.run.time),
        "seconds_by_level": {str(level): seconds for level, seconds in sorted(one.run.time.by_level.items())},
        "fewest_ranks": None if one.least is None else one.least.ranks,
        "fewest_ranks_grid": None if one.least is None else list(one.least.dims),
        "splits": [_run(run) for run in one.by_split],
        "scaling": None if one.scaling is None else _scaling(one.scaling),
        "nodes": None if one.nodes is None else _nodes(one.nodes),
        "reasons": list(one.reasons),
    }


def _run(run: Candidate) -> dict[str, Any]:
    return {
        "ranks": run.ranks,
        "replicas": run.replicas,
        "grid": list(run.dims),
        "checkpoint_levels": list(run.checkpoint_levels),
        "agglomeration": str(run.plan.agglomeration),
        "peak_bytes_per_rank": run.plan.memory.peak,
        "seconds": run.seconds,
        "cases_per_second": run.cases_per_second,
    }


def _by_kind(time: TimePlan) -> dict[str, float]:
    return {str(kind): seconds for kind, seconds in time.by_kind().items() if seconds}


def _scaling(found: Scaling) -> list[dict[str, Any]]:
    return [
        {**_run(run), "efficiency": share, "seconds_by_kind": _by_kind(run.time), "schedule": _schedule(run.plan)}
        for run, share in zip(found.runs, found.efficiency, strict=True)
    ]


def _schedule(plan: Plan) -> str | None:
    return None if plan.schedule is None else str(plan.schedule)


def _nodes(plan: NodePlan) -> dict[str, Any]:
    return {
        "nodes": plan.nodes,
        "ranks_per_node": plan.per_node,
        "threads_per_rank": plan.threads,
        "memory_limit_bytes": plan.question.limit,
        **_run(plan.run),
    }
