"""Commands under a real Slurm of two machines: how ranks are started, signalled, killed and started again."""

import csv
import json
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

from clusters.slurm_bed import slurm, why_not
from conftest import clean_environment
from tiny import tiny_dataset
from volseg.cli.app import run as command_line

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
VOLSEG = (sys.executable, "-m", "volseg")
RANKS = """
import os, sys, time
from volseg.cli.job import job
from volseg.errors import VolsegError

with job() as work:
    communicator = work.communicator
    {body}
"""


@pytest.fixture(scope="module")
def bed():
    with (
        tempfile.TemporaryDirectory(prefix="bed", dir="/tmp") as folder,
        slurm(Path(folder), clean_environment()) as up,
    ):
        yield up


@pytest.fixture
def script(tmp_path):
    """A program of ranks that run a line."""

    def write(body):
        path = tmp_path / "ranks.py"
        path.write_text(RANKS.format(body=body))
        return path

    return write


def test_srun_that_speaks_to_no_mpi_is_told_what_to_be_given(bed, tmp_path):
    command = (*VOLSEG, "generate", "data", "--shape=16x16x16", "--cases=1")
    run = bed.run("srun", "-n2", *command, cwd=tmp_path)
    assert run.returncode == 2, run.stderr
    said = [line for line in run.stderr.splitlines() if not line.startswith("srun:")]
    assert said[0].startswith("error: srun started 2 ranks, but MPI (MPICH")
    assert said[1:] == ["Start the job with: srun --mpi=pmi2 ..."]
    remedy = said[1].split()[-2]
    run = bed.run("srun", remedy, "-N2", "-n2", *command, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "data" / "dataset.json").is_file()


def test_sums_have_the_same_bits_wherever_the_ranks_are(bed, script):
    body = (
        "import numpy as np; rng = np.random.default_rng(communicator.rank); "
        "values = [communicator.reduce_all(rng.standard_normal(n, dtype=np.float32)).tobytes() for n in (5, 20000)]; "
        "import hashlib; work.print(hashlib.sha256(b''.join(values)).hexdigest())"
    )
    shapes = (["-N1"], ["-N2"], ["-N2", "--distribution=cyclic"])
    runs = [
        bed.run("srun", "--mpi=pmi2", "-n4", "--overcommit", *shape, sys.executable, script(body)) for shape in shapes
    ]
    assert [run.returncode for run in runs] == [0, 0, 0], runs[1].stderr
    assert len({run.stdout for run in runs}) == 1


def test_a_users_error_has_its_own_exit_code(bed, script):
    path = script("raise VolsegError('no such scan')")
    run = bed.run("srun", "--mpi=pmi2", "-N2", "-n2", "--kill-on-bad-exit=1", sys.executable, path)
    assert run.returncode == 2, run.stderr
    assert [line for line in run.stderr.splitlines() if not line.startswith("srun:")] == ["error: no such scan"]


def test_several_commands_in_a_step_of_one_task(bed, tmp_path):
    words = " ".join([*VOLSEG, "generate", "--shape=16x16x16", "--cases=1"])
    run = bed.run("srun", "--mpi=pmi2", "-n1", "sh", "-c", f"{words} first && {words} second", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert {"first", "second"} <= {path.name for path in tmp_path.iterdir()}


def test_the_others_end_the_job_when_a_rank_was_killed(bed, script):
    path = script("communicator.rank == 1 and os.kill(os.getpid(), 9); communicator.barrier()")
    command = ["srun", "--mpi=pmi2", "-n2", "--kill-on-bad-exit=0", "env", "VOLSEG_SILENCE=3", sys.executable, path]
    run = bed.run(*command, timeout=60)
    assert run.returncode != 0
    assert re.search(r"rank 0: error: nothing was heard of rank 1 on bed[12] for 3 seconds", run.stderr), run.stderr


@pytest.fixture
def training_script(capsys, tmp_path):
    """The script that is printed for two ranks, as it is, and the data set."""
    dataset = tiny_dataset(tmp_path / "data")
    options = ["--shape=16x16x16", "--ranks=2", "--for=train", "--base-channels=4", "--levels=2", "--time=5m"]
    assert (
        command_line(["plan-partition", *options, "--launch-options=--mpi=pmi2 --kill-on-bad-exit=1", "--slurm"]) == 0
    )
    path = tmp_path / "train.sh"
    path.write_text(capsys.readouterr().out)
    (tmp_path / "config.toml").write_text("[model]\nbase_channels = 4\nlevels = 2\n")
    return path, dataset


def losses(run: Path) -> list[str]:
    with (run / "log.csv").open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def steps(run: Path) -> int:
    return len(losses(run)) if (run / "log.csv").is_file() else 0


def submitted(bed, path: Path, dataset: Path, run: Path, count: int) -> int:
    """The number of the job that trains, when it has made so many steps."""
    job = bed.submit(path, dataset, run)
    deadline = time.monotonic() + 150
    while steps(run) < count:
        assert time.monotonic() < deadline, (path.parent / f"slurm-{job}.out").read_text()
        time.sleep(0.2)
    return job


def test_the_printed_script_saves_queues_itself_again_and_goes_on(bed, tmp_path, training_script):
    path, dataset = training_script
    text = path.read_text()
    assert "--signal=USR1@120" in text
    path.write_text(text.replace("$MORE --partition", "$MORE --epochs 12 --validation 0 --partition"))
    run = tmp_path / "run"
    job = submitted(bed, path, dataset, run, 3)
    bed.run("scancel", "--signal=USR1", job)  # as Slurm does before the limit
    facts = bed.wait(job, ("PENDING", "COMPLETED", "FAILED"))
    output = (tmp_path / f"slurm-{job}.out").read_text()
    assert (facts["JobState"], facts["Restarts"]) == ("PENDING", "1"), output
    assert "go on with: srun --mpi=pmi2 --kill-on-bad-exit=1 -n 2 volseg train" in output
    assert json.loads((run / "report.json").read_text())["stopped"] == "signal"
    bed.run("scancel", job)  # Slurm lets it wait for two minutes; submitted again, the script goes on at once
    job = bed.submit(path, dataset, run)
    facts = bed.wait(job, ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"))
    output = (tmp_path / f"slurm-{job}.out").read_text()
    assert facts["JobState"] == "COMPLETED", output
    assert "going on from step" in output
    report = json.loads((run / "report.json").read_text())
    assert report["stopped"] is None
    assert steps(run) == report["all_steps"]


def test_a_killed_rank_ends_the_printed_script_soon(bed, tmp_path, training_script):
    path, dataset = training_script
    path.write_text(path.read_text().replace("$MORE --partition", "$MORE --epochs 4000 --partition"))
    run = tmp_path / "run"
    job = submitted(bed, path, dataset, run, 2)
    ranks = bed.run("pgrep", "-f", f"train {dataset} -o {run}").stdout.split()
    victims = [one for one in map(int, ranks) if Path(f"/proc/{one}/comm").read_text().strip() in ("volseg", "python")]
    os.kill(victims[-1], signal.SIGKILL)
    facts = bed.wait(job, ("COMPLETED", "FAILED", "CANCELLED", "OUT_OF_MEMORY"), 60)
    assert facts["JobState"] == "FAILED"
