"""Replicas and accumulation: the same cases a step give the same curve, whoever has them and when."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny import SERIAL, losses, newest, tiny_config, tiny_dataset
from volseg.config import Config, read_config
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.replicas import Replicas
from volseg.errors import CheckpointError, PartitionError, VolumeError
from volseg.events import Caution, ignore
from volseg.models.fused import FusedNetwork
from volseg.models.stored import ModelCard, load_model
from volseg.models.unet import UNet
from volseg.training.data import CaseBlocks
from volseg.training.going_on import check_same_batch
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.training.optimization import batch_of, case_order
from volseg.training.preparing import prepare
from volseg.training.step import random_state, training_step
from volseg.training.validation import validate
from volseg.volumes.dataset import read_dataset
from volseg.volumes.dataset.examination import examine
from volseg.volumes.intensity import ChannelScheme

SHAPE = (27, 22, 30)  # some hundred voxels at the coarsest level (see test_train_ranks.py)


@pytest.fixture
def shared(tmp_path, communicator):
    """One folder for all ranks, with a data set of six cases."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            tiny_dataset(folder / "data", cases=6, shape=SHAPE)
    return folder


def on_root(communicator, step):
    """`step()` on the root alone; what it returns, on every rank."""
    found = None
    with communicator.together():
        if communicator.is_root:
            found = step()
    return communicator.broadcast(found)


def column(run, name):
    with (run / "log.csv").open(newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def assert_same_run(one, other):
    """Curves within 1e-5, the same cases, and weights as close as their rounding lets them be."""
    np.testing.assert_allclose(losses(other), losses(one), rtol=1e-5)
    assert column(other, "case") == column(one, "case")
    ours, theirs = (load_model(run)[0].state_dict() for run in (other, one))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5)


SETTINGS = {
    "adamw": ({"learning_rate": 3e-4}, {}),
    "sgd, clipped": ({"learning_rate": 1e-3, "optimizer": "sgd", "clip": 0.5}, {}),
    "batch Dice": ({"learning_rate": 3e-4, "batch_dice": True}, {"norm": "batch", "dropout": 0.2}),
    "batch norm, dropout": ({"learning_rate": 3e-4}, {"norm": "batch", "dropout": 0.2}),
}


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("settings", SETTINGS)
def test_replicas_give_the_curve_of_one_rank_that_accumulates(shared, communicator, settings):
    """Six cases in batches of four: every other step has two, with two replicas one each."""
    training, model = SETTINGS[settings]
    one, config = (tiny_config(epochs=5, accumulate=n, **training) for n in (4, 2))
    one, config = (replace(c, model=replace(c.model, **model)) for c in (one, config))
    on_root(communicator, lambda: train(TrainingJob(shared / "data", shared / "one", one), SERIAL))
    report = train(TrainingJob(shared / "data", shared / "many", config, replicas=2), communicator)
    assert report.steps == 10
    assert [case.count("+") for case in column(shared / "many", "case")] == [3, 1] * 5
    on_root(communicator, lambda: assert_same_run(shared / "one", shared / "many"))
    assert losses(shared / "one")[-4:].mean() < losses(shared / "one")[:4].mean()
    facts = json.loads((shared / "many" / "report.json").read_text())
    assert (facts["ranks"], facts["replicas"], facts["batch"]) == (communicator.size, 2, 4)
    assert math.prod(facts["grid"]) == communicator.size // 2
    assert facts["communication"]["by_layer"]["gradients of the weights"]["bytes"] > 0


@pytest.mark.parallel(4)
def test_a_last_batch_that_leaves_replicas_without_a_case(shared, communicator):
    """Six cases, four replicas: the second step has no case for two of them, and of three for three."""
    for accumulate, tail in ((1, 2), (5, 6)):
        name = f"{accumulate}"
        config = tiny_config(epochs=2, accumulate=4 * accumulate, learning_rate=3e-4)
        on_root(communicator, lambda c=config, n=name: train(TrainingJob(shared / "data", shared / n, c), SERIAL))
        many = tiny_config(epochs=2, accumulate=accumulate, learning_rate=3e-4)
        train(TrainingJob(shared / "data", shared / f"{name} many", many, replicas=4), communicator)
        on_root(communicator, lambda n=name: assert_same_run(shared / n, shared / f"{n} many"))
        assert column(shared / f"{name} many", "case")[-1].count("+") == tail - 1


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_batch_has_the_means_of_its_cases(shared, communicator, norm):
    """Of losses, gradients and running statistics; a clipped gradient keeps its direction."""
    config = tiny_config(accumulate=3, learning_rate=0.01)
    config = replace(config, model=replace(config.model, norm=norm))
    replicas = min(2, communicator.size)
    setup = prepare(TrainingJob(shared / "data", shared / "run", config, replicas=replicas), communicator, ignore)
    before = {name: value.clone() for name, value in setup.model.state_dict().items()}

    def step(cases, clip=0.0):
        """Loss, gradient and running statistics of a step that begins from the same weights each time."""
        setup.model.load_state_dict(before)
        clipping = replace(config, training=replace(config.training, clip=clip))
        figures = training_step(replace(setup, config=clipping), cases, 0)
        gradient = torch.cat([p.grad.reshape(-1) for p in setup.model.parameters()])
        return figures.loss, gradient, torch.cat([torch.zeros(0), *(b.reshape(-1) for b in setup.model.buffers())])

    cases = setup.cases[:3]
    singles = [step([case]) for case in cases]
    loss, gradient, running = step(cases)
    assert loss == pytest.approx(sum(single[0] for single in singles) / 3, rel=1e-6)
    torch.testing.assert_close(gradient, sum(single[1] for single in singles) / 3, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(running, sum(single[2] for single in singles) / 3, rtol=1e-5, atol=1e-6)
    assert (len(running) > 0) == (norm == "batch")
    norm_ = float(gradient.norm())
    _, clipped, _ = step(cases, clip=norm_ / 8)
    torch.testing.assert_close(clipped, gradient / 8, rtol=1e-4, atol=1e-7)
    _, whole, _ = step(cases, clip=norm_ * 1.01)
    assert torch.equal(whole, gradient)
    found = communicator.gather_all([t.numpy().tobytes() for t in setup.model.state_dict().values()])
    assert all(rank == found[0] for rank in found)  # weights stay the same bits on every rank


def test_every_case_is_in_one_batch_of_an_epoch():
    names = [f"case {n}" for n in range(7)]
    batches = [batch_of(names, step, 3, seed=5) for step in range(6)]
    assert [len(batch) for batch in batches] == [3, 3, 1] * 2
    for epoch in (0, 1):
        order = case_order(5, epoch, 7)
        assert [name for batch in batches[3 * epoch : 3 * epoch + 3] for name in batch] == [names[n] for n in order]
    assert [batch_of(names, step, 1, seed=5)[0] for step in range(7)] == [names[n] for n in case_order(5, 0, 7)]


def test_random_numbers_follow_from_the_place_in_the_batch():
    torch.manual_seed(1)
    stream = torch.rand(2).tolist()
    torch.manual_seed(1)
    found = []
    for place in (2, 0, 1):  # in any order, and the stream is left as it was
        with random_state(7, 3, place):
            found.append(float(torch.rand(1)))
    assert torch.rand(2).tolist() == stream
    with random_state(7, 3, 2):
        assert float(torch.rand(1)) == found[0]
    with random_state(7, 4, 2):
        assert float(torch.rand(1)) != found[0]
    assert len(set(found)) == 3


@pytest.mark.parallel([2, 4])
def test_validation_and_normalisation_are_the_same_on_any_number_of_replicas(shared, communicator):
    """Bit for bit: counts of voxels do not know who counted them."""
    dataset = replace(read_dataset(shared / "data"), channel_names=("CT",))  # CT is normalised by all cases together
    torch.manual_seed(3)
    model = UNet(tiny_config().model.for_data(1, 3))

    def measured(world, count):
        replicas = Replicas(world, count)
        grid = ProcessGrid(replicas.own, (1, 1, replicas.own.size))
        blocks = CaseBlocks(dataset, dataset.cases, grid, 4, replicas)
        blocks.schemes = examine(dataset, world).fingerprint.schemes()
        found = validate(FusedNetwork(model, grid), blocks, dataset.cases[:5])
        return [vars(scheme.fixed) for scheme in blocks.schemes], found, blocks.cached_bytes

    schemes, validation, cached = on_root(communicator, lambda: measured(SERIAL, 1))
    assert validation.mean > 0
    assert list(validation.by_case) == [case.name for case in dataset.cases[:5]]
    for count in (1, 2, communicator.size):
        found = measured(communicator, count)
        assert found[:2] == (schemes, validation)
        assert found[2] <= cached * 1.6 / communicator.size  # of five cases no replica of four has more than two


class Interrupted(Exception):
    pass


@pytest.mark.parallel(4)
def test_a_run_goes_on_with_other_replicas_and_the_same_batch(shared, communicator, monkeypatch):
    monkeypatch.setattr("volseg.training.record.draw_progress", lambda run, rows: None)
    run = shared / "run"

    def go(world, replicas, accumulate, until=-1, proceed=True, folder=run):
        def listen(event):
            if getattr(event, "task", None) == "train" and event.done == until:
                raise Interrupted

        config = tiny_config(epochs=6, accumulate=accumulate, learning_rate=3e-4, checkpoint_seconds=0.0)
        config = replace(config, model=replace(config.model, dropout=0.2))
        train(TrainingJob(shared / "data", folder, config, "auto", proceed, False, replicas=replicas), world, listen)

    on_root(communicator, lambda: go(SERIAL, 1, 4, proceed=False, folder=shared / "whole"))
    with pytest.raises(Interrupted):
        go(communicator, 4, 1, until=3, proceed=False)
    before = on_root(communicator, lambda: newest(run).read_bytes())
    with pytest.raises(CheckpointError, match=r"with 4 cases a step, but --replicas 2 .* 1 give 2; .*--accumulate 2"):
        go(communicator, 2, 1)
    with pytest.raises(CheckpointError, match=r"--replicas 4 .* 2 give 8; continue with --accumulate 1"):
        go(communicator, 4, 2)
    assert on_root(communicator, lambda: newest(run).read_bytes()) == before
    with pytest.raises(Interrupted):
        go(communicator, 2, 2, until=6)
    with communicator.together():
        if communicator.is_root:
            with pytest.raises(Interrupted):
                go(SERIAL, 1, 4, until=9)
    go(communicator, 1, 4)
    on_root(communicator, lambda: assert_same_run(shared / "whole", run))


def test_a_batch_that_replicas_do_not_divide_is_refused_with_what_works(tmp_path):
    job = TrainingJob(Path("data"), Path("run"), Config(), replicas=3)
    card = ModelCard(Config(), {}, (), (1.0, 1.0, 1.0), 1, 4)
    with pytest.raises(CheckpointError, match=r"continue with --replicas 1 --accumulate 4,"):
        check_same_batch(card, job)


def test_a_checkpoint_from_before_there_were_batches_has_one_case_a_step():
    config = Config(tiny_config().model.for_data(1, 2))
    card = ModelCard(config, {"background": 0, "a": 1}, (ChannelScheme("MR", None),), (1.0, 1.0, 1.0), 7, 3)
    values = json.loads(card.as_json())
    assert ModelCard.from_json(json.dumps(values), Path("run")) == card
    del values["batch"], values["config"]["training"]["accumulate"], values["config"]["training"]["clip"]
    assert ModelCard.from_json(json.dumps(values), Path("run")) == replace(card, batch=1)


@pytest.mark.parallel(4)
def test_what_replicas_cannot_be_is_refused_on_all_ranks_before_anything_is_written(shared, communicator):
    def refuse(message, **job):
        with pytest.raises(PartitionError, match=message):
            train(TrainingJob(shared / "data", shared / "run", tiny_config(), **job), communicator)
        assert not (shared / "run").exists()

    refuse(r"--replicas 3 does not divide this job's 4 ranks: start it with mpirun -n 3 .* one of 1, 2, 4", replicas=3)
    refuse(r"--replicas 0 does not divide this job's 4 ranks: give one of 1, 2, 4", replicas=0)
    refuse(r"--partition 1x2x2 needs 8 ranks for 2 replicas, this job has 4", replicas=2, partition="1x2x2")
    refuse(r"--partition 1x2x1 needs 2 ranks, this job has 4", partition="1x2x1")
    refuse(r"each of 2 replicas has 2 ranks of 4: .*give auto", replicas=2, partition="two")


@pytest.mark.parallel(2)
def test_more_replicas_than_cases_is_said(tmp_path, communicator):
    folder = Path(communicator.broadcast(str(tmp_path)))
    on_root(communicator, lambda: tiny_dataset(folder / "data", cases=1))
    events = []
    train(TrainingJob(folder / "data", folder / "run", tiny_config(), replicas=2), communicator, events.append)
    assert any(isinstance(event, Caution) and "2 replicas, but cases to train on: 1" in event.text for event in events)
    assert len(losses(folder / "run")) == 2


@pytest.mark.parallel([2, 4])
def test_a_case_that_one_replica_cannot_read_ends_all(shared, communicator):
    """Case 3 is the second replica's to check; its truncated labels are everyone's error."""
    label = shared / "data" / "labelsTr" / "ellipsoids_003.nii.gz"
    on_root(communicator, lambda: label.write_bytes(label.read_bytes()[:-200]))
    with pytest.raises(VolumeError, match="ellipsoids_003"):
        train(TrainingJob(shared / "data", shared / "run", tiny_config(), replicas=2), communicator)
    assert not (shared / "run").exists()


FAILING = """
from volseg.errors import VolumeError
from volseg.training.data import CaseBlocks
load, loads = CaseBlocks.load, []
def failing(self, case):
    loads.append(case)
    if self.replicas.number == 1 and len(loads) == 3:
        raise VolumeError(f"{case.name}: cannot be read any more")
    return load(self, case)
CaseBlocks.load = failing
from volseg.cli import app
app.main()
"""


def test_a_failure_of_one_replica_in_training_ends_the_job_with_one_message(tmp_path, mpirun):
    tiny_dataset(tmp_path / "ellipsoids", cases=4)
    (tmp_path / "failing.py").write_text(FAILING)
    arguments = ["train", "--replicas=2", "--epochs=50", "--base-channels=4", "--levels=2", "--validation=0", "-q"]
    ended = mpirun(4, [tmp_path / "failing.py", *arguments], cwd=tmp_path, timeout=90)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("cannot be read any more") == 1, ended.stderr
    assert "rank 2: " in ended.stderr


def test_the_command_line_takes_replicas_accumulate_and_clip(tmp_path, mpirun):
    tiny_dataset(tmp_path / "ellipsoids", cases=4)
    small = ["--base-channels=4", "--levels=2", "--epochs=1", "--validation=0", "-q"]
    options = ["--replicas=2", "--accumulate=2", "--clip=1.5", "--partition=1x1x1"]
    ended = mpirun(2, ["-m", "volseg", "train", *small, *options], cwd=tmp_path, timeout=90)
    assert ended.returncode == 0, ended.stderr
    run = tmp_path / "volseg-run"
    training = read_config(run / "config.toml").training
    assert (training.accumulate, training.clip) == (2, 1.5)
    assert load_model(newest(run))[1].batch == 4
    assert len(losses(run)) == 1
    ended = mpirun(2, ["-m", "volseg", "train", *small, "--continue", "--epochs=2"], cwd=tmp_path, timeout=90)
    assert ended.returncode == 2
    assert "continue with --accumulate 4" in ended.stderr
