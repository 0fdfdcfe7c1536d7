"""Going on with other settings: what changes the curve is said, and more epochs do not begin the levels again."""

import csv
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny import LABELS, MODEL, SERIAL, losses, newest, tiny_config, tiny_dataset
from volseg.api import train as train_by_name
from volseg.cli.go_on import go_on_command
from volseg.config import Config, MultigridConfig, TrainingConfig, read_config
from volseg.events import Caution, Progress
from volseg.models.stored import ModelCard, load_tensors
from volseg.planning.multigrid import Stage, finest_for_good, stages
from volseg.training.going_on import changes, finest_from
from volseg.training.job import TrainingJob
from volseg.training.loop import train
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


def test_a_run_stopped_at_a_coarse_level_says_so_of_its_dice(tmp_path):
    """And its steps count by their voxels, in what is shown of the time left."""
    tiny_dataset(tmp_path / "data", shape=SHAPE)
    config = replace(tiny_config(epochs=4, validation=1), multigrid=MultigridConfig(2))
    job, events = TrainingJob(tmp_path / "data", tmp_path / "run", config, max_time=0.0, previews=0), []
    report = train(job, SERIAL, events.append)
    assert (report.steps, report.validation_level) == (1, 1)
    assert json.loads((job.run / "report.json").read_text())["validation"]["level"] == 1
    assert ", at level 1" in (job.run / "report.html").read_text()
    shown = [event for event in events if isinstance(event, Progress) and event.task == "train"]
    assert " at level 1" in shown[-1].figures["held out"]
    assert (shown[-1].done, shown[-1].total) == (1, 4)
    assert 0.05 < shown[-1].share < 0.1  # two steps on 16 x 12 x 16 voxels, two on 28 x 24 x 32
    train(replace(job, max_time=None, proceed=True), SERIAL)
    report = json.loads((job.run / "report.json").read_text())
    assert (report["validation"]["level"], report["steps"]) == (0, 4)


def test_what_goes_on_is_printed_for_a_single_scan_too(tmp_path, python):
    data = tiny_dataset(tmp_path / "a set", shape=SHAPE)
    (image, *_), (label, *_) = (sorted((data / folder).iterdir()) for folder in ("imagesTr", "labelsTr"))
    (tmp_path / "names.json").write_text('{"one": 1, "two": 2}')
    small = ["--base-channels=4", "--levels=2", "--epochs=3", "--max-time=1s", "--previews=0", "-q"]
    named = ["--labels", str(label), "--label-names", "names.json", "--channels", "MR", "--partition", "1x1x1"]
    first = python(["-m", "volseg", "train", str(image), "-o", "run", *named, *small], cwd=tmp_path, timeout=250)
    assert first.returncode == 0, first.stderr
    command = shlex.split(first.stdout.partition("go on with: ")[2])
    assert command[:2] == ["volseg", "train"]
    again = python(["-m", *command, "-q"], cwd=tmp_path, timeout=250)
    assert again.returncode == 0, again.stderr
    assert len(losses(tmp_path / "run")) == 3


def test_what_goes_on_has_ranks_and_all_that_no_run_folder_keeps():
    options = {"--labels": None, "--replicas": 2, "--partition": "1x1x2", "--tensorboard": True, "--channels": ""}
    assert go_on_command(Path("my data"), Path("run"), 4, ["srun", "--mpi=pmi2"], options) == (
        "srun --mpi=pmi2 -n 4 volseg train 'my data' -o run --continue --replicas 2 --partition 1x1x2 --tensorboard"
    )
