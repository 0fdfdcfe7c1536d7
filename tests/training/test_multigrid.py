"""Training at several resolutions: which step is made at which, the same curve over ranks, going on in between."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny import SERIAL, losses, tiny_config, tiny_dataset
from volseg.config import ModelConfig, MultigridConfig, TrainingConfig, parse_config
from volseg.errors import ConfigError
from volseg.events import Message
from volseg.networks.unet import unet
from volseg.partition.layout import Layout
from volseg.planning.answer import Asked, answer
from volseg.planning.hierarchy import fastest_sharing
from volseg.planning.memory import training_memory
from volseg.planning.multigrid import Stage, level_shares, stages, visits
from volseg.planning.profile import built_in_profile
from volseg.planning.search import Question
from volseg.planning.time_model import Placing
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.training.optimization import batch_of
from volseg.training.preparing import prepare
from volseg.training.step import training_step

SHAPE = (54, 44, 60)  # some hundred voxels at the deepest level of the coarser volumes (see test_train_ranks.py)


def multigrid_config(training=None, model=None, **multigrid):
    config = tiny_config(**({"learning_rate": 3e-4} | (training or {})))
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **(model or {})),
        multigrid=MultigridConfig(**({"levels": 2} | multigrid)),
    )


def test_nested_iteration_goes_from_the_coarsest_to_the_finest():
    assert visits(MultigridConfig(3, "fmg")) == [2, 1, 0]
    even = MultigridConfig(3, "fmg", shares=(1, 1, 1))
    assert stages(even, 30) == (Stage(2, 0, 10), Stage(1, 10, 20), Stage(0, 20, 30))
    assert stages(MultigridConfig(2, "fmg", shares=(1, 3)), 8) == (Stage(1, 0, 6), Stage(0, 6, 8))


def test_cycles_go_down_and_up_again():
    assert visits(MultigridConfig(3, "v", cycles=1)) == [0, 1, 2, 1, 0]
    assert visits(MultigridConfig(3, "v", cycles=2)) == [0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert visits(MultigridConfig(1, "v", cycles=3)) == [0]


@given(
    st.integers(1, 5), st.sampled_from(["fmg", "v"]), st.integers(1, 4), st.integers(1, 200), st.lists(
        st.floats(0.01, 100), min_size=5, max_size=5
    )
)  # fmt: skip
def test_stages_are_all_steps_once_and_end_at_the_finest(levels, cycle, cycles, steps, shares):
    config = MultigridConfig(levels, cycle, cycles, tuple(shares[:levels]))
    config.check()
    found = stages(config, steps)
    assert [step for stage in found for step in range(stage.first, stage.last)] == list(range(steps))
    assert found[-1].level == 0
    assert sum(level_shares(config)) == pytest.approx(1)


def test_shares_that_do_not_fit_the_levels_are_refused():
    with pytest.raises(
        ConfigError, match=r"multigrid.shares = \[1.0, 2.0\] must be 3 numbers above 0.*configuration file"
    ):
        parse_config({"multigrid": {"levels": 3, "shares": [1, 2]}}, "here")
    with pytest.raises(ConfigError, match=r"multigrid.cycle = 'w' is not one of fmg, v"):
        parse_config({"multigrid": {"cycle": "w"}}, "here")


def test_coarse_volumes_are_shared_by_fewer_ranks_and_more_replicas():
    """A batch of cases is worth replicas where volumes are small; more blocks than there are is no grid."""

    def sharing(side, ranks, batch):
        model, shape = ModelConfig(1, 3), (side, side, side)
        question = Question(shape, unet(model), TrainingConfig(), "train", built_in_profile(), placing=Placing(16, 1))
        return fastest_sharing(shape, unet(model), ranks, batch, shape, question)

    assert sharing(256, 16, 1) == (1, (4, 2, 2))
    assert sharing(64, 16, 8) == (8, (2, 1, 1))
    assert sharing(32, 512, 1) == (8, (4, 4, 4))
    assert fastest_sharing((16, 16, 16), unet(ModelConfig(1, 3)), 16, 1, (16, 16, 16), None) == (
        2,
        (2, 2, 2),
    )  # eight blocks are all there are


def test_more_replicas_stay_below_the_memory_of_the_finest_level():
    model, shape = ModelConfig(1, 3), (64, 64, 64)

    def sharing(limit):
        question = Question(shape, unet(model), TrainingConfig(), "train", built_in_profile(), limit, Placing(16, 1))
        return fastest_sharing(shape, unet(model), 16, 8, shape, question)

    def peak(dims):
        return training_memory(unet(model), TrainingConfig(), Layout.even(shape, dims, 8)).peak

    fastest, alone = sharing(None), sharing(1)
    assert fastest[0] > 1
    assert sharing(peak(fastest[1])) == fastest
    assert sharing(peak(fastest[1]) - 1)[0] < fastest[0]
    assert alone[0] == 1  # where nothing fits, the smallest blocks there are


@pytest.fixture
def shared(tmp_path, communicator):
    """One folder for all ranks, with a data set."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            tiny_dataset(folder / "data", shape=SHAPE)
    return folder


def column(run, name):
    with (run / "log.csv").open(newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize(("cycle", "levels"), [("fmg", "11110000"), ("v", "00111100")])
def test_the_loss_of_each_step_is_that_of_one_rank(shared, communicator, cycle, levels):
    """Also where a level has replicas without a case, with dropout, and running statistics."""
    config = multigrid_config({"epochs": 4}, {"dropout": 0.2, "norm": "batch"}, cycle=cycle, cycles=1)
    with communicator.together():
        if communicator.is_root:
            train(TrainingJob(shared / "data", shared / "alone", config), SERIAL)
    said = []
    train(TrainingJob(shared / "data", shared / "many", config), communicator, said.append)
    np.testing.assert_allclose(losses(shared / "many"), losses(shared / "alone"), rtol=1e-5)
    assert "".join(column(shared / "many", "level")) == "".join(column(shared / "alone", "level")) == levels
    if communicator.is_root:
        assert any(isinstance(e, Message) and "multigrid" in e.text and "28x24x32 voxels on" in e.text for e in said)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_each_resolution_holds_what_plan_partition_says(shared, communicator, accumulate):
    """Its replicas, its grid, and the tensors of a step on the rank with most; and so the peak of the whole run."""
    config = multigrid_config({"epochs": 4, "accumulate": accumulate}, levels=3)
    setup = prepare(TrainingJob(shared / "data", shared / "run", config), communicator, lambda event: None)
    placing = setup.machine.placing
    asked = Asked(
        shape=SHAPE, settings=setup.config, tasks=["train"], profile=setup.machine.nominal, ranks=[communicator.size],
        dims=setup.finest.grid.dims, cases=len(setup.cases), threads=placing.threads,
        cores_per_node=placing.per_machine * placing.threads,
    )  # fmt: skip
    planned = answer(asked).tasks["train"]
    assert [each.steps for each in planned.whole.resolutions] == [
        sum(stage.last - stage.first for stage in setup.stages if stage.level == level) for level in range(3)
    ]
    assert planned.memory.peak == setup.planned.peak
    for each, resolution in zip(planned.whole.resolutions, setup.resolutions, strict=True):
        assert (each.run.replicas, each.run.dims) == (resolution.replicas.count, resolution.grid.dims)
        assert each.run.plan.memory.peak == resolution.planned.peak
        step = next(stage.first for stage in setup.stages if stage.level == each.level)
        training_step(setup, batch_of(setup.cases, step, setup.card.batch, 0), step)
        held = max(communicator.gather_all(4 * resolution.twin.work.buffers.total))
        resolution.rest()
        memory = each.run.plan.memory
        assert held == memory.activations - memory.parts["image and labels"]


class Interrupted(Exception):
    pass


@pytest.mark.parallel(2)
def test_a_run_goes_on_between_and_within_its_levels(shared, communicator, monkeypatch):
    monkeypatch.setattr("volseg.training.record.draw_progress", lambda run, rows: None)  # after each step, otherwise
    config = multigrid_config({"epochs": 4, "checkpoint_seconds": 0.0})

    def go(world, run, until=-1, proceed=True):
        def listen(event):
            if getattr(event, "task", None) == "train" and event.done == until:
                raise Interrupted

        train(TrainingJob(shared / "data", shared / run, config, proceed=proceed), world, listen)

    with communicator.together():
        if communicator.is_root:
            go(SERIAL, "whole", proceed=False)
    for until in (2, 4, 7):
        with pytest.raises(Interrupted):
            go(communicator, "cut", until, proceed=until > 2)
    go(communicator, "cut")
    np.testing.assert_allclose(losses(shared / "cut"), losses(shared / "whole"), rtol=1e-5)


def test_volumes_too_small_for_a_level_are_refused_with_what_works(tmp_path):
    tiny_dataset(tmp_path / "data")
    config = multigrid_config(levels=4)
    with pytest.raises(ConfigError, match=r"2x3x2 voxels after 3 halvings of --multigrid .* fewer --multigrid levels"):
        train(TrainingJob(tmp_path / "data", tmp_path / "run", config), SERIAL)
    assert not (tmp_path / "run").exists()
