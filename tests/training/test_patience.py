"""A run ends where its validations do not improve, and goes on where it is given more patience."""

from __future__ import annotations

import json

import pytest

from tiny import SERIAL, tiny_config, tiny_dataset
from volseg.api import train as train_by_name
from volseg.config import TrainingConfig
from volseg.errors import ConfigError
from volseg.events import Caution, Message
from volseg.models.stored import BEST
from volseg.training.job import TrainingJob
from volseg.training.log import read_log
from volseg.training.loop import train
from volseg.training.patience import Patience, validations


def test_validations_are_counted_since_the_last_that_rose_by_more_than_the_least():
    patience = Patience(TrainingConfig(patience=2, improvement=0.01))
    for dice, since in ((0.5, 0), (0.509, 1), (None, 1), (0.52, 0), (0.3, 1), (0.53, 2)):
        assert not patience.is_over
        patience.see(dice)
        assert patience.since == since
    assert patience.is_over
    assert patience.reason.startswith("the last 2 validations were not above a Dice of 0.5200 by more than 0.01")
    assert Patience(TrainingConfig(patience=2), [0.5, 0.5, 0.5]).is_over
    assert not Patience(TrainingConfig(patience=0), [0.5] * 9).is_over


def test_validations_at_coarser_resolutions_do_not_count():
    rows = [{"validation_dice": "0.9", "level": "1"}, {"validation_dice": "0.4", "level": "0"}, {"level": "0"}]
    assert validations(rows) == [0.4]


def test_nobody_held_out_is_refused(tmp_path):
    tiny_dataset(tmp_path / "data")
    with pytest.raises(ConfigError, match="no case is held out to validate with"):
        train(TrainingJob(tmp_path / "data", tmp_path / "run", tiny_config(patience=1)), SERIAL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parallel([1, 2])
def test_a_run_ends_says_so_and_goes_on_with_more_patience(tmp_path, communicator):
    folder = communicator.broadcast(tmp_path)
    with communicator.together():
        if communicator.is_root:
            tiny_dataset(folder / "data", cases=2)
    heard: list[object] = []
    # At such a rate nothing changes: the second and the third validation are no improvement.
    config = tiny_config(epochs=6, validation=1, learning_rate=1e-8, patience=2)
    report = train(TrainingJob(folder / "data", folder / "run", config), communicator, heard.append)
    assert (report.steps, report.all_steps, report.stopped) == (3, 6, "patience")
    assert any("ends at step 3 of 6: the last 2 validations" in e.text for e in heard if isinstance(e, Message))

    def written():
        found = json.loads((folder / "run" / "report.json").read_text())
        page = (folder / "run" / "report.html").read_text()
        return found["stopped"], found["ended"], "by patience" in page, len(read_log(folder / "run"))

    assert communicator.on_root(written) == (None, "patience", True, 3)
    assert (folder / "run" / BEST).is_file()

    heard.clear()
    nothing = train_by_name(None, folder / "run", proceed=True, communicator=communicator, listen=heard.append)
    assert nothing.loss is None
    if communicator.is_root:
        assert any("give more --patience" in event.text for event in heard if isinstance(event, Caution))
    longer = train_by_name(None, folder / "run", proceed=True, patience=4, communicator=communicator)
    assert (longer.steps, longer.stopped) == (5, "patience")
    whole = train_by_name(None, folder / "run", proceed=True, patience=0, communicator=communicator)
    assert (whole.steps, whole.stopped) == (6, None)
