"""Where the time of all ranks went, of made-up ranks and of real ones."""

import time

import numpy as np
import pytest

from volseg.distributed.time_account import IMBALANCE, TimeAccount, account_of_time, phase_facts
from volseg.program.kinds import Kind


def account(**seconds):
    return TimeAccount({kind: seconds.get(kind.name.lower(), (0.0, 0.0)) for kind in Kind})


def test_a_rank_with_half_the_work_waits_for_the_other():
    # Rank 1 computes 5 of 10 s: of its 5 s of waiting 4 are for rank 0, which itself loses one to messages.
    found = account(convolution=(8.0, 4.0), norm=(1.0, 1.0), halo=(0.5, 0.5), reduction=(0.5, 4.5))
    assert found.whole == (10, 10)
    assert found.computing == (9, 5)
    assert found.imbalance == (0, 4)
    assert found.communication == (1, 1)
    assert found.load_balance == pytest.approx(7 / 9)
    assert found.communication_efficiency == pytest.approx(0.9)
    shares = found.shares()
    assert list(shares)[:2] == ["convolution", IMBALANCE]
    assert shares[IMBALANCE] == pytest.approx(4 / 20)
    assert shares["halo"] == pytest.approx((0.5 + 0.5 * 1 / 5) / 20)
    assert sum(shares.values()) == pytest.approx(1)
    facts = found.facts()
    assert facts["seconds_by_rank"]["convolution"] == [8, 4]
    assert "pooling" not in facts["seconds_by_rank"]
    assert facts["parallel_efficiency"] == pytest.approx(0.7)


def test_communication_is_never_negative():
    """A rank that came late waited less than it computed less."""
    found = account(convolution=(9.0, 5.0), reduction=(0.0, 1.0))
    assert found.imbalance == (0, 4)
    assert found.communication == (0, 0)
    assert sum(found.shares().values()) == pytest.approx(1)


def test_nothing_done_is_balanced():
    assert account().load_balance == account().communication_efficiency == 1


@pytest.mark.parallel([1, 2, 4])
def test_the_ranks_kinds_of_work_add_up_to_the_time_they_took(communicator):
    meter = communicator.meter
    meter.reset()
    begin = time.perf_counter()
    for step in range(3):
        meter.enter("step", step)
        with meter.doing(Kind.CONVOLUTION):
            time.sleep(0.02 if communicator.is_root else 0.0)
        communicator.reduce_all(np.ones(3))
    meter.enter("")
    seconds = time.perf_counter() - begin
    found, facts = account_of_time(communicator, "step"), phase_facts(communicator, "step")
    assert found.whole[communicator.rank] == pytest.approx(sum(meter.lasted["step"]))
    assert 0.06 <= found.whole[0] <= communicator.broadcast(seconds)
    assert found.seconds[Kind.CONVOLUTION][0] >= 0.06
    assert facts["times"] == 3
    assert facts["median_seconds"] >= 0.02
    assert account_of_time(communicator, "validation").whole == (0,) * communicator.size
