"""One message, one exit code, soon: however many ranks fail, and whatever the others are doing."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from volseg.cli.failure import describe
from volseg.errors import VolsegError

JOB = """
import os, signal, sys, time
import numpy as np
import typer
from volseg.cli.job import job
from volseg.errors import VolsegError
from volseg.events import Progress

with job(debug="--debug" in sys.argv) as running:
    rank, communicator = running.communicator.rank, running.communicator
    running.listen(Progress("work", 1, 4))
{body}
"""


def body(*lines: str) -> str:
    return JOB.format(body="\n".join(f"    {line}" for line in lines))


@pytest.fixture
def fail(tmp_path, mpirun):
    """Run the lines as a job's body on some ranks and return (its result, its seconds)."""

    def start(ranks, *lines, arguments=()):
        script = tmp_path / "script.py"
        script.write_text(body(*lines))
        begin = time.monotonic()
        run = mpirun(ranks, [script, *arguments], timeout=30)
        return run, time.monotonic() - begin

    return start


def errors(run: subprocess.CompletedProcess[str]) -> list[str]:
    """Standard error without the root rank's progress."""
    return [line for line in run.stderr.splitlines() if not line.startswith("work")]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_all_ranks_failing_alike_give_one_message(fail, ranks):
    run, seconds = fail(ranks, "raise VolsegError('no such scan: a.nii')")
    assert run.returncode == 2
    assert errors(run) == ["error: no such scan: a.nii"]
    assert seconds < 15


def test_ranks_failing_differently_each_give_their_message_once(fail):
    run, _ = fail(4, "raise VolsegError('even') if rank % 2 == 0 else VolsegError('odd')")
    assert run.returncode == 2
    assert errors(run) == ["error: even", "error: odd"]


def test_a_late_failure_is_still_one_failure_of_all(fail):
    run, _ = fail(2, "time.sleep(0.8 * rank)", "raise VolsegError('late')")
    assert run.returncode == 2
    assert errors(run) == ["error: late"]


@pytest.mark.parametrize(
    "waiting",
    [
        "communicator.barrier()",
        "communicator.reduce_all(np.ones(10))",
        "communicator.send_receive([], [(1, np.zeros(4))]) if rank == 0 else communicator.barrier()",
        "time.sleep(60)",
        "exec('while True: np.linalg.svd(np.ones((300, 300)))')",
    ],
)
def test_one_rank_failing_ends_the_others_wherever_they_are(fail, waiting):
    run, seconds = fail(3, "if rank == 1: raise VolsegError('slice 7 is damaged')", waiting)
    assert run.returncode == 2
    assert errors(run) == ["rank 1: error: slice 7 is damaged"]
    assert seconds < 15


def test_of_two_failing_ranks_one_speaks(fail):
    run, seconds = fail(4, "if rank in (1, 2): raise VolsegError('bad')", "communicator.barrier()")
    assert run.returncode == 2
    assert errors(run) == ["rank 1: error: bad"]
    assert seconds < 15


def test_messages_in_flight_do_not_keep_a_failed_job_alive(fail):
    lost = "communicator.comm.Isend(np.zeros(4_000_000), dest=1 - rank)"
    run, seconds = fail(2, f"kept = {lost}", "raise VolsegError('bad')")
    assert run.returncode == 2
    assert errors(run) == ["error: bad"]
    assert seconds < 15


def test_a_bug_is_one_line_and_exit_code_1(fail):
    run, _ = fail(2, "if rank == 1: raise RuntimeError('shapes\\ndiffer')", "communicator.barrier()")
    assert run.returncode == 1
    assert errors(run) == ["rank 1: internal error: RuntimeError: shapes (run again with --debug)"]


def test_debug_shows_the_traceback(fail):
    line = "if rank == 1: raise RuntimeError('shapes differ')"
    run, _ = fail(2, line, "communicator.barrier()", arguments=["--debug"])
    assert run.returncode == 1
    assert "Traceback" in run.stderr
    assert line in run.stderr


def test_a_killed_rank_ends_the_job(fail):
    run, seconds = fail(2, "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)", "communicator.barrier()")
    assert run.returncode != 0
    assert seconds < 15


def test_a_command_s_own_exit_code_is_kept(fail):
    run, _ = fail(2, "communicator.barrier()", "raise SystemExit(3)")
    assert run.returncode == 3
    assert errors(run) == []


def test_interrupt_is_130(tmp_path):
    script = tmp_path / "script.py"
    # A shell starts what it puts into the background with SIGINT ignored, and programs inherit that.
    listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script.write_text(body(listening, "print('ready', flush=True)", "time.sleep(60)"))
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == "ready"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=15)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err


def test_a_launcher_of_another_mpi_is_refused(python, tmp_path):
    """Open MPI's mpirun, as an MPI library of another make sees it: its variables set, its ranks nowhere."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom volseg.cli import app\nfrom volseg.cli.job import job\n"
        "app.load = lambda name: command\nimport typer\n"
        "def info() -> None:\n    with job(): print('ran')\n"
        "single = typer.Typer(add_completion=False)\nsingle.command('info')(info)\n"
        "command = typer.main.get_command(single)\n"
        "sys.argv = ['volseg', 'info']\napp.main()\n"
    )
    first = python([script], env={"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"})
    assert first.returncode == 2
    assert first.stdout == ""
    lines = first.stderr.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(
        r"error: started by Open MPI's mpirun, but MPI is MPICH Version: \S+, which does not understand it", lines[0]
    )
    assert str(Path(sys.executable).parent) in lines[1]

    second = python([script], env={"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"})
    assert second.returncode == 2
    assert second.stderr == ""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (VolsegError("bad value 3, limit 2"), 2, "error: bad value 3, limit 2"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "/x/mask.nii"), 1, "error: /x/mask.nii: No space left on device; free"),
        (MemoryError(), 1, "error: out of memory: no message\nMore ranks need less each"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 GB"), 1, "error: out of memory: DefaultCPU"),
        (ZeroDivisionError("a\nb"), 1, "internal error: ZeroDivisionError: a (run again with --debug)"),
    ],
)
def test_what_an_error_means(error, code, message):
    failure = describe(error)
    assert failure.code == code
    assert failure.message.startswith(message)
    assert len(failure.message.splitlines()) <= 2
