"""What a run expects of its machine: the same on all ranks, whatever each of them would find for itself."""

import os
from dataclasses import replace

import pytest
import torch

from volseg.config import ModelConfig, TrainingConfig
from volseg.errors import ConfigError
from volseg.machine import processor_name
from volseg.models.forecast import Machine, agglomeration_of_run, off_plan, planned_time_facts, this_machine
from volseg.networks.unet import unet
from volseg.nn.kernels import winograd
from volseg.partition.agglomeration import NONE
from volseg.partition.layout import Layout
from volseg.planning.operations import Family
from volseg.planning.profile import Cost, Network, built_in_profile, save_profile
from volseg.planning.time_model import Placing, TimePlan
from volseg.program.kinds import Kind

NETWORK = unet(ModelConfig(in_channels=1, classes=3, base_channels=8, levels=3))

pytestmark = pytest.mark.skipif(not winograd.available(), reason="this processor lacks the kernels' instructions")


@pytest.fixture
def profile_file(tmp_path, monkeypatch, communicator):
    """``profile_file(profile)`` writes one that is found; every rank has its own, only the root's counts."""

    def write(profile):
        if communicator.is_root:
            save_profile(profile, tmp_path / "p.json")
        monkeypatch.setenv("VOLSEG_PROFILE", str(tmp_path / "p.json"))
        communicator.barrier()
        return profile

    return write


@pytest.mark.parallel([1, 2])
def test_the_machines_own_profile_is_taken_as_it_is(communicator, profile_file):
    own = profile_file(replace(built_in_profile(), machine=processor_name(), cores=os.cpu_count()))
    machine = this_machine(NETWORK, communicator)
    assert machine.source.endswith("p.json")
    assert machine.profile == machine.nominal == own
    assert machine.placing.per_machine == communicator.size


@pytest.mark.parallel([1, 2])
def test_another_machines_profile_is_scaled_alike_on_all_ranks(communicator, profile_file):
    """A machine on which the convolution takes a thousand times as long makes everything as much shorter here."""
    slow = profile_file(replace(built_in_profile(), machine="another").scaled(1000.0))
    machine = this_machine(NETWORK, communicator)
    assert "scaled to this machine" in machine.source
    before = slow.settings[0].costs[0].seconds
    assert machine.nominal.settings[0].costs[0].seconds == pytest.approx(before, rel=1e-3)
    ratio = machine.profile.settings[0].costs[0].seconds / before
    assert 1e-5 < ratio < 0.1
    assert len(set(communicator.gather_all(ratio))) == 1


@pytest.mark.parallel([2])
def test_ranks_with_other_threads_choose_the_same_stages(communicator, profile_file, monkeypatch):
    """Messages that take a millisecond are worth sparing; whether they are must not depend on the rank that asks."""
    costs = tuple(Cost(family, 8, 8, n**3, 1e-9 * n**3) for family in Family for n in (2, 64))
    base = built_in_profile()
    setting = replace(base.settings[0], ranks=1, threads=1, costs=costs)
    slow = Network(1e-3, 1e9, 1e-3)
    profile_file(replace(base, machine=processor_name(), cores=os.cpu_count(), settings=(setting,), within=slow))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 + 40 * communicator.rank)
    machine = this_machine(NETWORK, communicator)
    layout = Layout.even((32, 32, 32), (2, 1, 1), NETWORK.multiple)
    chosen = agglomeration_of_run("auto", "train", NETWORK, TrainingConfig(), layout, machine, communicator)
    assert chosen.stages
    assert len(set(communicator.gather_all(str(chosen)))) == 1
    named = agglomeration_of_run("3:1x1x1", "train", NETWORK, TrainingConfig(), layout, machine, communicator)
    assert str(named) == "3:1x1x1"
    assert agglomeration_of_run("none", "train", NETWORK, TrainingConfig(), layout, machine, communicator) == NONE


@pytest.mark.parallel([1, 2])
def test_a_named_profile_that_is_missing_stops_all_ranks(communicator, monkeypatch):
    monkeypatch.setenv("VOLSEG_PROFILE", "/none/there.json")
    with pytest.raises(ConfigError, match=r"there\.json: cannot be read"):
        this_machine(NETWORK, communicator)


def test_the_report_has_planned_and_measured():
    plan, profile = TimePlan(), built_in_profile()
    plan.add("encoder 0.1", Kind.CONVOLUTION, 0, 1.5)
    facts = planned_time_facts(plan, 2.0, Machine(profile, profile, Placing(), "here"))
    assert (facts["planned_seconds"], facts["planned_over_measured"], facts["planned_from"]) == (1.5, 0.75, "here")
    assert facts["planned_seconds_by_kind"] == {"convolution": 1.5}
    assert planned_time_facts(None, 2.0, None) == {"planned_seconds": None, "planned_over_measured": None}


def test_the_report_says_what_was_off_by_more_than_a_tenth():
    assert off_plan(1.05, 0.95) == off_plan(0.91, None) == []
    assert off_plan(1.2, 0.8) == [
        "planned memory is 1.20 of what was measured", "planned time is 0.80 of what was measured"]  # fmt: skip


@pytest.mark.parallel([2])
def test_without_the_kernels_on_one_rank_nothing_is_foretold(communicator, profile_file, monkeypatch):
    profile_file(replace(built_in_profile(), machine=processor_name(), cores=os.cpu_count()))
    monkeypatch.setattr(winograd, "available", lambda: communicator.rank == 0)
    assert this_machine(NETWORK, communicator) is None
