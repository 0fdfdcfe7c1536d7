"""What a run leaves on disk: a log, a picture, a checkpoint that any process opens; and when it may be written."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from conftest import clean_environment
from tiny import MODEL, SERIAL, listing, losses, newest, tiny_config, tiny_dataset
from volseg.config import DataConfig, read_config
from volseg.config.stored_run import DATA
from volseg.distributed.grid import ProcessGrid
from volseg.errors import CheckpointError, ConfigError, PartitionError, VolumeError
from volseg.events import Caution
from volseg.messages import MESSAGES
from volseg.models.stored import BEST, WEIGHTS, load_model
from volseg.models.unet import UNet
from volseg.training.cases import SPLIT
from volseg.training.data import CaseBlocks
from volseg.training.job import TrainingJob
from volseg.training.keeping import stored_checkpoints
from volseg.training.loop import train
from volseg.volumes.dataset import read_dataset
from volseg.volumes.fingerprint import FINGERPRINT
from volseg.volumes.intensity import ChannelScheme


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A run of two epochs over one case, the other held out."""
    run = tmp_path_factory.mktemp("runs") / "run"
    train(TrainingJob(data, run, tiny_config(validation=1)), SERIAL)
    return run


def test_a_run_holds_these_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        ".lock", "checkpoints", BEST, WEIGHTS, FINGERPRINT, SPLIT, "config.toml", "log.csv", "progress.png",
        "previews", "report.json", "report.html", "inputs.json", MESSAGES, DATA,
    }  # fmt: skip
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["step_00000002.safetensors"]
    assert (finished / "progress.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_log_begins_with_step_epoch_loss(finished):
    with (finished / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["step", "epoch", "loss"]
    assert [(row["step"], row["epoch"]) for row in rows] == [("1", "1"), ("2", "2")]
    for row in rows:
        assert float(row["loss"]) > 0
        assert 0 <= float(row["dice"]) <= 1
        assert 0 <= float(row["validation_dice"]) <= 1


def test_config_and_report_say_what_was_run(finished, data):
    config = read_config(finished / "config.toml")
    assert config.model == MODEL.for_data(1, 3)
    report = json.loads((finished / "report.json").read_text())
    assert (report["ranks"], report["grid"], report["steps"]) == (1, [1, 1, 1], 2)
    assert report["memory"]["planned_over_measured"] > 0
    assert report["dataset"] == str(data)


def test_weights_load_into_a_plain_model_in_a_process_without_mpi(finished, python):
    script = (
        "import sys\nfrom safetensors.torch import load_file\n"
        "from volseg.config import read_config\nfrom volseg.models.unet import UNet\n"
        f"model = UNet(read_config(__import__('pathlib').Path({str(finished / 'config.toml')!r})).model)\n"
        f"print(model.load_state_dict(load_file({str(finished / WEIGHTS)!r}), strict=True))\n"
        f"state = load_file({str(newest(finished))!r})\n"
        "model.load_state_dict({n[6:]: t for n, t in state.items() if n.startswith('model.')}, strict=True)\n"
        "print('mpi4py' in sys.modules)\n"
    )
    run = python(["-c", script])
    assert run.stdout.splitlines() == ["<All keys matched successfully>", "False"], run.stderr


@pytest.mark.parametrize("name", ["", WEIGHTS, BEST, "checkpoints/step_00000002.safetensors"])
def test_a_model_opens_by_its_folder_or_either_file(finished, name):
    model, card = load_model(finished / name)
    assert list(model.state_dict()) == list(UNet(MODEL.for_data(1, 3)).state_dict())
    assert card.step == 2
    assert card.labels == {"background": 0, "class_1": 1, "class_2": 2}


def test_nothing_in_the_files_is_pickled(finished):
    for path in (newest(finished), finished / WEIGHTS):
        with safe_open(str(path), framework="pt") as file:
            assert json.loads(file.metadata()["volseg"])["schema"] == 1


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_going_on_is_as_if_never_stopped(tmp_path, data, optimizer):
    """More epochs change the learning rates of all steps, so the break is made by cutting the log and state short."""
    config = tiny_config(epochs=3, optimizer=optimizer, checkpoint_seconds=0.0)

    class Stop(Exception):
        pass

    def listen(event):
        if getattr(event, "task", None) == "train" and event.done == 4:
            raise Stop

    train(TrainingJob(data, tmp_path / "whole", config), SERIAL)
    with pytest.raises(Stop):
        train(TrainingJob(data, tmp_path / "parts", config), SERIAL, listen)
    assert len(losses(tmp_path / "parts")) == 4
    train(TrainingJob(data, tmp_path / "parts", config, proceed=True), SERIAL)
    assert losses(tmp_path / "parts").tolist() == losses(tmp_path / "whole").tolist()
    plain, broken = (load_model(tmp_path / name)[0].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(plain[name], broken[name]) for name in plain)


def test_rows_after_the_checkpoint_are_dropped_when_going_on(tmp_path, data):
    config = tiny_config()
    train(TrainingJob(data, tmp_path / "run", config), SERIAL)
    before = losses(tmp_path / "run")
    with (tmp_path / "run" / "log.csv").open("a") as file:
        file.write("5,3,9.9,0.1,0.1,1,1,x,\n6,3,9")  # a torn line, as a killed run may leave
    train(TrainingJob(data, tmp_path / "run", tiny_config(epochs=3), proceed=True), SERIAL)
    after = losses(tmp_path / "run")
    assert after[: len(before)].tolist() == before.tolist()
    assert len(after) == len(before) + 2
    assert after.max() < 9


def test_a_finished_run_is_left_as_it_is(finished, data):
    before, events = listing(finished), []
    report = train(TrainingJob(data, finished, tiny_config(validation=1), proceed=True), SERIAL, events.append)
    assert any(isinstance(event, Caution) and "nothing to do" in event.text for event in events)
    assert report.loss is None
    assert listing(finished) == before


def test_going_on_with_other_data_is_refused(tmp_path, data, finished):
    swapped = shutil.copytree(data, tmp_path / "swapped")
    description = json.loads((swapped / "dataset.json").read_text())
    description["labels"] = {"background": 0, "class_2": 1, "class_1": 2}
    (swapped / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="labels"):
        train(TrainingJob(swapped, finished, tiny_config(epochs=3, validation=1), proceed=True), SERIAL)
    with pytest.raises(CheckpointError, match=r"training\.seed"):
        train(TrainingJob(data, finished, tiny_config(epochs=3, seed=1, validation=1), proceed=True), SERIAL)


def test_a_crop_of_one_voxel_at_the_deepest_level_is_to_blame_itself(tmp_path):
    data = tiny_dataset(tmp_path / "data")
    config = replace(tiny_config(), data=DataConfig(crop=(4, 4, 4)))
    with pytest.raises(ConfigError, match=r"^--crop 4x4x4: .* use a larger --crop or fewer --levels$"):
        train(TrainingJob(data, tmp_path / "run", config), SERIAL)


def test_a_volume_of_one_voxel_at_the_deepest_level_is_refused_before_anything_is_written(tmp_path):
    small = tiny_dataset(tmp_path / "small", shape=(4, 4, 4))
    with pytest.raises(ConfigError, match="one voxel after 2 halvings"):
        train(TrainingJob(small, tmp_path / "run", tiny_config()), SERIAL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parallel(2)
def test_ranks_agree_on_what_they_keep_in_memory(communicator, tmp_path_factory, monkeypatch):
    """Uneven blocks and a cache that only the smaller one would fit into: all ranks must decide alike, or hang."""
    folder = None
    if communicator.is_root:
        folder = tiny_dataset(tmp_path_factory.mktemp("uneven") / "set", shape=(12, 16, 16))
    folder = communicator.broadcast(folder)
    dataset = read_dataset(folder)
    grid = ProcessGrid(communicator, (2, 1, 1))
    monkeypatch.setattr("volseg.training.data.CACHE_BYTES", 5 * 6 * 16 * 16)
    blocks = CaseBlocks(dataset, dataset.cases, grid, 4)  # 4 and 8 slices of 16 x 16 voxels of 5 bytes
    blocks.schemes = (ChannelScheme("MR", None),)
    assert blocks.cached_bytes == 0
    assert communicator.gather_all(blocks.load(dataset.cases[0]).image.shape[2]) == [4, 8]


def test_a_used_folder_is_kept_unless_told_otherwise(tmp_path, data, finished):
    before = listing(finished)
    with pytest.raises(ConfigError, match=r"--continue.*--overwrite"):
        train(TrainingJob(data, finished, tiny_config()), SERIAL)
    assert listing(finished) == before
    with pytest.raises(ConfigError, match="nothing in checkpoints/ to continue from"):
        train(TrainingJob(data, tmp_path / "none", tiny_config(), proceed=True), SERIAL)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        train(TrainingJob(data, tmp_path / "file", tiny_config()), SERIAL)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_overwriting_begins_without_the_old_checkpoint(tmp_path, data):
    """A run that is killed before its first checkpoint must not go on from another run's."""
    run = tmp_path / "run"
    train(TrainingJob(data, run, tiny_config(epochs=1)), SERIAL)

    def stop(event):
        if getattr(event, "task", None) == "train" and event.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TrainingJob(data, run, tiny_config(epochs=2, seed=5), overwrite=True), SERIAL, stop)
    names = {path.name for path in run.rglob("*")}
    assert names == {
        ".lock",
        "checkpoints",
        "config.toml",
        "inputs.json",
        "log.csv",
        FINGERPRINT,
        SPLIT,
        MESSAGES,
        DATA,
    }
    with pytest.raises(ConfigError, match="--overwrite"):
        train(TrainingJob(data, run, tiny_config(epochs=2, seed=5), proceed=True), SERIAL)


def test_going_on_with_another_optimizer_or_model_is_refused(finished, data):
    before = listing(finished)
    with pytest.raises(CheckpointError, match="state of adamw, not of sgd"):
        train(TrainingJob(data, finished, tiny_config(validation=1, optimizer="sgd"), proceed=True), SERIAL)
    other = tiny_config(validation=1)
    object.__setattr__(other, "model", MODEL.for_data(1, 3).__class__(base_channels=2, levels=2))
    with pytest.raises(CheckpointError, match="another model"):
        train(TrainingJob(data, finished, other, proceed=True), SERIAL)
    assert listing(finished) == before


def test_a_case_that_cannot_hold_the_grid_is_named(tmp_path, communicator):
    class Four(type(SERIAL)):
        size = 4

        def split(self, colour, key):
            return self

    dataset = read_dataset(tiny_dataset(tmp_path / "set"))
    with pytest.raises(PartitionError, match=r"case ellipsoids_000: grid 4x1x1 is too fine for 16x24x16"):
        CaseBlocks(dataset, dataset.cases, ProcessGrid(Four(), (4, 1, 1)), 8)


def test_all_cases_held_out_leaves_nothing_to_train_on(tmp_path, data):
    with pytest.raises(VolumeError, match="leaves none to train on"):
        train(TrainingJob(data, tmp_path / "run", tiny_config(validation=2)), SERIAL)
    assert not list(tmp_path.iterdir())


SLOW = """
import os
from pathlib import Path
from volseg.cli import app
Path(f"pid-{os.getpid()}").touch()
app.main()
"""


def test_a_killed_job_leaves_a_checkpoint_to_go_on_from(tmp_path, data, mpirun, python):
    """Every rank is killed while it trains, with a checkpoint written after each step; the curve has no seam."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    arguments = ["train", str(data), "-o", "run", "--epochs=300", "--base-channels=4", "--levels=2", "--validation=0"]
    arguments.append("--checkpoint-seconds=0")
    launcher = Path(sys.executable).with_name("mpiexec")
    if not launcher.exists():
        pytest.skip("no mpiexec beside this Python (pip install mpich)")
    environment = clean_environment(MPIEXEC_TIMEOUT="90")
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            [launcher, "-n", "2", sys.executable, script, *arguments],
            cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        log, deadline = tmp_path / "run" / "log.csv", time.monotonic() + 80
        while not log.is_file() or log.read_text().count("\n") < 9:
            assert process.poll() is None, (tmp_path / "out").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for note in tmp_path.glob("pid-*"):
            os.kill(int(note.name.removeprefix("pid-")), signal.SIGKILL)
        process.wait(timeout=20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    _, card = load_model(stored_checkpoints(tmp_path / "run")[0])  # the weights may be a step ahead of it
    assert card.step >= 1
    rows = losses(tmp_path / "run")
    again = python(
        [script, "train", data, "-o", "run", "--continue", f"--epochs={card.step // 2 + 2}", "-q"],
        cwd=tmp_path, timeout=90,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    after = losses(tmp_path / "run")
    assert len(after) == 2 * (card.step // 2 + 2)
    kept = load_model(tmp_path / "run")[1].step
    assert kept == len(after)
    shared = min(card.step, len(rows))
    assert after[:shared].tolist() == rows[:shared].tolist()
