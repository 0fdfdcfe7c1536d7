"""Batch scripts for Slurm, PBS and LSF from a plan: one description of the job, and how each of them says it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from math import ceil

from volseg.planning.batch_system import Site, System
from volseg.planning.command import UNKNOWN, Origin, run_options
from volseg.planning.search import Candidate

_RESERVE = 1.1
"""Of memory asked for: the plan may be wrong by a tenth."""

NOTICE = 120
"""Seconds before its limit of time that a training run is told to save its state and end."""


@dataclass(frozen=True)
class Place:
    """What a script asks for.

    threads   of each rank
    nodes     machines; None where nobody said what they are like, and the batch system may choose
    per_node  ranks on each
    memory    bytes of each
    """

    threads: int
    nodes: int | None = None
    per_node: int = 1
    memory: int = 0


def batch_script(
    task: str, run: Candidate, place: Place, origin: Origin = UNKNOWN, peak: int | None = None, site: Site = Site()  # noqa: B008  (frozen)
) -> str:  # fmt: skip
    """The script: ranks, threads and memory as planned; what to run it on stands at its head, to be filled in.

    A training script begins the run or goes on with it, saves before its time is over, and puts itself into the queue
    again until the run is done.

    peak  bytes of the rank that holds most; None for those of `run`
    """
    peak = run.plan.memory.peak if peak is None else peak
    lines = [
        "#!/bin/bash",
        *_HEADS[site.system](f"volseg-{task}", task == "train", run.ranks, place, peak, site),
        "",
        *_inputs(task, origin, site.system),
        *site.setup,
        f"export OMP_NUM_THREADS={place.threads}",
    ]
    options = " ".join(run_options(task, run, origin))
    launch = " ".join([*_launcher(run.ranks, site), "volseg"])
    if task == "train":
        lines += _training(f'{launch} train "$DATASET" -o "$RUN" $MORE {options}', site)
    else:
        lines += [f'{launch} segment "$SCAN" -o "$MASK" --model "$MODEL" --continue {options}']
    return "\n".join(lines) + "\n"


def _launcher(ranks: int, site: Site) -> list[str]:
    if site.system is System.SLURM:  # srun does not take over --cpus-per-task since Slurm 22.05
        return ["srun", *site.launch, "--cpus-per-task=$SLURM_CPUS_PER_TASK", "--cpu-bind=cores"]
    return ["mpirun", "-n", str(ranks), *site.launch]


def _inputs(task: str, origin: Origin, system: System) -> list[str]:
    """How it is submitted, and what it takes: words of the command line under Slurm, variables under the others."""
    model = shlex.quote(str(origin.model or "volseg-run"))
    names = {"train": ["DATASET", "RUN"], "segment": ["SCAN", "MASK", "MODEL"]}[task]
    meaning = {"DATASET": "?data set folder", "RUN": "-volseg-run", "SCAN": "?scan", "MASK": "?mask to write",
               "MODEL": f"-{model}"}  # fmt: skip
    optional = [f"[{name}]" if meaning[name].startswith("-") else name for name in names]
    how = {
        System.SLURM: f"sbatch SCRIPT {' '.join(optional)}",
        System.PBS: f"qsub -v {','.join(f'{name}=...' for name in names)} SCRIPT",
        System.LSF: f"{' '.join(f'{name}=...' for name in names)} bsub < SCRIPT",
    }[system]
    lines = [f"# {how}", "set -euo pipefail"]
    if system is System.PBS:
        lines.append('cd "$PBS_O_WORKDIR"')
    elif system is System.LSF and task == "train":
        lines.append("trap : USR1  # which is for the ranks; LSF sends it to this shell too")
    for number, name in enumerate(names, 1):
        source = str(number) if system is System.SLURM else name
        value = f"${{{source}:{meaning[name]}}}"
        lines.append(f'{name}="{value}"' if name != "MODEL" else f"{name}={value}")
    return lines


def _training(command: str, site: Site) -> list[str]:
    """Begin or go on, and wait in the queue again while there is something left to do."""
    again = {
        System.SLURM: 'scontrol requeue "$SLURM_JOB_ID"',
        System.PBS: 'qsub -v "DATASET=$DATASET,RUN=$RUN" "$0"',
        System.LSF: 'brequeue "$LSB_JOBID"',
    }[site.system]
    if site.system is System.PBS:  # it says nothing before the limit that all of its versions agree on
        command += f" --max-time {max(60, site.seconds - 2 * NOTICE)}"
    return [
        "MORE=",
        'if ls "$RUN"/checkpoints/step_*.safetensors >/dev/null 2>&1; then',
        "    MORE=--continue",
        'elif [ -e "$RUN/config.toml" ]; then',
        "    MORE=--overwrite  # ended before its first checkpoint: there is nothing to keep",
        "fi",
        command,
        f"""if grep -Eq '"stopped": "(signal|max-time)"' "$RUN/report.json"; then {again}; fi""",
    ]


def _clock(seconds: int, parts: int = 3) -> str:
    """Hours and minutes, and seconds where there are three parts."""
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}"
    return f"{text}:{seconds % 60:02d}" if parts == 3 else text


def _slurm(name: str, goes_on: bool, ranks: int, place: Place, peak: int, site: Site) -> list[str]:
    options = [f"job-name={name}"]
    tasks = [f"ntasks={ranks}", f"cpus-per-task={place.threads}"]
    if place.nodes is None:
        options += [*tasks, f"mem-per-cpu={ceil(peak * _RESERVE / place.threads / 2**20)}M"]
    else:
        memory = _memory_of_node(ranks, place, peak)
        options += [f"nodes={place.nodes}", f"ntasks-per-node={min(place.per_node, ranks)}", *tasks, f"mem={memory}M"]
    options.append(f"time={_clock(site.seconds)}")
    options += [f"account={site.account}"] if site.account else []
    options += [f"partition={site.queue}"] if site.queue else []
    if goes_on:
        options += [f"signal=USR1@{NOTICE}", "requeue", "open-mode=append"]
    return [f"#SBATCH --{option}" for option in options]


def _pbs(name: str, goes_on: bool, ranks: int, place: Place, peak: int, site: Site) -> list[str]:
    per_node = min(place.per_node, ranks) if place.nodes is not None else 1
    chunks = ranks if place.nodes is None else place.nodes
    memory = ceil(peak * _RESERVE / 2**20) if place.nodes is None else _memory_of_node(ranks, place, peak)
    chunk = f"ncpus={per_node * place.threads}:mpiprocs={per_node}:ompthreads={place.threads}:mem={memory}mb"
    lines = [f"-N {name}", f"-l select={chunks}:{chunk}", f"-l walltime={_clock(site.seconds)}", "-j oe"]
    lines += [f"-A {site.account}"] if site.account else []
    lines += [f"-q {site.queue}"] if site.queue else []
    return [f"#PBS {line}" for line in [*lines, f"-r {'y' if goes_on else 'n'}"]]


def _lsf(name: str, goes_on: bool, ranks: int, place: Place, peak: int, site: Site) -> list[str]:
    lines = [f"-J {name}", f"-n {ranks}", f"-W {_clock(site.seconds, 2)}", f"-o {name}.%J.log"]
    lines.append(f'-R "affinity[core({place.threads})]"')
    lines.append(f'-R "rusage[mem={ceil(peak * _RESERVE / 2**20)}MB/task]"')
    if place.nodes is not None:
        lines.append(f'-R "span[ptile={min(place.per_node, ranks)}]"')
    lines += [f"-P {site.account}"] if site.account else []
    lines += [f"-q {site.queue}"] if site.queue else []
    if goes_on:
        lines += [f"-wa USR1 -wt {ceil(NOTICE / 60)}", "-r"]
    return [f"#BSUB {line}" for line in lines]


def _memory_of_node(ranks: int, place: Place, peak: int) -> int:
    """MiB that its ranks need. The plan fits the machine with less of a reserve; what it has not is not given."""
    return min(ceil(peak * min(place.per_node, ranks) * _RESERVE), place.memory) // 2**20


_HEADS = {System.SLURM: _slurm, System.PBS: _pbs, System.LSF: _lsf}
"""The lines at the head that say what a job asks for."""
