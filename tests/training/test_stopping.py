"""Runs that stop before their end: at the same step on all ranks, with nothing lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import clean_environment
from tiny import SERIAL, losses, tiny_config, tiny_dataset
from volseg.errors import ConfigError
from volseg.models.stored import load_model
from volseg.sizes import parse_duration
from volseg.training import stopping
from volseg.training.job import TrainingJob
from volseg.training.keeping import stored_checkpoints
from volseg.training.loop import train

SMALL = ["--base-channels=4", "--levels=2", "--validation=0"]


@pytest.fixture
def shared(tmp_path, communicator):
    """One folder for all ranks, with a data set of three cases."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            tiny_dataset(folder / "data", cases=3, shape=(27, 22, 30))
    return folder


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_as_if_it_had_not(shared, communicator, number):
    """It comes to the last rank, between the third step and the fourth, which is the last one then."""
    config = tiny_config(epochs=3, learning_rate=1e-3)
    before = signal.getsignal(number)
    whole = train(TrainingJob(shared / "data", shared / "whole", config), communicator)
    assert (whole.steps, whole.all_steps, whole.stopped) == (9, 9, None)

    def send(event):
        if getattr(event, "task", None) == "train" and event.done == 3 and communicator.rank == communicator.size - 1:
            os.kill(os.getpid(), number)

    parts = train(TrainingJob(shared / "data", shared / "parts", config), communicator, send)
    assert (parts.steps, parts.all_steps, parts.stopped) == (4, 9, "signal")
    assert signal.getsignal(number) == before
    if communicator.is_root:
        assert len(losses(shared / "parts")) == load_model(shared / "parts")[1].step == 4
        report = json.loads((shared / "parts" / "report.json").read_text())
        assert (report["stopped"], report["steps"], report["all_steps"]) == ("signal", 4, 9)
    communicator.barrier()
    train(TrainingJob(shared / "data", shared / "parts", config, proceed=True), communicator)
    if communicator.is_root:
        np.testing.assert_array_equal(losses(shared / "parts"), losses(shared / "whole"))
        assert json.loads((shared / "parts" / "report.json").read_text())["stopped"] is None


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_each_step_can_be_the_last_of_a_job(tmp_path, norm, optimizer, monkeypatch):
    """Dropout, running statistics, warm-up, validation and an epoch's incomplete last batch: not a bit is lost."""
    monkeypatch.setattr("volseg.training.record.draw_progress", lambda run, rows: None)
    from dataclasses import replace

    config = tiny_config(epochs=3, optimizer=optimizer, learning_rate=1e-3, warmup=4, accumulate=2, validation=1)
    config = replace(config, model=replace(config.model, norm=norm, dropout=0.2))
    data = tiny_dataset(tmp_path / "data", cases=4)
    train(TrainingJob(data, tmp_path / "whole", config), SERIAL)
    jobs = 0
    report = train(TrainingJob(data, tmp_path / "parts", config, max_time=0.0), SERIAL)
    while report.stopped:
        jobs += 1
        assert (report.steps, report.stopped) == (jobs, "max-time")
        report = train(TrainingJob(data, tmp_path / "parts", config, proceed=True, max_time=0.0), SERIAL)
    assert jobs == 5
    for column in ("loss", "validation_dice"):
        assert read(tmp_path / "parts", column) == read(tmp_path / "whole", column)
    ours, theirs = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("parts", "whole"))
    assert ours == theirs
    assert (tmp_path / "parts/best.safetensors").read_bytes() == (tmp_path / "whole/best.safetensors").read_bytes()


def read(run, column):
    lines = [line.split(",") for line in (run / "log.csv").read_text().splitlines()]
    return [line[lines[0].index(column)] for line in lines[1:]]


class Clock:
    """In place of the time module."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.mark.parallel([1, 2])
def test_time_is_up_where_the_slowest_step_and_a_checkpoint_would_not_fit(communicator, monkeypatch):
    """By the root's clock; the others' may be anywhere."""
    clock = Clock()
    monkeypatch.setattr(stopping, "time", clock)
    limited = stopping.Stopping(communicator, 60.0)
    clock.now += 10 if communicator.is_root else 1000
    limited.begin()
    answers = []
    for seconds in (5, 20, 5, 5):  # 15, 35, 40, 45 s gone; 22 s for a step and 3 s for a checkpoint are kept free
        clock.now += seconds
        answers.append(limited.after_step(3.0 if communicator.is_root else 0.0))
    assert answers == [None, "max-time", "max-time", "max-time"]
    roomy = stopping.Stopping(communicator, 59.0)
    clock.now += 10
    roomy.begin()
    clock.now += 20
    assert [roomy.after_step(3.0), roomy.after_step(6.0)] == [None, "max-time"]
    assert stopping.Stopping(communicator, None).after_step(3.0) is None


@pytest.mark.parallel([1, 2])
def test_a_finer_level_is_reckoned_with_before_its_first_step(communicator, monkeypatch):
    """A step of 2 s on 1000 voxels is one of 16 s on 8000; once that is measured, the measure counts."""
    clock = Clock()
    monkeypatch.setattr(stopping, "time", clock)

    def answers(limit, *steps):
        stops = stopping.Stopping(communicator, limit)
        stops.begin()
        found = []
        for seconds, made, following in steps:
            clock.now += seconds
            found.append(stops.after_step(0.0, made, following))
        return found

    assert answers(20.0, (2, 1000, 1000), (2, 1000, 8000)) == [None, "max-time"]
    assert answers(25.0, (2, 1000, 1000), (2, 1000, 8000)) == [None, None]
    assert answers(21.0, (10, 8000, 1000), (1, 1000, 1000), (1, 1000, 8000)) == [None, None, "max-time"]
    assert answers(27.0, (10, 8000, 1000), (1, 1000, 1000), (1, 1000, 8000)) == [None, None, None]


def test_in_a_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter():
        with stopping.Stopping(SERIAL, None) as stops:
            seen.append((signal.getsignal(signal.SIGTERM), stops.after_step(0.0)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("3h50m", 13800),
        ("5400", 5400),
        ("1h1m1s", 3661),
        ("1h30", 5400),
        ("1.5h", 5400),
        ("01:00:00", 3600),
        ("1-12:00:00", 129600),
        ("1-12", 129600),
        ("2-00:30", 174600),
        ("30:00", 1800),
        ("2 days", 172800),
        ("1 h 30 min", 5400),
        ("1d", 86400),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "30m1h", "h", "1d1d", "3x", "1:2:3:4", "1:60:00", "UNLIMITED", "1h 2 3"]
)
def test_no_durations(text):
    with pytest.raises(ConfigError, match=r"--max-time .*give a time such as 3h50m"):
        parse_duration(text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_launcher_reaches_the_ranks(tmp_path, python, number):
    """The job says how to go on, and ends with 0; so it does on one process."""
    data = tiny_dataset(tmp_path / "data set")
    launcher = Path(sys.executable).with_name("mpiexec")
    if not launcher.exists():
        pytest.skip("no mpiexec beside this Python (pip install mpich)")
    with (tmp_path / "out").open("w") as out:
        job = subprocess.Popen(
            [launcher, "-n", "2", sys.executable, "-m", "volseg", "train", data, "-o", "run", "--epochs=9000", *SMALL],
            cwd=tmp_path, env=clean_environment(MPIEXEC_TIMEOUT="120"), stdin=subprocess.DEVNULL, stdout=out,
            stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        log, deadline = tmp_path / "run" / "log.csv", time.monotonic() + 100
        while not log.is_file() or log.read_text().count("\n") < 4:
            assert job.poll() is None, (tmp_path / "out").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        job.send_signal(number)
        assert job.wait(timeout=60) == 0, (tmp_path / "out").read_text()
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    steps = len(losses(tmp_path / "run"))
    said = (tmp_path / "out").read_text().splitlines()
    assert f"stopped at step {steps} of 18000; go on with: mpirun -n 2 volseg train '{data}' -o run --continue" in said
    assert [path.name for path in stored_checkpoints(tmp_path / "run")] == [f"step_{steps:08d}.safetensors"]
    again = python(
        ["-m", "volseg", "train", data, "-o", "run", "--continue", "--max-time=1s", "-q"], cwd=tmp_path, timeout=100
    )
    assert again.returncode == 0, again.stderr
    assert f"stopped at step {steps + 1} of 18000" in again.stdout
