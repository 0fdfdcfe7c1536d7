"""A batch script for Slurm from a plan."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from math import ceil

from volseg.planning.command import UNKNOWN, Origin, run_options
from volseg.planning.search import Candidate

_RESERVE = 1.1
"""Of memory asked for: the plan may be wrong by a tenth."""


@dataclass(frozen=True)
class Place:
    """What a script asks for.

    threads   of each rank
    nodes     machines; None where nobody said what they are like, and Slurm may choose
    per_node  ranks on each
    memory    bytes of each
    """

    threads: int
    nodes: int | None = None
    per_node: int = 1
    memory: int = 0


def batch_script(
    task: str, run: Candidate, place: Place, origin: Origin = UNKNOWN, peak: int | None = None
) -> str:  # fmt: skip
    """The script: ranks, threads and memory as planned; what to run it on stands at its head, to be filled in.

    peak  bytes of the rank that holds most; None for those of `run`
    """
    if task == "train":
        inputs, command = ['DATASET="${1:?data set folder}"', 'RUN="${2:-volseg-run}"'], 'train "$DATASET" -o "$RUN"'
    else:
        model = shlex.quote(str(origin.model or "volseg-run"))
        inputs = ['SCAN="${1:?scan}"', 'MASK="${2:?mask to write}"', f"MODEL=${{3:-{model}}}"]
        command = 'segment "$SCAN" -o "$MASK" --model "$MODEL" --continue'
    # srun does not take over --cpus-per-task since Slurm 22.05.
    srun = "srun --cpus-per-task=$SLURM_CPUS_PER_TASK --cpu-bind=cores"
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name=volseg-{task}",
        *_resources(run.ranks, place, run.plan.memory.peak if peak is None else peak),
        "#SBATCH --time=24:00:00",
        "",
        f"# sbatch SCRIPT {'DATASET [RUN]' if task == 'train' else 'SCAN MASK [MODEL]'}",
        "set -euo pipefail",
        *inputs,
        f"export OMP_NUM_THREADS={place.threads}",
        f"{srun} volseg {command} {' '.join(run_options(task, run, origin))}",
    ]
    return "\n".join(lines) + "\n"


def _resources(ranks: int, place: Place, peak: int) -> list[str]:
    """Machines where they are known; else cores, and memory for each of them."""
    tasks = [f"#SBATCH --ntasks={ranks}", f"#SBATCH --cpus-per-task={place.threads}"]
    if place.nodes is None:
        return [*tasks, f"#SBATCH --mem-per-cpu={ceil(peak * _RESERVE / place.threads / 2**20)}M"]
    per_node = min(place.per_node, ranks)
    # The plan fits the machine with less of a reserve, and what a machine does not have Slurm refuses.
    memory = min(ceil(peak * per_node * _RESERVE), place.memory)
    return [
        f"#SBATCH --nodes={place.nodes}",
        f"#SBATCH --ntasks-per-node={per_node}",
        *tasks,
        f"#SBATCH --mem={memory // 2**20}M",
    ]
