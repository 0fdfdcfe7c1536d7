"""The command that runs a plan as it was planned."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from volseg.geometry import format_triple
from volseg.planning.search import Candidate
from volseg.program.schedule import LAYERS


@dataclass(frozen=True)
class Origin:
    """Where network and scan of a plan come from.

    config        TOML file of the network
    checkpointed  levels that this file has computed again
    model         run folder to segment with; None where nobody named it, or its network is not the one planned
    changed       options besides that say what the network is, such as ``--levels 4``
    scan          that was planned for
    precision     that was asked for; None: that of the file
    """

    config: Path | None = None
    checkpointed: tuple[int, ...] = ()
    model: Path | None = None
    changed: Sequence[str] = ()
    scan: Path | None = None
    precision: str | None = None


UNKNOWN = Origin()
"""The network by its defaults, and no scan."""


def run_options(task: str, run: Candidate, origin: Origin) -> list[str]:
    """Options of `volseg train` or `segment` that make the run the one that was planned; quoted for a shell."""
    options = ["--partition", format_triple(run.dims)]
    if run.replicas > 1:
        options += ["--replicas", str(run.replicas)]
    options += ["--agglomerate", str(run.plan.agglomeration)]
    if run.plan.schedule is not None and run.plan.schedule is not LAYERS:  # which is never asked for by name
        options += ["--schedule", run.plan.schedule]
    if origin.precision is not None:
        options += ["--precision", origin.precision]
    if task == "train":
        if origin.config is not None:
            options += ["--config", str(origin.config)]
        options += origin.changed
        if run.checkpoint_levels != origin.checkpointed:
            options += ["--checkpoint-levels", ",".join(map(str, run.checkpoint_levels))]
    return [shlex.quote(option) for option in options]


def run_command(task: str, run: Candidate, threads: int, origin: Origin) -> str:
    """The whole of it, on one machine; DATASET, SCAN and RUN stand for what the plan does not know."""
    words = [f"OMP_NUM_THREADS={threads}"]
    if run.ranks > 1:
        words += ["mpirun", "-n", str(run.ranks)]
    words += ["volseg", task]
    if task == "train":
        words += ["DATASET"]
    else:
        words += [_path(origin.scan, "SCAN"), "--model", _path(origin.model, "RUN")]
    return " ".join([*words, *run_options(task, run, origin)])


def _path(path: Path | None, placeholder: str) -> str:
    return placeholder if path is None else shlex.quote(str(path))
