"""The trace file: what the ranks did, as a viewer reads it."""

import gzip
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from volseg.distributed.grid import ProcessGrid
from volseg.distributed.trace import Trace, check_trace_path, common_clock
from volseg.errors import VolsegError
from volseg.program.kinds import Kind


def events_by_rank(path):
    """The complete events of each process, after checking what the format asks for; they nest, or it fails."""
    with gzip.open(path, "rt") if path.name.endswith(".gz") else path.open() as file:
        content = json.load(file)
    assert set(content) == {"displayTimeUnit", "traceEvents", "otherData"}
    found = defaultdict(list)
    for event in content["traceEvents"]:
        assert event["ph"] in ("X", "M")
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert event["ts"] * 8 == int(event["ts"] * 8)  # exact also in nanoseconds
            found[event["pid"]].append(event)
    for events in found.values():
        open_until = []
        for event in events:
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            end = event["ts"] + event["dur"]
            assert not open_until or end <= open_until[-1]
            open_until.append(end)
    names = {e["pid"]: e["args"]["name"] for e in content["traceEvents"] if e["name"] == "process_name"}
    assert sorted(names) == sorted(found)
    return dict(found), names, content["otherData"]


@pytest.fixture
def shared(tmp_path, communicator):
    """One folder for all ranks."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    communicator.barrier()
    return folder


def work(communicator):
    meter = communicator.meter
    for step in range(communicator.rank + 1):  # ranks have different numbers of pieces
        meter.enter("step", step + 1)
        with meter.during("encoder 0.1"), meter.doing(Kind.CONVOLUTION), meter.doing(Kind.HALO):
            pass
    meter.enter("")
    communicator.reduce_all(np.ones(2))


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_every_rank_is_a_process_whose_work_nests(shared, communicator, name):
    trace = Trace(communicator)
    work(communicator)
    grid = ProcessGrid(communicator, (1, communicator.size, 1))
    assert trace.write(shared / name, "train", grid) == 0
    assert communicator.meter.spans is None
    if not communicator.is_root:
        return
    found, names, facts = events_by_rank(shared / name)
    assert facts["ranks"] == len(found) == communicator.size
    assert len(facts["clock_spread_us_by_rank"]) == communicator.size
    for rank, events in found.items():
        assert names[rank].startswith(f"rank {rank} on ")
        assert names[rank].endswith(f", grid 0,{rank},0")
        phases = [event["name"] for event in events if event["cat"] == "phase"]
        assert phases == [f"step {step + 1}" for step in range(rank + 1)]
        halos = [event for event in events if event["cat"] == "halo"]
        assert [event["args"] for event in halos] == [{"layer": "encoder 0.1"}] * (rank + 1)


@pytest.mark.parallel(2)
def test_a_folder_that_is_gone_fails_on_all_ranks_and_nobody_waits(shared, communicator):
    trace = Trace(communicator)
    work(communicator)
    with pytest.raises(VolsegError, match="cannot write"):
        trace.write(shared / "none" / "t.json", "train", ProcessGrid(communicator, (2, 1, 1)))
    assert communicator.gather_all(communicator.rank) == [0, 1]


@pytest.mark.parallel(2)
def test_clocks_with_other_origins_are_brought_together(communicator, monkeypatch):
    import time

    true, later = time.perf_counter, 1000.0 * communicator.rank
    monkeypatch.setattr("volseg.distributed.trace.time.perf_counter", lambda: true() + later)
    origins = communicator.gather_all(common_clock(communicator).origin - later)
    assert origins[1] == pytest.approx(origins[0], abs=0.5)


def test_a_name_that_says_no_format_is_refused():
    check_trace_path(Path("a/trace.json.gz"))
    with pytest.raises(VolsegError, match=r"\.json"):
        check_trace_path(Path("trace.perfetto"))
