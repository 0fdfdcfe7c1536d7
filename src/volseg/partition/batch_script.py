"""A batch script for Slurm from a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from volseg.geometry import format_triple
from volseg.partition.search import Candidate

_RESERVE = 1.1
"""Of memory asked for: the plan may be wrong by a tenth."""


@dataclass(frozen=True)
class Place:
    """Machines that a script asks for.

    per_node  ranks on each, with `threads` each
    """

    nodes: int
    per_node: int
    threads: int


def run_options(run: Candidate) -> list[str]:
    """Options of `volseg train` or `segment` that make the run the one that was planned."""
    options = ["--partition", format_triple(run.dims)]
    if run.replicas > 1:
        options += ["--replicas", str(run.replicas)]
    if run.plan.agglomeration.stages:
        options += ["--agglomerate", str(run.plan.agglomeration)]
    if run.checkpoint_levels:
        options += ["--checkpoint-levels", ",".join(map(str, run.checkpoint_levels))]
    if run.plan.schedule is not None:
        options += ["--schedule", run.plan.schedule]
    return options


def batch_script(task: str, run: Candidate, place: Place, more: Sequence[str] = ()) -> str:
    """The script: ranks, threads and memory as planned; what to run it on stands at its head, to be filled in.

    more  options for the command besides, such as ``--config unet.toml``
    """
    per_node = min(place.per_node, run.ranks)
    megabytes = ceil(run.plan.memory.peak * per_node * _RESERVE / 2**20)
    options = " ".join([*run_options(run), *more])
    if task == "train":
        inputs, command = ['DATASET="${1:?data set folder}"', 'RUN="${2:-volseg-run}"'], 'train "$DATASET" -o "$RUN"'
    else:
        inputs = ['SCAN="${1:?scan}"', 'MASK="${2:?mask to write}"', 'MODEL="${3:-volseg-run}"']
        command = 'segment "$SCAN" -o "$MASK" --model "$MODEL" --continue'
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name=volseg-{task}",
        f"#SBATCH --nodes={place.nodes}",
        f"#SBATCH --ntasks={run.ranks}",
        f"#SBATCH --ntasks-per-node={per_node}",
        f"#SBATCH --cpus-per-task={place.threads}",
        f"#SBATCH --mem={megabytes}M",
        "#SBATCH --time=24:00:00",
        "",
        f"# sbatch SCRIPT {'DATASET [RUN]' if task == 'train' else 'SCAN MASK [MODEL]'}",
        "set -euo pipefail",
        *inputs,
        f"export OMP_NUM_THREADS={place.threads}",
        f"srun --cpu-bind=cores volseg {command} {options}",
    ]
    return "\n".join(lines) + "\n"
