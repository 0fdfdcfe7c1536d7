"""Blocks tile the volume exactly, for any shape, grid and depth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.errors import PartitionError
from volseg.geometry import Box
from volseg.partition.layout import Layout, padded_shape, round_up, split
from volseg.partition.window import axis_window, overlap

sides = st.tuples(*[st.integers(1, 40)] * 3)
grids = st.tuples(*[st.integers(1, 5)] * 3)


@settings(max_examples=200, deadline=None)
@given(sides, grids, st.integers(0, 4))
def test_blocks_tile_the_padded_volume(shape, dims, levels):
    multiple = 2**levels
    padded = padded_shape(shape, multiple)
    assert all(0 <= p - n < multiple and p % multiple == 0 for n, p in zip(shape, padded, strict=True))
    if any(p * multiple > n for p, n in zip(dims, padded, strict=True)):
        with pytest.raises(PartitionError, match="largest grid is"):
            Layout.even(padded, dims, multiple)
        return
    layout = Layout.even(padded, dims, multiple)
    covered = np.zeros(padded, dtype=np.int8)
    blocks = list(layout.blocks())
    assert len(blocks) == np.prod(dims)
    for box in blocks:
        assert box.size > 0
        covered[box.slices] += 1
        assert all(v % multiple == 0 for v in (*box.start, *box.stop))
    assert (covered == 1).all()
    for axis in range(3):
        lengths = {box.shape[axis] for box in blocks}
        assert max(lengths) - min(lengths) <= multiple
        assert max(lengths) == layout.largest_block[axis]
    assert layout.coarser(2**levels).shape == tuple(n // multiple for n in padded)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 8))
def test_split_of_any_length(length, parts, multiple):
    if -(-length // multiple) < parts:
        with pytest.raises(PartitionError, match="at most"):
            split(length, parts, multiple)
        return
    cuts = split(length, parts, multiple)
    assert cuts[0] == 0
    assert cuts[-1] == length
    assert len(cuts) == parts + 1
    assert all(b > a for a, b in itertools.pairwise(cuts))
    assert all(b % multiple == 0 for b in cuts[:-1])
    assert max(np.diff(cuts)) <= round_up(round_up(length, multiple) // multiple, parts) // parts * multiple


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 9), st.integers(0, 9))
def test_what_one_rank_sends_another_receives_and_windows_are_complete(length, parts, low, high):
    if length < parts:
        return
    cuts = split(length, parts)
    windows = [(a - low, b + high) for a, b in itertools.pairwise(cuts)]
    plans = [axis_window(cuts, windows, c) for c in range(parts)]
    for c, plan in enumerate(plans):
        inside = overlap(plan.window, (0, length))
        seen = sorted([r for _, r in plan.receives] + [overlap(plan.window, plan.owned)])
        assert seen[0][0] == inside[0]
        assert seen[-1][1] == inside[1]
        assert all(a[1] == b[0] for a, b in itertools.pairwise(seen))
        for other, r in plan.sends:
            assert (c, r) in plans[other].receives


def test_boxes():
    box = Box((0, 2, 4), (4, 6, 8))
    assert box.shape == (4, 4, 4)
    assert box.intersect(Box((2, 0, 6), (9, 9, 9))) == Box((2, 2, 6), (4, 6, 8))
    assert box.intersect(Box((5, 0, 0), (9, 9, 9))).size == 0
    assert box.relative_to(box) == Box((0, 0, 0), (4, 4, 4))
    assert Box.whole((9, 9, 9)).contains(box)
    assert not box.contains(Box.whole((9, 9, 9)))


@given(
    st.tuples(*[st.integers(1, 70)] * 3),
    st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 3),
    st.tuples(*[st.integers(1, 3)] * 3),
)
def test_multiples_of_each_axis(shape, multiple, dims):
    padded = padded_shape(shape, multiple)
    for n, whole, m in zip(shape, padded, multiple, strict=True):
        assert whole == padded_shape((n, n, n), m)[0]
    if any(p * m > n for p, m, n in zip(dims, multiple, padded, strict=True)):
        with pytest.raises(PartitionError, match="is too fine"):
            Layout.even(padded, dims, multiple)
        return
    layout = Layout.even(padded, dims, multiple)
    for cuts, n, p, m in zip(layout.boundaries, padded, dims, multiple, strict=True):
        assert cuts == split(n, p, m)
    small = layout.coarser(multiple)
    assert small.shape == tuple(n // m for n, m in zip(padded, multiple, strict=True))
    assert small.coarser(1) == small


def test_boundaries_that_are_no_multiples_are_refused():
    layout = Layout.even((4, 8, 8), (2, 2, 1), (2, 4, 1))
    with pytest.raises(PartitionError, match=r"boundaries \[0, 2, 4\] on axis D are not multiples of 4"):
        layout.coarser((4, 4, 1))
    with pytest.raises(PartitionError, match="in blocks of multiples of 1x4x4: the largest grid is 4x2x2"):
        Layout.even((4, 8, 8), (1, 4, 1), (1, 4, 4))
