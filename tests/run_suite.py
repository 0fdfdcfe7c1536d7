#!/usr/bin/env python3
"""Run the whole test suite: serial tests once, then the parallel ones on 2, 3, 4 and 8 ranks.

    python tests/run_suite.py [--ranks 1,2,4] [paths and options for pytest]

Serial tests are shared among the cores by pytest-xdist (``-n 0`` puts them all into one process, as ``--pdb`` needs).
Rank 0's pytest is shown as it goes; another rank's output is shown, with its number, where that rank failed. A run
that hangs is ended. A test counts once per number of ranks, as failed where any rank failed it or never finished it.
The last line adds everything up: ``N passed, N failed, N skipped``.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RUN_LIMIT = 1500  # seconds for one run of all tests on one number of ranks
TEST_LIMIT = 180  # seconds for one test on several ranks
MOST_PROCESSES = 8  # that share the serial tests: each loads torch and compiles kernels of its own
# MPICH's ranks spin while they wait: where they share a core, let them give it up sooner, and properly.
YIELDING = {"MPIR_CVAR_ENABLE_HEAVY_YIELD": "1", "MPIR_CVAR_POLLS_BEFORE_YIELD": "10"}
NO_TESTS = 5  # pytest's exit code where nothing was collected
WORST_FIRST = ("failed", "unfinished", "skipped", "passed")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--ranks", default="1,2,3,4,8", help="numbers of ranks, with commas (default 1,2,3,4,8)")
    options, pytest_arguments = parser.parse_known_args()
    total: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="volseg-machine-code-") as machine_code:
        for ranks in map(int, options.ranks.split(",")):
            counts, failed = run(ranks, pytest_arguments, machine_code)
            total += counts
            failures += failed
    print("\n== All runs", flush=True)
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped", flush=True)
    return 1 if total["failed"] or not total["passed"] else 0


def run(ranks: int, pytest_arguments: list[str], machine_code: str) -> tuple[Counter[str], list[str]]:
    """One pytest run on `ranks` ranks: its tests by outcome, and the names of those that failed.

    `machine_code` is the folder of compiled kernels that all processes of all runs share.
    """
    print(f"\n== {ranks} rank{'s' if ranks > 1 else ''}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="volseg-tests-") as folder:
        code = start_pytest(ranks, pytest_arguments, Path(folder), machine_code)
        worst, all_finished = outcomes(Path(folder), ranks)
        if code not in (0, NO_TESTS):
            show_other_ranks(Path(folder))
    counts = Counter("failed" if outcome == "unfinished" else outcome for outcome in worst.values())
    failed = [f"{test} ({ranks} ranks, {what})" for test, what in worst.items() if what in ("failed", "unfinished")]
    broken = code not in (0, NO_TESTS) or not all_finished
    if broken and not failed:
        # An error outside any test (at collection, in a killed process) must not pass for success.
        counts["failed"] += 1
        failed.append(f"the run on {ranks} ranks (exit code {code})")
    print(f"== {ranks} rank{'s' if ranks > 1 else ''} took {time.monotonic() - start:.0f} s", flush=True)
    return counts, failed


def start_pytest(ranks: int, pytest_arguments: list[str], folder: Path, machine_code: str) -> int:
    """Start pytest on every rank, wait for it, and return the launcher's exit code; it is killed at RUN_LIMIT."""
    pytest = ["-m", "pytest", "-m", f"parallel[{ranks}]"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VOLSEG_TEST_OUTCOMES": str(folder)}
    environment["VOLSEG_CACHE"] = machine_code
    # Every rank of every run imports the same files: compiled and rewritten for pytest once, they are read by all.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if ranks == 1:
        # Each process begins with neighbouring tests, so that a module's fixtures are made once, and takes some of
        # another's when its own are done.
        pytest += ["-n", str(min(os.cpu_count() or 1, MOST_PROCESSES)), "--dist", "worksteal"]
        command = [sys.executable]
    else:
        # A rank that waits in MPI sees no signal: the thread method ends its process, and so the whole run.
        pytest += [f"--timeout={TEST_LIMIT}", "--timeout-method=thread"]
        launcher = Path(sys.executable).with_name("mpiexec")
        command = [str(launcher), "-n", str(ranks), sys.executable, __file__, "--as-rank", str(folder)]
        environment["MPIEXEC_TIMEOUT"] = str(RUN_LIMIT)
        if ranks > (os.cpu_count() or 1):
            environment |= YIELDING
    command += [*pytest, *pytest_arguments]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return process.wait(timeout=RUN_LIMIT + 10)
    except subprocess.TimeoutExpired:
        print(f"stopped after {RUN_LIMIT} s", flush=True)
        return 124
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a launcher that still runs, and with it its ranks."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, signal_number)
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                continue


def become_rank(folder: Path, command: list[str]) -> None:
    """What each rank runs: pytest in this process's place; ranks other than 0 write to files."""
    rank = int(os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or 0)
    if rank > 0:
        log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
    os.execv(sys.executable, [sys.executable, *command])


def outcomes(folder: Path, ranks: int) -> tuple[dict[str, str], bool]:
    """Each test's worst outcome over the ranks, and whether every rank came to the end (see tests/conftest.py)."""
    worst: dict[str, str] = {}
    finished = 0
    for notes in folder.glob("*.outcomes"):
        own: dict[str, str] = {}
        for line in notes.read_text().splitlines():
            outcome, _, test = line.partition("\t")
            if outcome == "finished":
                finished += 1
            elif own.get(test) != "failed":  # a test may pass and then fail at its teardown
                own[test] = outcome
        for test, outcome in own.items():
            worst[test] = min(outcome, worst.get(test, "passed"), key=WORST_FIRST.index)
    return worst, finished == ranks


def show_other_ranks(folder: Path) -> None:
    """Print what the ranks other than 0 wrote where they failed."""
    for log in sorted(folder.glob("rank-*.log")):
        text = log.read_text(errors="replace")
        if "FAILED" in text or "ERROR" in text or "Timeout" in text or "Traceback" in text:
            print(f"\n-- {log.stem.replace('-', ' ')}")
            print("\n".join(f"   {line}" for line in text.splitlines()[-120:]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-rank"]:
        become_rank(Path(sys.argv[2]), sys.argv[3:])
    sys.exit(main())
