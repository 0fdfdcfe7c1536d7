"""How long a run is expected to take, on this machine as these ranks use it."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from typing import Any

import torch

from volseg.config import TrainingConfig
from volseg.distributed.communicator import Communicator
from volseg.distributed.placement import ranks_on_this_machine
from volseg.machine import processor_name
from volseg.networks.coverage import why_not_covered
from volseg.networks.description import Network
from volseg.nn.fused.backend import CPU, CompiledBackend, backend_for
from volseg.nn.kernels import winograd
from volseg.nn.kernels.speed import SIDE, reference_seconds
from volseg.partition.agglomeration import Agglomeration
from volseg.partition.layout import Layout
from volseg.partition.tiling import padded_channels
from volseg.planning.agglomeration_choice import agglomeration_for
from volseg.planning.agreement import off_by_a_tenth
from volseg.planning.operations import Family, Operation
from volseg.planning.profile import Profile, find_profile
from volseg.planning.search import Question, agglomeration_on
from volseg.planning.time_model import Placing, TimePlan
from volseg.program.kinds import Kind


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


def this_machine(network: Network, communicator: Communicator) -> Machine | None:
    """The machine's profile; that of another one is scaled by a convolution that all ranks do now. Collective.

    The same on all ranks: the root's profile, and how ranks and threads are placed where the root is.

    network  its channels are those of the convolution, so that no kernel is compiled for this alone

    None where the program does not cover the network, or is not run by the compiled kernels on all ranks: no profile
    tells of others.

    Raises ConfigError, on all ranks, where a profile is named that cannot be read.
    """

    if why_not_covered(network):
        return None

    def read() -> tuple[Profile, bool, int]:
        profile = find_profile()
        own = (profile.machine, profile.cores) == (processor_name(), os.cpu_count())
        return profile, own and profile.source != "built in", torch.get_num_threads()

    profile, measured_here, threads = communicator.on_root(read)
    placing = Placing(communicator.broadcast(ranks_on_this_machine(communicator)), threads)
    compiled = isinstance(backend_for(CPU, os.environ, winograd.available()), CompiledBackend)
    if not all(communicator.gather_all(compiled)):
        return None
    if measured_here:
        return Machine(profile, profile, placing, profile.source)
    channels = padded_channels(network.widths[0])
    communicator.barrier()
    now = statistics.fmean(communicator.gather_all(reference_seconds(channels)))
    alone = Operation("", Kind.CONVOLUTION, Family.REFERENCE, 0, channels, channels, SIDE**3)
    before = profile.costs(placing.per_machine, placing.threads).seconds(alone)
    source = f"{profile.source}, scaled to this machine by one convolution"
    return Machine(profile.scaled(now / before), profile, placing, source) if before > 0 else None


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


def off_plan(memory: float, time: float | None) -> list[str]:
    """What differed from the plan by more than a tenth, in words, as it stands in a report.

    memory, time  planned over measured; None where nothing was foretold
    """
    found = []
    for what, ratio in (("memory", memory), ("time", time)):
        if ratio is not None and off_by_a_tenth(ratio):
            found.append(f"planned {what} is {ratio:.2f} of what was measured")
    return found


def agglomeration_of_run(
    text: str, task: str, network: Network, training: TrainingConfig, layout: Layout, machine: Machine | None,
    communicator: Communicator, replicas: int = 1,
) -> Agglomeration:  # fmt: skip
    """What ``--agglomerate`` asks for; "auto" is what the time model chooses for `task`, "train" or "segment".

    Collective: what the root finds holds for all. Raises as `agglomeration_for` does.
    """
    if text != "auto" or machine is None:
        return agglomeration_for(text, network, layout)
    question = Question(layout.shape, network, training, task, machine.nominal, placing=machine.placing)
    return communicator.on_root(lambda: agglomeration_on(question, layout.dims, replicas))
