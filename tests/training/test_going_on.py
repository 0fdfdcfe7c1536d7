"""Going on with other settings: what changes the curve is said, and more epochs do not begin the levels again."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny import LABELS, MODEL, SERIAL, losses, newest, tiny_config, tiny_dataset
from volseg.api import train as train_by_name
from volseg.config import Config, MultigridConfig, TrainingConfig, read_config
from volseg.events import Caution
from volseg.models.stored import ModelCard, load_tensors
from volseg.training.going_on import changes, finest_from
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.training.multigrid import Stage, finest_for_good, stages
from volseg.volumes.intensity import ChannelScheme

SHAPE = (27, 22, 30)


def cautions(events):
    return [event.text for event in events if isinstance(event, Caution)]


@pytest.fixture
def run(tmp_path):
    """Two epochs of two cases, by other settings than the default ones."""
    tiny_dataset(tmp_path / "data", shape=SHAPE)
    config = tiny_config(learning_rate=1e-3, schedule="constant", clip=5.0)
    train(TrainingJob(tmp_path / "data", tmp_path / "run", config), SERIAL)
    return tmp_path / "run"


def go_on(run: Path, **options):
    events = []
    report = train_by_name(
        run.parent / "data", run, proceed=True, communicator=SERIAL, listen=events.append, previews=0, **options
    )
    return report, cautions(events)


def test_settings_that_change_the_curve_are_named(run):
    report, said = go_on(run, epochs=3, crop=(16, 16, 16), keep=5, augment="light", validate_every=3)
    (text,) = [text for text in said if "other settings" in text]
    assert "data.crop: [] -> [16, 16, 16]; " in text
    assert "augmentation.flip: " in text
    assert not any(name in text for name in ("epochs", "keep", "validate_every", "learning_rate"))
    assert report.steps == 6
    assert not any("settings" in text for text in go_on(run, epochs=4)[1])


def test_a_file_overrides_the_settings_of_the_run_and_not_the_default_ones(run):
    (run.parent / "more.toml").write_text("[training]\nepochs = 3\nclip = 1.0\n")
    _, said = go_on(run, config=run.parent / "more.toml")
    assert [text for text in said if "settings" in text] == [
        f"{run}: goes on with other settings than it began with: training.clip: 5.0 -> 1.0"
    ]
    now = read_config(run / "config.toml").training
    assert (now.epochs, now.clip, now.learning_rate, now.schedule) == (3, 1.0, 1e-3, "constant")


def card(step, finest=None, multigrid=(3, "fmg"), **training):
    config = Config(MODEL.for_data(1, 3), TrainingConfig(**training), multigrid=MultigridConfig(*multigrid))
    return ModelCard(config, LABELS, (ChannelScheme("MR", None),), (1.0, 1.0, 1.0), step, finest_from=finest)


def longer(stored, **training):
    return replace(stored.config, training=replace(stored.config.training, **training))


def test_a_jump_of_the_learning_rate_is_named():
    stored = card(20, epochs=10)
    (text,) = changes(stored, longer(stored, epochs=20), 2)
    assert "the learning rate rises from 0.000675 to 0.00536: with 20 epochs in place of 10" in text
    assert changes(stored, stored.config, 2) == []
    assert changes(stored, longer(stored, epochs=5), 2) == []
    constant = card(20, epochs=10, schedule="constant")
    assert changes(constant, longer(constant, epochs=20), 2) == []


def test_a_lengthened_run_stays_at_the_finest_level_that_it_had_reached():
    assert finest_for_good(MultigridConfig(3), 30, 20) is None  # the last stage has made no step
    assert finest_for_good(MultigridConfig(3), 30, 21) == 20
    assert finest_for_good(MultigridConfig(2, "v"), 30, 29) is None
    assert finest_for_good(MultigridConfig(2, "v"), 30, 30) == 29
    assert finest_for_good(MultigridConfig(1), 30, 30) is None
    assert stages(MultigridConfig(3), 60, 20) == (Stage(2, 0, 20), Stage(0, 20, 60))
    for multigrid in ((3, "fmg"), (3, "v")):
        stored = card(30, multigrid=multigrid, epochs=15)
        first = finest_from(stored, longer(stored, epochs=30), 2)
        assert {stage.level for stage in stages(stored.config.multigrid, 60, first) if stage.last > 30} == {0}
        assert finest_from(stored, replace(stored.config, multigrid=MultigridConfig(2)), 2) is None
    assert finest_from(card(40, 20, epochs=30), card(40, epochs=30).config, 2) == 20  # lengthened, stopped, going on


@given(st.integers(1, 4), st.sampled_from(["fmg", "v"]), st.integers(1, 60), st.data())
def test_the_same_settings_give_the_same_stages_wherever_a_run_is_cut(levels, cycle, epochs, data):
    stored = card(data.draw(st.integers(0, epochs)), multigrid=(levels, cycle), epochs=epochs)
    assert finest_from(stored, stored.config, 1) is None
    found = stages(stored.config.multigrid, epochs, finest_for_good(stored.config.multigrid, epochs, stored.step))
    whole = stages(stored.config.multigrid, epochs)

    def level(some, step):
        return next(stage.level for stage in some if stage.first <= step < stage.last)

    assert all(level(found, step) == level(whole, step) for step in range(stored.step, epochs))


def levels_of(run):
    with (run / "log.csv").open(newline="") as file:
        return "".join(row["level"] for row in csv.DictReader(file))


def test_a_finished_multigrid_run_goes_on_at_the_finest_even_after_another_stop(tmp_path):
    tiny_dataset(tmp_path / "data", shape=SHAPE)
    config = replace(tiny_config(learning_rate=1e-3), multigrid=MultigridConfig(2))
    job = TrainingJob(tmp_path / "data", tmp_path / "run", config)
    train(job, SERIAL)
    assert levels_of(job.run) == "1100"
    more = replace(job, config=replace(config, training=replace(config.training, epochs=5)), proceed=True)
    report = train(replace(more, max_time=0.0), SERIAL)
    assert (report.steps, report.stopped) == (5, "max-time")
    assert load_tensors(newest(job.run))[1].finest_from == 2
    train(more, SERIAL)
    assert levels_of(job.run) == "1100000000"
    assert len(losses(job.run)) == 10
