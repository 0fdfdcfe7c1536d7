"""Normalisation: nnU-Net's two schemes, from histograms that do not depend on the ranks."""

import numpy as np
import pytest

from tiny import SERIAL
from volseg.errors import CheckpointError, VolumeError
from volseg.volumes.intensity import (
    ChannelScheme,
    Intensities,
    Normalization,
    histogram_between,
    is_ct,
    measure_volume,
)


def counted(values):
    """All values in one histogram."""
    histogram = histogram_between(float(values.min()), float(values.max()), whole=values.dtype.kind == "i")
    histogram.add(values)
    return histogram


def test_whole_numbers_are_measured_exactly():
    values = np.random.default_rng(0).integers(-1000, 2000, 50_000).astype(np.int16)
    found = Intensities.of(counted(values))
    low, median, high = np.quantile(values, [0.005, 0.5, 0.995], method="inverted_cdf")
    assert (found.percentile_00_5, found.median, found.percentile_99_5) == (low, median, high)
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    clipped = np.clip(values.astype(float), low, high)
    assert found.mean == pytest.approx(clipped.mean(), rel=1e-12)
    assert found.std == pytest.approx(clipped.std(), rel=1e-12)
    assert found.normalization == Normalization(low, high, found.mean, found.std)


def test_the_foreground_of_real_numbers_is_measured_to_a_bin():
    values = np.random.default_rng(0).normal(3, 2, 50_000).astype(np.float32)
    found, width = Intensities.of(counted(values)), float(np.ptp(values)) / 65535
    expected = np.quantile(values, [0, 0.005, 0.5, 0.995, 1], method="inverted_cdf")
    measured = (found.minimum, found.percentile_00_5, found.median, found.percentile_99_5, found.maximum)
    np.testing.assert_allclose(measured, expected, atol=width)


def test_real_numbers_are_measured_to_a_bin():
    values = np.random.default_rng(0).normal(3, 2, 50_000).astype(np.float32)
    found = measure_volume(lambda: [values], SERIAL)
    width = float(np.ptp(values)) / 65535
    assert found.mean == pytest.approx(values.astype(float).mean(), abs=width)
    assert found.std == pytest.approx(values.astype(float).std(), abs=width)
    assert (found.low, found.high) == (-np.inf, np.inf)


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
        Intensities.of(histogram_between(0.0, 1.0, whole=True))
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
