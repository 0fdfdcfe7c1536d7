"""Training over ranks: the loss curve of one rank on any number of them, and going on on another number."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tiny import SERIAL, losses, tiny_config, tiny_dataset
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.volumes.volume import Volume


@pytest.fixture
def shared(tmp_path, communicator):
    """One folder for all ranks."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    communicator.barrier()
    return folder


def curve_of_one_rank(shared, config, communicator):
    """The losses of the root alone, on every rank; makes the data set where there is none."""
    found = None
    with communicator.together():
        if communicator.is_root:
            if not (shared / "data").is_dir():
                tiny_dataset(shared / "data")
            train(TrainingJob(shared / "data", shared / "alone", config), SERIAL)
            found = losses(shared / "alone")
    return communicator.broadcast(found)


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 3e-4), ("sgd", 1e-3)])
def test_the_loss_of_each_step_is_that_of_one_rank(shared, communicator, optimizer, rate):
    # Adam divides each gradient by its own size, and so makes rounding noise of small ones into steps: a rate of 3e-3
    # would let the curves drift apart to 1e-4 within 20 steps of a network as small as this.
    # Where rounding turns a maximum of pooling over, the gradient jumps by one voxel's share: the coarsest level needs
    # some hundred voxels, or that share alone is above 1e-5 of the loss.
    with communicator.together():
        if communicator.is_root:
            tiny_dataset(shared / "data", shape=(27, 22, 30))
    config = tiny_config(epochs=10, optimizer=optimizer, learning_rate=rate)
    alone = curve_of_one_rank(shared, config, communicator)
    report = train(TrainingJob(shared / "data", shared / "many", config), communicator)
    many = losses(shared / "many")
    assert len(many) == len(alone) == report.steps == 20
    assert len(report.peaks) == communicator.size
    np.testing.assert_allclose(many, alone, rtol=1e-5)
    assert alone[-6:].mean() < alone[:6].mean()
    facts = json.loads((shared / "many" / "report.json").read_text())
    assert [set(rank) for rank in facts["placement"]] == [{"node", "cores", "threads"}] * communicator.size
    waited = facts["communication"]
    assert 0 <= waited["share_of_time"] <= 1
    assert len(waited["seconds_by_rank"]) == communicator.size
    layers = waited["by_layer"]
    sends = {layer for layer, figures in layers.items() if figures["bytes"] > 0}
    assert {"encoder 0.1", "encoder 0.2", "decoder 0.1, backward", "gradients of the weights"} <= sends
    time = facts["time"]
    assert (time["steps"], time["validation_seconds"]) == (20, 0)
    assert 0 < time["seconds_per_step"] < facts["seconds"]
    assert {"convolution", "norm", "halo", "reduction", "optimizer"} <= set(time["seconds_by_rank"])
    whole = np.sum(list(time["seconds_by_rank"].values()), axis=0)
    assert whole.shape == (communicator.size,)
    assert (whole <= facts["seconds"] + 0.01).all()
    assert 0 < time["load_balance"] <= 1
    assert sum(report.time.values()) == pytest.approx(1)


@pytest.mark.parallel([2, 4, 8])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_coarse_levels_on_fewer_ranks_do_not_change_the_loss(shared, communicator, norm):
    with communicator.together():
        if communicator.is_root:
            tiny_dataset(shared / "data", shape=(27, 22, 30))
    config = tiny_config(epochs=4, learning_rate=3e-4, validation=1)
    config = replace(config, model=replace(config.model, norm=norm))
    alone = curve_of_one_rank(shared, config, communicator)
    partition, stages = {2: ("1x1x2", "2:1x1x1"), 4: ("4x1x1", "1:2x1x1,2:1x1x1"), 8: ("2x2x2", "1:1x1x1")}[
        communicator.size
    ]
    job = TrainingJob(shared / "data", shared / "many", config, partition, agglomerate=stages)
    report = train(job, communicator)
    np.testing.assert_allclose(losses(shared / "many"), alone, rtol=1e-5)
    facts = json.loads((shared / "many" / "report.json").read_text())
    assert facts["agglomeration"] == stages
    assert report.validation_dice == pytest.approx(
        json.loads((shared / "alone" / "report.json").read_text())["validation_dice"], abs=1e-3
    )
    # Those who sit out take part in the gradients' sum, and end with the same weights and statistics.
    before = losses(shared / "many")
    more = replace(job, config=replace(config, training=replace(config.training, epochs=5)), proceed=True)
    train(replace(more, agglomerate="none"), communicator)
    np.testing.assert_array_equal(losses(shared / "many")[: len(before)], before)


@pytest.mark.parallel([1, 2])
def test_checkpointing_a_level_does_not_change_the_loss(shared, communicator):
    with communicator.together():
        if communicator.is_root:
            tiny_dataset(shared / "data")
    curves = []
    for levels in ((), (0, 1)):
        run = shared / f"run {len(levels)}"
        train(TrainingJob(shared / "data", run, tiny_config(epochs=2, checkpoint_levels=levels)), communicator)
        curves.append(losses(run))
    np.testing.assert_array_equal(curves[0], curves[1])


@pytest.mark.parallel(4)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_other_norms_give_the_loss_of_one_rank_too(shared, communicator, norm):
    config = tiny_config(epochs=3)
    config = replace(config, model=replace(config.model, norm=norm, base_channels=8, dropout=0.1))
    alone = curve_of_one_rank(shared, config, communicator)
    train(TrainingJob(shared / "data", shared / "many", config, partition="2x1x2"), communicator)
    np.testing.assert_allclose(losses(shared / "many"), alone, rtol=1e-5)


class Interrupted(Exception):
    pass


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_goes_on_on_another_number_of_ranks(shared, communicator, optimizer, monkeypatch):
    """From 1 rank on N, and from N ranks on 1; the curve is that of a run without a break."""
    monkeypatch.setattr("volseg.training.record.draw_progress", lambda run, rows: None)  # after each step, otherwise
    config = tiny_config(epochs=4, optimizer=optimizer, learning_rate=1e-3, checkpoint_seconds=0.0)
    whole = curve_of_one_rank(shared, config, communicator)

    def stop_after(step):
        def listen(event):
            if getattr(event, "task", None) == "train" and event.done == step:
                raise Interrupted

        return listen

    def many(listen=lambda event: None, proceed=False):
        train(TrainingJob(shared / "data", shared / "many", config, proceed=proceed), communicator, listen)

    def one(listen=lambda event: None, proceed=False):
        train(TrainingJob(shared / "data", shared / "one", config, proceed=proceed), SERIAL, listen)

    with pytest.raises(Interrupted):
        many(stop_after(3))
    with communicator.together():
        if communicator.is_root:
            with pytest.raises(Interrupted):
                one(stop_after(3))
            os.rename(shared / "many", shared / "swapped")
            os.rename(shared / "one", shared / "many")
            os.rename(shared / "swapped", shared / "one")
    assert len(losses(shared / "many")) == len(losses(shared / "one")) == 3
    many(proceed=True)
    with communicator.together():
        if communicator.is_root:
            one(proceed=True)
    for name in ("many", "one"):
        np.testing.assert_allclose(losses(shared / name), whole, rtol=1e-5)


@pytest.mark.parallel([2, 4])
def test_each_rank_reads_only_its_block(shared, communicator, monkeypatch):
    with communicator.together():
        if communicator.is_root:
            tiny_dataset(shared / "data")
    boxes = []
    spy_on_reads(monkeypatch, boxes)

    def listen(event):
        if getattr(event, "task", None) == "train" and event.done == 0:
            boxes.clear()  # cases are examined before, in pieces of some MiB, which is all of these

    train(TrainingJob(shared / "data", shared / "run", tiny_config(epochs=1)), communicator, listen)
    d, h, w = (13, 18, 15)
    largest = communicator.gather_all(max(box.size for box in boxes))
    # Blocks end on multiples of 4, so no block is the mean size exactly.
    assert max(largest) <= d * h * w * 1.4 / communicator.size
    assert len({(box.start, box.stop) for box in boxes}) == 1


def spy_on_reads(monkeypatch, boxes):
    """Note the box of every read of a NIfTI file."""
    for kind in stored_kinds():
        original = kind.read

        def read(self, box, original=original):
            boxes.append(box)
            return original(self, box)

        monkeypatch.setattr(kind, "read", read)


def stored_kinds() -> list[type[Volume]]:
    from volseg.volumes import stored

    return [stored.PackedVolume, stored.PlainVolume]
