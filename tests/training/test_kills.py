"""Ranks that are killed (-9) at moments of all kinds: the job ends soon, and nothing that was written is lost."""

import time
from dataclasses import replace

import numpy as np
import pytest

from tiny import SERIAL, losses, tiny_config, tiny_dataset
from volseg.config import config_tables
from volseg.models.stored import load_tensors
from volseg.training.job import TrainingJob
from volseg.training.keeping import stored_checkpoints
from volseg.training.loop import train

LIMIT = 10.0  # seconds for a job to end
CONFIG = tiny_config(epochs=3, learning_rate=3e-4, validation=1, checkpoint_seconds=0.0, warmup=2)
CONFIG = replace(CONFIG, model=replace(CONFIG.model, norm="batch", dropout=0.2))

DYING = """
import os, signal, sys, time
from pathlib import Path

moment, victim, rank = sys.argv.pop(1), int(sys.argv.pop(1)), int(os.environ["PMI_RANK"])
import volseg.files as files
import volseg.training.step_loop as loop

def die():
    Path("died").write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)

def dying(function, call, before=lambda: None):
    calls = []
    def called(*arguments):
        calls.append(1)
        if len(calls) == call and rank == victim:
            before()
            die()
        return function(*arguments)
    return called

def until(name):
    def wait():
        while not any(Path().rglob(name)):
            time.sleep(0.01)
    return wait

def renaming(source, target, rename=os.replace):
    if Path(target).name == "step_00000004.safetensors":
        if moment == "before the rename":
            die()
        Path("writing").touch()
        time.sleep(1)  # time for the other to die
    rename(source, target)
    if Path(target).name == "step_00000004.safetensors" and moment == "after the rename":
        die()

if moment == "step":
    loop.training_step = dying(loop.training_step, 5, until("step_00000004.safetensors"))
elif moment == "validation":
    loop.validate = dying(loop.validate, 2)
elif moment == "while the root writes":
    loop.training_step = dying(loop.training_step, 5, until("writing"))
if moment in ("before the rename", "while the root writes", "after the rename"):
    files.os.replace = renaming
from volseg.cli import app
app.main()
"""

MOMENTS = {  # moment: ranks, the one that dies, the newest checkpoint that is left, ranks that go on
    "step": (4, 3, (4,), 2),
    "validation": (2, 1, (5,), 1),
    "before the rename": (2, 0, (3,), 1),
    "after the rename": (2, 0, (4,), 1),
    "while the root writes": (4, 2, (3, 4), 1),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data set, its configuration and the run that nobody killed."""
    folder = tmp_path_factory.mktemp("kills")
    tiny_dataset(folder / "data", cases=4, shape=(20, 22, 24))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("volseg.training.record.draw_progress", lambda run, rows: None)
        train(TrainingJob(folder / "data", folder / "whole", CONFIG), SERIAL)
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_rank_costs_a_step_and_no_more(world, tmp_path, mpirun, moment):
    import tomli_w

    ranks, victim, left, onto = MOMENTS[moment]
    (tmp_path / "dying.py").write_text(DYING)
    tables = config_tables(CONFIG)
    (tmp_path / "config.toml").write_text(tomli_w.dumps(tables))
    arguments = ["train", world / "data", "-o", "run", "--config", "config.toml", "-q"]
    ended = mpirun(ranks, [tmp_path / "dying.py", moment, str(victim), *arguments], cwd=tmp_path, timeout=170)
    seconds = time.time() - float((tmp_path / "died").read_text())
    assert ended.returncode != 0
    assert seconds < LIMIT
    run = tmp_path / "run"
    steps = [load_tensors(path)[1].step for path in stored_checkpoints(run)]
    assert steps[0] in left
    assert steps[1] == steps[0] - 1
    assert len(steps) <= 3  # the oldest goes after the newest has come
    again = mpirun(onto, ["-m", "volseg", *arguments, "--continue"], cwd=tmp_path, timeout=170)
    assert again.returncode == 0, again.stderr
    np.testing.assert_allclose(losses(run), losses(world / "whole"), rtol=1e-5)
    assert not list(run.rglob("*.partial*"))
    assert [load_tensors(path)[1].step for path in stored_checkpoints(run)] == [9, 8]
