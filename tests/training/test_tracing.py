"""A trace of training: which steps, and what is in it."""

import json
from pathlib import Path

import pytest

from tiny import SERIAL, tiny_config, tiny_dataset
from volseg.errors import VolsegError
from volseg.training.job import TrainingJob
from volseg.training.loop import train


@pytest.fixture
def shared(tmp_path, communicator):
    """One folder for all ranks, with a data set of two cases."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            tiny_dataset(folder / "data")
    return folder


def complete_events(path):
    return [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]


def steps_in(path):
    return [e["name"] for e in complete_events(path) if e["name"].startswith("step ")]


@pytest.mark.parallel([1, 2])
def test_the_trace_has_both_ranks_and_the_steps_asked_for(shared, communicator):
    path = shared / "run" / "trace.json"  # the run folder is not there yet
    job = TrainingJob(shared / "data", shared / "run", tiny_config(epochs=3), trace=path, trace_steps=2)
    report = train(job, communicator)
    if not communicator.is_root:
        return
    events = complete_events(path)
    assert {event["pid"] for event in events} == set(range(communicator.size))
    assert steps_in(path) == ["step 2", "step 3"] * communicator.size
    assert {"convolution", "norm", "optimizer", "input and output", "pooling", "head and loss"} <= {
        event["cat"] for event in events
    }
    assert ("halo" in {event["cat"] for event in events}) == (communicator.size > 1)
    assert {"encoder 0.1", "decoder 0.2, backward"} <= {e["name"] for e in events if e["cat"] == "layer"}
    assert max(event["ts"] + event["dur"] for event in events) < report.seconds * 1e6
    for rank in range(communicator.size):  # all that a rank does it does within its phases
        own = [event for event in events if event["pid"] == rank]
        phases = sum(event["dur"] for event in own if event["cat"] == "phase")
        assert sum(event["dur"] for event in own if event["cat"] == "convolution") < phases


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(2, 9, ["step 2", "step 3", "step 4"]), (1, 1, ["step 2"])])
def test_a_short_run_traces_what_there_is(tmp_path, epochs, steps, expected):
    tiny_dataset(tmp_path / "data")
    path, config = tmp_path / "t.json", tiny_config(epochs=epochs)
    train(TrainingJob(tmp_path / "data", tmp_path / "run", config, trace=path, trace_steps=steps), SERIAL)
    assert steps_in(path) == expected


@pytest.mark.parametrize(
    ("trace", "steps", "message"),
    [
        ("none/t.json", 3, "make it first"),
        ("t.txt", 3, r"\.json"),
        ("t.json", 0, "one step"),
        ("old.json", 3, "exists"),
    ],
)
def test_what_cannot_be_written_is_refused_before_training(tmp_path, trace, steps, message):
    tiny_dataset(tmp_path / "data")
    (tmp_path / "old.json").write_text("{}")
    job = TrainingJob(tmp_path / "data", tmp_path / "run", tiny_config(), trace=tmp_path / trace, trace_steps=steps)
    with pytest.raises(VolsegError, match=message):
        train(job, SERIAL)
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "old.json").read_text() == "{}"
