"""A training run at several resolutions, as it is planned: steps, time, and the resolution whose memory rules."""

from dataclasses import replace

import pytest

from volseg.config import Config, DataConfig, ModelConfig, MultigridConfig, TrainingConfig
from volseg.errors import ConfigError
from volseg.planning.answer import Asked, answer
from volseg.planning.memory import MPI
from volseg.planning.profile import built_in_profile

SMALL = ModelConfig(in_channels=1, classes=3, base_channels=8, levels=3)


def planned(shape, ranks, levels, *, model=SMALL, training=None, data=None, **more):
    settings = Config(
        model, training or TrainingConfig(validation=0), data or DataConfig(), multigrid=MultigridConfig(levels)
    )
    return answer(Asked(shape, settings, ["train"], built_in_profile(), ranks=[ranks], **more)).tasks["train"]


def test_the_finest_resolution_is_what_it_is_without_multigrid():
    alone, several = (planned((96, 96, 96), 4, levels) for levels in (1, 3))
    assert several.run == alone.run
    assert [each.run.plan.layout.shape for each in several.whole.resolutions] == [(n, n, n) for n in (96, 48, 24)]
    assert several.memory == alone.memory
    assert several.whole.relative < alone.whole.relative == 1


def test_time_is_that_of_the_steps_of_each_resolution():
    found = planned((64, 64, 64), 2, 2, training=TrainingConfig(epochs=3, accumulate=2), cases=5)
    finest, coarse = found.whole.resolutions
    assert found.whole.in_epoch == 3
    assert (finest.steps, coarse.steps) == (5, 4)
    assert found.whole.seconds == pytest.approx(5 * finest.step_seconds + 4 * coarse.step_seconds)
    assert found.run.seconds < finest.step_seconds < 2 * found.run.seconds  # two cases, and one step of the optimizer
    alone = planned((64, 64, 64), 2, 1, training=TrainingConfig(epochs=3, accumulate=2), cases=5)
    assert found.whole.relative == pytest.approx(found.whole.seconds / alone.whole.seconds)


def test_a_coarse_resolution_of_larger_blocks_rules_the_memory():
    """Of 224 voxels seven ranks have 32 each; 112 are four blocks of 32, which seven ranks do not share."""
    shape, deep = (224, 224, 224), replace(SMALL, levels=5)
    found = planned(shape, 7, 2, model=deep)
    finest, coarse = (each.run for each in found.whole.resolutions)
    assert (finest.dims, coarse.dims, coarse.replicas) == ((7, 1, 1), (1, 1, 1), 7)
    assert found.memory.peak == coarse.plan.memory.peak > finest.plan.memory.peak
    assert any("level 1 of the multigrid needs most" in reason for reason in found.reasons)

    limit = (coarse.plan.memory.peak + finest.plan.memory.peak) // 2
    tight = planned(shape, 7, 2, model=deep, limit=limit)
    assert not tight.fits
    assert tight.command is None
    assert any("--multigrid 1 would fit" in reason for reason in tight.reasons)
    assert planned(shape, 7, 1, model=deep, limit=limit).fits


def test_ranks_that_are_replicas_of_one_have_mpi_too():
    alone = planned((64, 64, 64), 1, 1)
    several = planned((64, 64, 64), 2, 1, replicas=2)
    assert several.run.dims == (1, 1, 1)
    assert several.memory.peak == alone.memory.peak + MPI == sum(several.memory.parts.values())


def test_a_crop_is_halved_with_the_volume():
    found = planned((128, 128, 128), 1, 2, data=DataConfig(crop=(48, 64, 64)))
    assert [each.run.plan.layout.shape for each in found.whole.resolutions] == [(48, 64, 64), (24, 32, 32)]


def test_volumes_that_become_one_voxel_are_refused_with_what_works():
    with pytest.raises(ConfigError, match=r"--multigrid 4: 8x8x8 voxels after 3 halvings .* fewer --multigrid levels"):
        planned((64, 64, 64), 1, 4)
    assert len(planned((64, 64, 64), 1, 3).whole.resolutions) == 3


def test_networks_without_times_take_the_fewest_replicas_whose_blocks_are_thick_enough():
    """A kernel of 9 reads 4 voxels beyond a block at each of four stages: blocks of 32 at the finest."""
    settings = Config(replace(SMALL, kernel_size=9), TrainingConfig(validation=0), multigrid=MultigridConfig(2))
    asked = Asked((64, 64, 64), settings, ["train"], built_in_profile(), ranks=[8])
    finest, coarse = (each.run for each in answer(asked).tasks["train"].whole.resolutions)
    assert (finest.dims, finest.replicas) == ((2, 2, 2), 1)
    assert (coarse.dims, coarse.replicas) == ((1, 1, 1), 8)
