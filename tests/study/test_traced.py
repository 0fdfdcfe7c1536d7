"""Time by kind of work from a trace: the innermost piece counts, and only in steps."""

import json

import pytest

from volseg.study.traced import time_by_kind


def piece(name, category, begin, length, rank=0):
    return {"name": name, "cat": category, "ph": "X", "ts": begin * 1e6, "dur": length * 1e6, "pid": rank, "tid": 0}


def of(tmp_path, events):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": [{"ph": "M", "name": "process_name", "pid": 0}, *events]}))
    return time_by_kind(path)


def test_the_innermost_piece_counts(tmp_path):
    kinds, balance = of(
        tmp_path,
        [
            piece("step 2", "phase", 0, 10),
            piece("encoder 0.1", "layer", 1, 8),
            piece("convolution", "convolution", 2, 6),
            piece("halo", "halo", 3, 1),
            piece("norm", "norm", 8, 1),
        ],
    )
    assert balance == 1
    assert {kind: seconds for kind, seconds in kinds.items() if seconds} == pytest.approx(
        {"convolution": 5, "halo": 1, "norm": 1, "other": 3}
    )


def test_steps_are_averaged_and_other_phases_are_not_steps(tmp_path):
    kinds, _ = of(
        tmp_path,
        [
            piece("step 2", "phase", 0, 2),
            piece("convolution", "convolution", 0, 2),
            piece("log and checkpoint", "phase", 2, 50),
            piece("input and output", "input and output", 2, 50),
            piece("step 3", "phase", 60, 4),
            piece("convolution", "convolution", 60, 4),
        ],
    )
    assert kinds["convolution"] == pytest.approx(3)
    assert kinds["input and output"] == 0


def test_waiting_for_a_slower_rank_stands_apart(tmp_path):
    events = []
    for rank, computing in ((0, 4), (1, 8)):
        events += [
            piece("step 2", "phase", 0, 10, rank),
            piece("convolution", "convolution", 0, computing, rank),
            piece("reduction", "reduction", computing, 10 - computing, rank),
        ]
    kinds, balance = of(tmp_path, events)
    assert balance == pytest.approx(6 / 8)
    assert kinds["waiting for slower ranks"] == pytest.approx(2)  # of rank 0 alone, 4 of its 10 seconds
    assert kinds["reduction"] == pytest.approx(2)
    assert kinds["convolution"] == pytest.approx(6)
