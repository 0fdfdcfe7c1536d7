"""Normalisation: nnU-Net's two schemes, from histograms that do not depend on the ranks."""

import numpy as np
import pytest

from tiny import SERIAL
from volseg.errors import CheckpointError, VolumeError
from volseg.volumes.intensity import (
    QUANTILES,
    ChannelScheme,
    Intensities,
    Normalization,
    is_ct,
    measure_volume,
    occurring_values,
)
from volseg.volumes.tally import Close, Tally


def intensities(values):
    """Of these values, all of them foreground."""
    tally = Tally()
    tally.add(values)
    close = Close(tally.bins_of(QUANTILES))
    close.add(values)
    return Intensities.of(tally, close)


def test_whole_numbers_are_measured_exactly():
    values = np.random.default_rng(0).integers(-1000, 2000, 50_000).astype(np.int16)
    found = intensities(values)
    low, median, high = np.quantile(values, [0.005, 0.5, 0.995], method="inverted_cdf")
    assert (found.percentile_00_5, found.median, found.percentile_99_5) == (low, median, high)
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    clipped = np.clip(values.astype(float), low, high)
    assert found.mean == pytest.approx(clipped.mean(), rel=1e-12)
    assert found.std == pytest.approx(clipped.std(), rel=1e-12)
    assert found.normalization == Normalization(low, high, found.mean, found.std)


WILD = [None, 1e5, 1e9, 3e38, -1e30]


@pytest.mark.parametrize("wild", WILD)
def test_the_foreground_of_real_numbers_is_measured_exactly_whatever_one_voxel_holds(wild):
    values = np.random.default_rng(0).normal(40, 200, 20_000).astype(np.float32)
    if wild is not None:
        values[77] = wild
    found = intensities(values)
    low, median, high = np.quantile(values.astype(float), [0.005, 0.5, 0.995], method="inverted_cdf")
    assert (found.percentile_00_5, found.median, found.percentile_99_5) == (low, median, high)
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    clipped = np.clip(values.astype(float), low, high)
    assert (found.mean, found.std) == (
        pytest.approx(clipped.mean(), rel=1e-12),
        pytest.approx(clipped.std(), rel=1e-12),
    )


def test_one_wild_whole_number_needs_no_second_look():
    values = np.random.default_rng(0).integers(-1000, 1500, 20_000).astype(np.int32)
    values[5] = 2**31 - 1
    tally = Tally()
    tally.add(values)
    assert tally.bins_of(QUANTILES[:-1]) == []
    found = intensities(values)
    assert found.percentile_99_5 == np.quantile(values, 0.995, method="inverted_cdf")


@pytest.mark.parametrize("wild", WILD)
def test_mean_and_deviation_of_a_volume_are_exact(wild):
    values = np.random.default_rng(0).normal(3, 2, 50_000).astype(np.float32)
    if wild is not None:
        values[7] = wild
    found = measure_volume(lambda: [values], SERIAL)
    assert found.mean == pytest.approx(values.astype(float).mean(), rel=1e-12)
    assert found.std == pytest.approx(values.astype(float).std(), rel=1e-12)
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_the_values_that_occur_keep_their_ends_and_their_mean():
    values = np.random.default_rng(0).normal(300, 200, 5_000).astype(np.float32)
    there, counts = occurring_values(lambda: [values], SERIAL)
    assert (there[0], there[-1], counts.sum()) == (values.min(), values.max(), values.size)
    assert (np.diff(there) > 0).all()
    assert (there * counts).sum() / counts.sum() == pytest.approx(values.astype(float).mean(), rel=1e-12)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_the_numbers_do_not_depend_on_the_ranks(communicator, dtype):
    values = np.random.default_rng(1).normal(40, 300, 9_000).astype(dtype)
    part = np.array_split(values, communicator.size)[communicator.rank]
    # One rank with nothing at all, where there are several.
    pieces = [values] if communicator.size == 1 else [part]
    assert measure_volume(lambda: pieces, communicator) == measure_volume(lambda: [values], SERIAL)


@pytest.mark.parallel(2)
def test_a_rank_without_voxels_takes_part(communicator):
    values = np.arange(100, dtype=np.int16)
    own = [values] if communicator.is_root else [values[:0]]
    assert measure_volume(lambda: own, communicator) == measure_volume(lambda: [values], SERIAL)


def test_a_constant_image_stays_finite():
    found = measure_volume(lambda: [np.full(10, 7, np.float32)], SERIAL)
    np.testing.assert_allclose(found.apply(np.full(3, 7.0)), 0, atol=1e-6)


def test_nothing_to_measure_is_refused():
    with pytest.raises(VolumeError, match="no voxel carries a label"):
        Intensities.of(Tally())
    with pytest.raises(VolumeError, match="no voxel to measure"):
        measure_volume(lambda: [np.empty(0, np.int16)], SERIAL)


def test_values_are_clipped_and_scaled():
    rule = Normalization(-100.0, 300.0, 50.0, 100.0)
    np.testing.assert_allclose(rule.apply(np.array([-2000, -100, 50, 300, 3000], np.int16)), [-1.5, -1.5, 0, 2.5, 2.5])
    assert rule.apply(np.zeros(2, np.int64)).dtype == np.float32


def test_ct_is_told_by_its_name():
    assert is_ct("CT")
    assert is_ct(" ct ")
    assert not is_ct("MR")


@pytest.mark.parametrize("fixed", [None, Normalization(-np.inf, np.inf, 1.5, 2.5)])
def test_a_scheme_survives_json(fixed):
    scheme = ChannelScheme("PET", fixed)
    assert ChannelScheme.from_json(scheme.as_json()) == scheme


@pytest.mark.parametrize(
    "value", [None, {}, {"name": "CT"}, {"name": "CT", "fixed": {"low": 1}}, {"name": "CT", "fixed": 3}]
)
def test_a_malformed_scheme_is_named(value):
    with pytest.raises(CheckpointError, match="normalization is malformed"):
        ChannelScheme.from_json(value)
