"""Labels that differ by side: what is mirrored, and what is said."""

from dataclasses import replace
from pathlib import Path

import pytest

from volseg.config import Config
from volseg.config.augmentation import preset
from volseg.config.recipes import config_of_recipe
from volseg.training.job import TrainingJob
from volseg.training.sides import without_mirrored_sides

SIDED = {"background": 0, "kidney_left": 1, "kidney_right": 2}
LIGHT = replace(Config(), augmentation=preset("light"))


@pytest.mark.parametrize("config", [LIGHT, config_of_recipe("nnunet")])
def test_sides_are_not_mirrored_where_labels_tell_them_apart(config):
    changed, said = without_mirrored_sides(config, SIDED, TrainingJob(Path("set"), Path("run"), config))
    assert changed == replace(config, augmentation=replace(config.augmentation, flip=(0.5, 0.5, 0.0)))
    assert "kidney_left / kidney_right" in said
    assert "--flip dhw mirrors it all the same" in said


@pytest.mark.parametrize("asked", [{"flip_asked": True}, {"proceed": True}])
def test_they_are_where_the_user_or_the_run_asks_for_it_and_that_is_said(asked):
    changed, said = without_mirrored_sides(LIGHT, SIDED, TrainingJob(Path("set"), Path("run"), LIGHT, **asked))
    assert changed == LIGHT
    assert "--flip dh leaves W out" in said


@pytest.mark.parametrize(("config", "labels"), [(Config(), SIDED), (LIGHT, {"background": 0, "liver": 1})])
def test_nothing_is_said_where_nothing_is_mirrored_or_no_sides_are_named(config, labels):
    job = TrainingJob(Path("set"), Path("run"), config)
    assert without_mirrored_sides(config, labels, job) == (config, None)
