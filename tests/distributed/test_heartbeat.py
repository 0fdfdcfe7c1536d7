"""Ranks that hear each other: silence ends the job, work and waiting do not."""

import pytest

from volseg.distributed.heartbeat import SILENCE, allowed_silence

PROGRAM = """
import os, signal, sys, time
from volseg.cli.job import job

with job() as work:
    communicator = work.communicator
    {body}
"""


@pytest.fixture
def ranks(tmp_path, mpirun):
    def start(body, silence):
        script = tmp_path / "ranks.py"
        script.write_text(PROGRAM.format(body=body))
        return mpirun(3, [script], timeout=60, env={"VOLSEG_SILENCE": str(silence)})

    return start


@pytest.mark.parametrize("name", ["SIGSTOP"])
def test_a_rank_that_is_stopped_ends_the_job(ranks, name):
    run = ranks(f"communicator.rank == 1 and os.kill(os.getpid(), signal.{name}); communicator.barrier()", 3)
    assert run.returncode == 1
    said, remedy = run.stderr.splitlines()[:2]
    assert said.startswith("rank 2: error: nothing was heard of rank 1 on ")
    assert "for 3 seconds: it was killed (out of memory?) or stopped" in said
    assert remedy.endswith("VOLSEG_SILENCE=6")


def test_ranks_that_work_wait_and_end_at_different_times_are_heard(ranks):
    body = (
        "communicator.rank == 2 and sum(n * n for n in range(20_000_000)); communicator.barrier(); "
        "time.sleep(2.0 * communicator.rank); work.print('done')"
    )
    run = ranks(body, 1.5)
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr


@pytest.mark.parametrize(("text", "seconds"), [("", SILENCE), ("90", 90), ("0", 0), ("-1", SILENCE), ("soon", SILENCE)])
def test_how_long_a_rank_may_be_silent(text, seconds):
    assert allowed_silence(text) == seconds
