"""Which checkpoints are kept, which one a run goes on from, and what a damaged file may cost."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import clean_environment
from tiny import LABELS, MODEL, SERIAL, listing, losses, newest, tiny_config, tiny_dataset
from volseg.config import Config
from volseg.errors import CheckpointError, ConfigError
from volseg.events import Caution
from volseg.models.stored import (
    BEST,
    CHECKPOINT,
    WEIGHTS,
    DamagedError,
    ModelCard,
    load_model,
    load_tensors,
    save_tensors,
)
from volseg.models.unet import UNet
from volseg.training.averaging import AveragedWeights
from volseg.training.checkpoint import load_checkpoint, save_checkpoint
from volseg.training.job import TrainingJob
from volseg.training.keeping import checkpoint_path, stored_checkpoints
from volseg.training.loop import train
from volseg.training.optimization import make_optimizer
from volseg.training.run_lock import RunLock
from volseg.training.validation import Validation
from volseg.volumes.intensity import ChannelScheme

STEPS = 6
CARD = ModelCard(Config(MODEL.for_data(1, 3)), LABELS, (ChannelScheme("MR", None),), (1.0, 1.0, 1.0), 7, 3)


class Stop(Exception):
    """In place of a kill."""


def stop_after(step):
    def listen(event):
        if getattr(event, "task", None) == "train" and event.done == step:
            raise Stop

    return listen


def config(**changes):
    return tiny_config(**({"epochs": 3, "checkpoint_seconds": 0.0, "keep": 3} | changes))


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("volseg.training.record.draw_progress", lambda run, rows: None)  # after each step, otherwise


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """A run that nobody stopped."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(TrainingJob(data, run, config()), SERIAL)
    return run


@pytest.fixture
def broken(tmp_path, data):
    """One that was stopped after step 4, with the checkpoints of steps 2, 3 and 4."""
    with pytest.raises(Stop):
        train(TrainingJob(data, tmp_path / "run", config()), SERIAL, stop_after(4))
    return tmp_path / "run"


def steps_of(run):
    return [load_tensors(path)[1].step for path in stored_checkpoints(run)]


def go_on(data, run, **changes):
    events = []
    train(TrainingJob(data, run, config(**changes), proceed=True), SERIAL, events.append)
    return [event.text for event in events if isinstance(event, Caution)]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(place):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[place(len(content))] ^= 16
        path.write_bytes(content)

    return damage


def empty(path):
    path.write_bytes(b"")


DAMAGE = {
    "cut": cut,
    "empty": empty,
    "header's length": flip(lambda size: 1),
    "header": flip(lambda size: 100),
    "a weight": flip(lambda size: size - 5),
    "the middle": flip(lambda size: size // 2),
}


def test_the_last_few_are_kept(broken, data):
    assert steps_of(broken) == [4, 3, 2]
    go_on(data, broken, keep=1)
    assert steps_of(broken) == [STEPS]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_newest_one_is_skipped_with_a_warning(broken, data, whole, damage):
    path = newest(broken)
    damage(path)
    cautions = go_on(data, broken)
    assert len(cautions) == 1
    assert cautions[0].startswith(f"{path}: ")
    assert f"going on from {checkpoint_path(broken, 3)}" in cautions[0]
    np.testing.assert_array_equal(losses(broken), losses(whole))
    assert steps_of(broken) == [6, 5, 4]
    ours, theirs = (load_model(run)[0].state_dict() for run in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_damaged_ones_do_not_push_out_those_written_later(broken, data):
    """All damaged ones are later than what is written after them, until the run has caught up."""
    for path in stored_checkpoints(broken)[:2]:
        cut(path)
    with pytest.raises(Stop):
        train(TrainingJob(data, broken, config(keep=1), proceed=True), SERIAL, stop_after(3))
    assert steps_of(broken) == [3]


def test_where_none_is_whole_nothing_is_changed(broken, data):
    for path in stored_checkpoints(broken):
        cut(path)
    before = listing(broken)
    with pytest.raises(CheckpointError, match=r"none of its 3 checkpoints is whole: .*step_00000004.*damaged"):
        go_on(data, broken)
    assert listing(broken) == before


def test_one_of_another_version_is_no_damage_and_not_passed_over(broken, data):
    """It may be better than all that this version can read; so that is for the user to say."""
    tensors, card = load_tensors(newest(broken))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("volseg.models.stored.SCHEMA", 99)
        save_tensors(newest(broken), tensors, card)
    before = listing(broken)
    with pytest.raises(CheckpointError, match="schema 99"):
        go_on(data, broken)
    assert listing(broken) == before


def test_every_flipped_bit_of_the_header_is_found(tmp_path):
    """Most make it no safetensors file; the others change a name, a shape, a place or the description."""
    model = torch.nn.Linear(3, 2)
    path = tmp_path / "a.safetensors"
    save_tensors(path, model.state_dict(), CARD)
    content = path.read_bytes()
    assert load_tensors(path)[1] == CARD
    missed = []
    for place in range(len(content)):
        for bit in (place % 8, 5):  # 5 makes capitals of small letters, and "[" of "{"
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            try:
                tensors, found = load_tensors(path)
            except DamagedError:
                continue
            # White space in the header carries nothing.
            if found != CARD or any(not torch.equal(tensors[n], t) for n, t in model.state_dict().items()):
                missed.append((place, bit))
    assert missed == []


def test_a_run_of_a_version_before_goes_on(broken, data, whole):
    """Its one checkpoint lies in the run folder, without a checksum, and goes once there are enough new ones."""
    path = newest(broken)
    with safe_open(str(path), framework="pt") as file:
        card = json.loads(file.metadata()["volseg"])
    del card["checksum"], card["validation_dice"], card["finest_from"], card["config"]["training"]["keep"]
    del card["config"]["training"]["checkpoint_seconds"], card["network"]
    save_file(load_file(path), broken / CHECKPOINT, metadata={"volseg": json.dumps(card)})
    for stored in (broken / "checkpoints").iterdir():
        stored.unlink()
    (broken / "checkpoints").rmdir()
    assert stored_checkpoints(broken) == [broken / CHECKPOINT]
    go_on(data, broken, keep=2)
    np.testing.assert_array_equal(losses(broken), losses(whole))
    assert steps_of(broken) == [6, 5]
    assert not (broken / CHECKPOINT).exists()


def test_what_a_kill_left_half_written_is_removed(broken, data):
    for name in (".weights.1.partial.safetensors", "checkpoints/.step_00000005.1.partial.safetensors"):
        (broken / name).write_bytes(b"half")
    with (broken / "log.csv").open("a") as file:
        file.write("5,3,0.1,0.1,1,1,1,x,\n1,1")  # step 1x, torn: not step 1
    go_on(data, broken)
    assert not list(broken.rglob("*.partial*"))
    assert len(losses(broken)) == STEPS


def test_the_best_weights_are_kept_beside_the_last(tmp_path, data, monkeypatch):
    """And known to a run that goes on: a validation that is not better leaves them."""
    scores = iter([0.25, 0.5, 0.125, 0.375])
    monkeypatch.setattr(
        "volseg.training.step_loop.validate", lambda *arguments: Validation(next(scores), (None, None), {})
    )
    run = tmp_path / "run"
    settings = config(epochs=4, validation=1)
    with pytest.raises(Stop):
        train(TrainingJob(data, run, settings), SERIAL, stop_after(3))
    best = load_model(run / BEST)
    assert (best[1].step, best[1].validation_dice) == (2, 0.5)
    train(TrainingJob(data, run, settings, proceed=True), SERIAL)
    again = load_model(run / BEST)
    assert again[1] == best[1]
    assert all(torch.equal(again[0].state_dict()[n], t) for n, t in best[0].state_dict().items())
    assert load_model(run)[1].step == 4
    assert load_model(run)[1].validation_dice == 0.375


def test_without_held_out_cases_there_is_no_best(whole):
    assert not (whole / BEST).exists()


def test_averaged_weights_travel_with_a_checkpoint(tmp_path):
    model = UNet(CARD.config.model)
    optimizer = make_optimizer(model, CARD.config.training)
    averaged, found = AveragedWeights(model, 0.9), AveragedWeights(UNet(CARD.config.model), 0.9)
    averaged.load({name: value + 1 for name, value in averaged.state().items()})
    save_checkpoint(tmp_path / "a.safetensors", model, optimizer, CARD, averaged)
    assert load_checkpoint(tmp_path / "a.safetensors", UNet(CARD.config.model), optimizer, found) == CARD
    assert found.state().keys() == averaged.state().keys()
    assert all(torch.equal(found.state()[name], value) for name, value in averaged.state().items())
    opened = load_model(tmp_path / "a.safetensors")[0].state_dict()  # the averaged ones are those to segment with
    assert all(torch.equal(opened[name], value) for name, value in averaged.state().items())


HOLD = """
import sys
from pathlib import Path
from volseg.training.run_lock import RunLock
from volseg.training.validation import Validation
from volseg.volumes.intensity import ChannelScheme
with RunLock(Path(sys.argv[1])) as lock:
    lock.acquire()
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_job_at_a_time(broken, data, whole):
    """Another process holds the lock until it is killed; then the run goes on."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, broken], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=clean_environment(),
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        before = listing(broken)
        for job in ({"proceed": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match=rf"process {holder.pid} on .* is training into it"):
                train(TrainingJob(data, broken, config(), **job), SERIAL)
        assert listing(broken) == before
    finally:
        holder.kill()
        holder.communicate()
    go_on(data, broken)
    np.testing.assert_array_equal(losses(broken), losses(whole))


def test_the_lock_is_given_back(broken, data):
    go_on(data, broken)
    script = [sys.executable, "-c", HOLD, broken]
    other = subprocess.run(script, input="", capture_output=True, text=True, env=clean_environment(), check=True)
    assert other.stdout == "held\n"
    with RunLock(broken) as lock:
        lock.acquire()


def test_weights_are_never_older_than_the_checkpoint(tmp_path, data, monkeypatch):
    """A run that is killed between the two must not be finished with the weights of an earlier step."""

    def fail(*arguments, **options):
        raise Stop

    monkeypatch.setattr("volseg.training.keeping.save_checkpoint", fail)
    with pytest.raises(Stop):
        train(TrainingJob(data, tmp_path / "run", config()), SERIAL)
    assert (tmp_path / "run" / WEIGHTS).is_file()
    assert stored_checkpoints(tmp_path / "run") == []
