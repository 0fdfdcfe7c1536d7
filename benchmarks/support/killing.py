"""Training jobs that are killed on purpose, and what they leave."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from support.launch import mpirun

JOB_LIMIT = 300.0  # seconds for a job to get on, before the program gives up


@dataclass(frozen=True)
class Death:
    """Of a job of which one rank was killed.

    after    steps in its log at that moment
    seconds  from then until the launcher had ended
    code     its exit status
    """

    rank: int
    after: int
    seconds: float
    code: int


def start(folder: Path, ranks: int, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """`volseg train` on so many ranks, each with one thread, in the background; what it prints goes into `log`."""
    command = [*mpirun(ranks), sys.executable, "-m", "volseg", "train", *arguments, "-q"]
    with log.open("ab") as out:
        return subprocess.Popen(
            command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1", "MPIEXEC_TIMEOUT": str(int(JOB_LIMIT))},
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip


def finish(folder: Path, ranks: int, arguments: Sequence[str], log: Path) -> float:
    """The same, waited for: its seconds. Raises SystemExit where it fails."""
    begun = time.monotonic()
    job = start(folder, ranks, arguments, log)
    try:
        code = job.wait(JOB_LIMIT)
    finally:
        _end(job)
    if code:
        raise SystemExit(f"volseg train {' '.join(arguments)} on {ranks} ranks ended with {code}:\n{log.read_text()}")
    return time.monotonic() - begun


def kill_one(
    folder: Path, run: Path, ranks: int, arguments: Sequence[str], log: Path, *, rank: int, rows: int, pause: float
) -> Death:  # fmt: skip
    """Start a job and send SIGKILL to one of its ranks `pause` seconds after its log has so many steps.

    Raises SystemExit where the job has ended before that.
    """
    job = start(folder, ranks, arguments, log)
    try:
        deadline = time.monotonic() + JOB_LIMIT
        while len(losses(run)) < rows or len(found := rank_processes(job.pid)) < ranks:
            if job.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(
                    f"the job to be killed has {job.poll()} and {len(losses(run))} steps:\n{log.read_text()}"
                )
            time.sleep(0.002)
        time.sleep(pause)
        after = len(losses(run))
        os.kill(found[rank], signal.SIGKILL)
        begun = time.monotonic()
        code = job.wait(JOB_LIMIT)
        return Death(rank, after, time.monotonic() - begun, code)
    finally:
        _end(job)


def rank_processes(launcher: int) -> dict[int, int]:
    """Process of each rank that a launcher started, by rank; Linux, under MPICH's hydra."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, below = {}, [launcher]
    while below:
        process = below.pop()
        below += children.get(process, [])
        try:
            environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found |= {int(v[9:]): process for v in environment if v.startswith(b"PMI_RANK=")}
    return found


def losses(run: Path) -> np.ndarray:
    """The losses in a run's log, without a line that is being written; none where there is no log yet."""
    try:
        text = (run / "log.csv").read_text()
    except FileNotFoundError:
        return np.empty(0)
    return np.array([float(row["loss"]) for row in csv.DictReader(text.rpartition("\n")[0].splitlines())])


def relative_difference(curve: np.ndarray, reference: np.ndarray) -> float:
    """The largest; infinite where one curve has other steps than the other."""
    if curve.shape != reference.shape:
        return float("inf")
    return float(np.max(np.abs(curve - reference) / np.abs(reference)))


def _end(job: subprocess.Popen[bytes]) -> None:
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
