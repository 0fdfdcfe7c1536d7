"""Where a rank's time goes: every moment counts once. The clock is a false one, so the seconds are exact."""

import pytest

from volseg.distributed.meter import Meter
from volseg.distributed.spans import LAYER, PHASE
from volseg.program.kinds import Kind


class FalseClock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("volseg.distributed.meter.time.perf_counter", lambda: self.now)

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return FalseClock(monkeypatch)


def a_step(meter, clock):
    """8 s, 3 s of them convolution, 2 halo, 1 norm, and 2 nothing in particular."""
    clock.pass_(1)
    with meter.during("encoder 0.1"), meter.doing(Kind.CONVOLUTION):
        clock.pass_(2)
        with meter.doing(Kind.HALO):
            clock.pass_(2)
        clock.pass_(1)
        with meter.doing(Kind.NORM):
            clock.pass_(1)
    clock.pass_(1)


def test_what_is_done_within_a_piece_of_work_is_not_its_own(clock):
    meter = Meter()
    a_step(meter, clock)
    found = meter.by_kind()
    assert {kind: s for kind, s in found.items() if s} == {
        Kind.CONVOLUTION: 3, Kind.HALO: 2, Kind.NORM: 1, Kind.OTHER: 2
    }  # fmt: skip
    assert meter.taken[""]["encoder 0.1", Kind.HALO] == 2
    assert meter.taken[""]["other", Kind.OTHER] == 2


def test_a_piece_of_work_that_fails_ends_too(clock):
    meter = Meter()

    def fail():
        with meter.during("head"), meter.doing(Kind.HEAD):
            clock.pass_(1)
            raise ValueError("so")

    with pytest.raises(ValueError, match="so"):
        fail()
    clock.pass_(1)
    assert meter.by_kind()[Kind.HEAD] == meter.by_kind()[Kind.OTHER] == 1


def test_phases_are_accounted_for_one_by_one(clock):
    meter = Meter()
    clock.pass_(5)
    meter.reset()
    for step in range(3):
        meter.enter("step", step)
        a_step(meter, clock)
        meter.enter("validation")
        clock.pass_(4)
    meter.enter("")
    clock.pass_(0.5)
    assert meter.lasted["step"] == [8, 8, 8]
    assert meter.by_phase() == {"step": 24, "validation": 12}
    assert meter.by_kind("step")[Kind.CONVOLUTION] == 9
    assert sum(meter.by_kind("step").values()) == 24
    assert sum(meter.by_kind().values()) == 36.5
    meter.reset()
    assert sum(meter.by_kind().values()) == 0


def test_pieces_of_work_are_kept_only_where_they_are_asked_for(clock):
    meter = Meter()
    a_step(meter, clock)
    assert meter.spans is None
    meter.record()
    meter.enter("step", 2)
    begin = clock.now
    a_step(meter, clock)
    meter.enter("")
    spans = {span.name: span for span in meter.spans}
    assert len(meter.spans) == 5
    assert spans["step 2"].category == PHASE
    assert (spans["step 2"].begin, spans["step 2"].end) == (begin, begin + 8)
    assert spans["encoder 0.1"].category == LAYER
    assert (spans["halo"].layer, spans["halo"].begin, spans["halo"].end) == ("encoder 0.1", begin + 3, begin + 5)
    assert spans["convolution"].end - spans["convolution"].begin == 6
