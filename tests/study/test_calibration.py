"""Calibration: the program itself, measured; the profile it leaves tells what was measured."""

import pytest

from volseg.config import ModelConfig, TrainingConfig
from volseg.distributed.communicator import SerialCommunicator
from volseg.errors import ConfigError, LaunchError
from volseg.networks.unet import unet
from volseg.partition.layout import Layout
from volseg.planning.operations import Family
from volseg.planning.time_model import training_time
from volseg.study.calibration import Case, calibrate, measure_case, merge
from volseg.study.launching import find_launcher, run_volseg

SMALL = (Case(8, 2, 16), Case(8, 2, 32))


@pytest.mark.parallel([1, 2])
def test_every_family_is_measured_and_times_add_up(communicator):
    found = calibrate(communicator, cases=SMALL)
    (setting,) = found.settings
    assert setting.ranks == communicator.size
    assert {cost.family for cost in setting.costs} == set(Family)
    assert all(cost.seconds > 0 for cost in setting.costs)
    assert found.within.measured == (communicator.size > 1)
    model = SMALL[1].model
    layout = Layout.even((32, 32, 32), (1, 1, 1), model.multiple)
    layouts = [layout.coarser(factor) for factor in model.factors]
    plan = training_time(unet(model), TrainingConfig(), layouts, found)
    # What was measured piece by piece is the whole of a step on that volume, whose shape was measured.
    pieces = [c.seconds for c in setting.costs if "segment" not in c.family and c.voxels > 16**3 / 64]
    assert 0 < plan.seconds < 20 * sum(pieces)


def test_a_larger_block_takes_longer():
    serial = SerialCommunicator()
    small, large = (measure_case(case, serial) for case in (Case(8, 2, 16), Case(8, 2, 64)))

    def forward(costs):
        return max(c.seconds for c in costs if c.family is Family.FORWARD and c.inputs == 16)

    assert forward(large) > forward(small)


def test_later_measurements_take_the_place_of_earlier_ones():
    serial = SerialCommunicator()
    first, second = (calibrate(serial, cases=SMALL[:1]) for _ in range(2))
    merged = merge([first, second])
    assert merged.settings == second.settings


def test_a_launcher_must_say_where_the_ranks_go():
    with pytest.raises(ConfigError, match=r"write \{ranks\} where their number goes"):
        find_launcher("srun -n 4")
    found = find_launcher("srun --mpi=pmi2 -n {ranks}")
    assert found.command(8) == ["srun", "--mpi=pmi2", "-n", "8"]
    assert found.command(1) == []


def test_in_a_slurm_job_srun_starts_the_ranks(tmp_path, monkeypatch):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_launcher(environment={"SLURM_JOB_ID": "7"}).words[0] == "srun"
    assert find_launcher(environment={}) is None or find_launcher(environment={}).words[0] != "srun"


def test_a_failing_run_says_what_it_said(tmp_path):
    with pytest.raises(LaunchError, match=r"failed with 2: .*volseg-run"):
        run_volseg(tmp_path, "segment", "none.nii.gz")


def test_no_launcher_is_an_error_that_names_the_remedy(tmp_path):
    with pytest.raises(LaunchError, match="--launcher"):
        run_volseg(tmp_path, "info", "x.nii", ranks=2)


def test_channels_of_the_cases_are_those_of_generated_data():
    assert Case(8, 2, 16).model == ModelConfig(in_channels=1, classes=3, base_channels=8, levels=2)
