"""What becomes of a run that cannot write, or is to write where others have: nothing is lost, of it or of theirs."""

import errno
import resource

import pytest

from tiny import SERIAL, listing, losses, tiny_config, tiny_dataset
from volseg.cli.failure import describe
from volseg.errors import ConfigError, VolsegError, VolumeError
from volseg.events import Caution
from volseg.messages import MESSAGES
from volseg.training.job import TrainingJob
from volseg.training.keeping import stored_checkpoints
from volseg.training.loop import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "set", shape=(8, 8, 8))


@pytest.fixture
def full_disk():
    """Call it, and no file can be written beyond so many bytes: an error that each library has to pass on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def after_step(number, action):
    def listen(event):
        if getattr(event, "task", None) == "train" and event.done == number:
            action()

    return listen


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_the_last_one_whole(tmp_path, data, full_disk):
    config = tiny_config(epochs=3, validation=1, checkpoint_seconds=0.0)
    train(TrainingJob(data, tmp_path / "whole", config, previews=0), SERIAL)
    job = TrainingJob(data, tmp_path / "run", config, previews=0)
    with pytest.raises(OSError, match="File too large") as caught:
        train(job, SERIAL, after_step(1, lambda: full_disk(20_000)))
    full_disk(resource.RLIM_INFINITY)
    failure = describe(caught.value)
    assert failure.code == 1
    assert "raise the limit (ulimit -f)" in failure.message
    assert "step_00000001.safetensors is whole" in failure.message.splitlines()[1]
    assert [path.name for path in stored_checkpoints(job.run)] == ["step_00000001.safetensors"]
    assert "File too large" in (job.run / MESSAGES).read_text()
    assert not list(job.run.rglob("*.partial*"))
    train(TrainingJob(data, job.run, config, previews=0, proceed=True), SERIAL)
    assert list(losses(job.run)) == list(losses(tmp_path / "whole"))


def test_a_full_disk_makes_room_of_what_would_go_anyway(tmp_path, data, monkeypatch):
    from volseg.training import keeping

    tries = []

    def save(path, *state):
        tries.append((path.name, len(stored_checkpoints(tmp_path / "run"))))
        if len(stored_checkpoints(tmp_path / "run")) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(path, *state)

    original = keeping.save_checkpoint
    monkeypatch.setattr(keeping, "save_checkpoint", save)
    train(TrainingJob(data, tmp_path / "run", tiny_config(checkpoint_seconds=0.0)), SERIAL)
    assert [number for _, number in tries] == [0, 1, 2, 1, 2, 1]
    assert len(stored_checkpoints(tmp_path / "run")) == 2


def test_a_log_and_pictures_that_cannot_be_written_end_no_run(tmp_path, data, monkeypatch):
    from volseg.training import log, record

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    def break_the_log():
        monkeypatch.setattr(log.TrainingLog, "_text", fail)

    heard = []
    monkeypatch.setattr(record, "draw_progress", fail)

    def listen(event):
        heard.append(event)
        if getattr(event, "done", None) == 2 and event.task == "train":
            break_the_log()

    report = train(TrainingJob(data, tmp_path / "run", tiny_config()), SERIAL, listen)
    assert report.steps == 4
    said = [event.text for event in heard if isinstance(event, Caution)]
    assert any("log.csv: No space left on device" in text for text in said)
    assert any("progress.png: No space left on device" in text for text in said)
    assert len(losses(tmp_path / "run")) == 2
    assert "log.csv: No space left" in (tmp_path / "run" / MESSAGES).read_text()


def test_a_disk_without_room_for_a_checkpoint_refuses_before_the_first_step(tmp_path, data, monkeypatch):
    disk = type("Disk", (), {"free": 20_000})
    monkeypatch.setattr("volseg.volumes.trial.shutil.disk_usage", lambda folder: disk)
    steps, config = [], tiny_config()
    with pytest.raises(VolumeError, match=r"checkpoints and 1 more: about .* needed, and the disk of .* has 19.5 KiB"):
        train(TrainingJob(data, tmp_path / "new" / "run", config), SERIAL, after_step(1, lambda: steps.append(1)))
    assert not steps
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path, data):
    project = tmp_path / "project"
    for name in ("previews/figure.png", "tensorboard/run.txt", "config.toml", "report.html"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("[mine]")
    before = listing(project)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is no run of volseg"):
            train(TrainingJob(data, project, tiny_config(), overwrite=overwrite), SERIAL)
        assert listing(project) == before


def test_overwriting_a_run_keeps_what_others_put_there(tmp_path, data):
    run = tmp_path / "run"
    train(TrainingJob(data, run, tiny_config(epochs=1, validation=1)), SERIAL)
    made = {path.name for path in (run / "previews").iterdir()}
    mine = {run / "notes.txt", run / "previews" / "chosen.png", run / "tensorboard" / "other" / "events.out.tfevents.1"}
    ours = run / "tensorboard" / "events.out.tfevents.17.host"
    for path in {*mine, ours}:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("kept")
    train(TrainingJob(data, run, tiny_config(epochs=1), overwrite=True), SERIAL)
    assert all(path.read_text() == "kept" for path in mine)
    assert not ours.exists()
    assert made
    assert {path.name for path in (run / "previews").iterdir()} == {"chosen.png"}


def test_a_run_knows_its_data_set(tmp_path, data, monkeypatch):
    from volseg import train as api_train

    monkeypatch.chdir(data.parent)
    options = {"base_channels": 4, "levels": 1, "validation": 0, "spacing": "1"}
    api_train(data.name, tmp_path / "run", epochs=1, **options)
    monkeypatch.chdir(tmp_path)
    assert api_train(run="run", epochs=2, proceed=True).steps == 4
    moved = data.rename(data.with_name("moved"))
    try:
        with pytest.raises(VolsegError, match=r"set, which is not there; .*volseg train DATASET -o run"):
            api_train(run="run", epochs=3, proceed=True)
        assert api_train(moved, "run", epochs=3, proceed=True).steps == 6
    finally:
        moved.rename(data)
