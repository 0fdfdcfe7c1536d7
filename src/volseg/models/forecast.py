"""How long a run is expected to take, on this machine as these ranks use it."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from volseg.config import ModelConfig, TrainingConfig
from volseg.distributed.communicator import Communicator
from volseg.distributed.placement import ranks_on_this_machine
from volseg.machine import processor_name
from volseg.nn.kernels.speed import SIDE, reference_seconds
from volseg.partition.agglomeration import Agglomeration, agglomeration_for
from volseg.partition.agglomeration_choice import choose_agglomeration
from volseg.partition.layout import Layout
from volseg.partition.memory import parameter_count
from volseg.partition.operations import Family, Kind, Operation
from volseg.partition.profile import Profile, find_profile
from volseg.partition.schedule import IN_PLACE
from volseg.partition.tiling import padded_channels
from volseg.partition.time_model import Placing, TimePlan, segmenting_time, training_time


@dataclass(frozen=True)
class Machine:
    """This machine as the time model sees it.

    profile  measured here, or measured elsewhere and scaled
    nominal  as it was read; what is decided by it is decided alike in every run
    placing  of this job's ranks
    source   in words: where the times come from
    """

    profile: Profile
    nominal: Profile
    placing: Placing
    source: str


def this_machine(model: ModelConfig, communicator: Communicator, path: Path | None = None) -> Machine | None:
    """The machine's profile; that of another one is scaled by a convolution that all ranks do now. Collective.

    model  its channels are those of the convolution, so that no kernel is compiled for this alone

    None where the processor lacks the kernels' instructions, so that no profile tells anything.

    Raises ConfigError, on all ranks, where the profile named cannot be read.
    """
    profile: Profile | None = None
    with communicator.together():
        if communicator.is_root:
            profile = find_profile(path)
    profile = communicator.broadcast(profile)
    assert profile is not None
    placing = Placing(ranks_on_this_machine(communicator), torch.get_num_threads())
    own = communicator.broadcast((profile.machine, profile.cores) == (processor_name(), os.cpu_count()))
    if own and profile.source != "built in":
        return Machine(profile, profile, placing, profile.source)
    communicator.barrier()
    channels = padded_channels(model.widths[0])
    now = communicator.gather_all(reference_seconds(channels))
    alone = Operation("", Kind.CONVOLUTION, Family.REFERENCE, 0, channels, channels, SIDE**3)
    before = profile.setting(placing.per_machine, placing.threads).seconds(alone)
    if min(now) <= 0 or before <= 0:
        return None
    factor = statistics.fmean(now) / before
    return Machine(
        profile.scaled(factor), profile, placing, f"{profile.source}, scaled to this machine by one convolution"
    )


def planned_time_facts(plan: TimePlan | None, measured: float, machine: Machine | None) -> dict[str, Any]:
    """Planned against measured seconds, as they stand in a report; None where nothing was foretold."""
    if plan is None or machine is None:
        return {"planned_seconds": None, "planned_over_measured": None}
    return {
        "planned_seconds": round(plan.seconds, 4),
        "planned_over_measured": round(plan.seconds / max(measured, 1e-9), 3),
        "planned_seconds_by_kind": {str(kind): round(s, 4) for kind, s in plan.by_kind().items() if s},
        "planned_from": machine.source,
    }


def agglomeration_of_run(
    text: str, task: str, model: ModelConfig, training: TrainingConfig, layout: Layout, machine: Machine | None
) -> Agglomeration:
    """What ``--agglomerate`` asks for; "auto" is what the time model chooses for `task`, "train" or "segment".

    Raises as `agglomeration_for` does.
    """
    if text != "auto" or machine is None:
        return agglomeration_for(text, model, layout)
    profile, placing, parameters = machine.nominal, machine.placing, parameter_count(model)

    def time_of(stages: Agglomeration) -> TimePlan:
        layouts = stages.layouts(layout, model.levels)
        if task == "train":
            return training_time(model, training, layouts, parameters, profile, placing)
        return segmenting_time(model, layouts, profile, IN_PLACE, placing)

    return choose_agglomeration(model, layout, time_of)
