"""Stages of an agglomeration: what they mean, what is refused, and that blocks are unions of blocks."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.config import ModelConfig
from volseg.errors import ConfigError, PartitionError
from volseg.geometry import Triple
from volseg.networks.unet import unet
from volseg.partition.agglomeration import (
    NONE,
    Agglomeration,
    gathered_voxels,
    group_boxes,
    leads,
    merged,
    message_floats,
    message_planes,
    parse_agglomeration,
)
from volseg.partition.layout import Layout
from volseg.partition.share import busy_shares, share_of
from volseg.planning.agglomeration_choice import agglomeration_for


def halvings(levels: int) -> tuple[Triple, ...]:
    """The factors of a network that halves all axes."""
    return ModelConfig(levels=levels).factors


TWO_STAGES = Agglomeration(((2, (2, 1, 1)), (3, (1, 1, 1))))


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(0, 5)] * 3),
    st.integers(0, 3),
)  # fmt: skip
def test_unions_of_an_even_layout_s_blocks_are_the_even_layout_of_fewer_ranks(few, size, more, levels):
    dims = tuple(q * f for q, f in zip(few, size, strict=True))
    shape = tuple((p + n) * 2**levels for p, n in zip(dims, more, strict=True))
    layout = Layout.even(shape, dims, 2**levels)
    coarse = merged(layout, few)
    assert coarse == Layout.even(shape, few, 2**levels)
    for coords in product(*(range(n) for n in dims)):
        boxes = group_boxes(layout, coords, size)
        leader = tuple(c // n * n for c, n in zip(coords, size, strict=True))
        whole = coarse.block(tuple(c // n for c, n in zip(coords, size, strict=True)))
        assert boxes[0] == layout.block(leader).relative_to(whole)
        assert sum(box.size for box in boxes) == whole.size
        assert all(whole.relative_to(whole).contains(box) for box in boxes)
        assert leads(coords, size) == (coords == leader)


def test_the_grid_and_the_layout_of_each_level():
    assert [TWO_STAGES.dims_at(level, (4, 2, 1)) for level in range(5)] == [(4, 2, 1), (4, 2, 1), (2, 1, 1),
                                                                          (1, 1, 1), (1, 1, 1)]  # fmt: skip
    layout = Layout.even((32, 16, 8), (4, 2, 1), 8)
    assert TWO_STAGES.layouts(layout, halvings(3))[2].boundaries == ((0, 4, 8), (0, 4), (0, 2))
    assert TWO_STAGES.layouts(layout, halvings(3))[3] == Layout.even((4, 2, 1), (1, 1, 1))
    assert NONE.layouts(layout, halvings(3)) == [layout.coarser(2**level) for level in range(4)]


def test_parse_agglomeration():
    assert parse_agglomeration("2:2x1x1,3:1x1x1", 3, (4, 2, 1)) == TWO_STAGES
    assert parse_agglomeration(str(TWO_STAGES), 3, (4, 2, 1)) == TWO_STAGES
    assert parse_agglomeration("none", 3, (4, 2, 1)) == parse_agglomeration(str(NONE), 3, (1, 1, 1)) == NONE


@pytest.mark.parametrize("text", ["", "3", "3:", "3:2x1", "3:0x1x1", "-1:1x1x1", "3=1x1x1", "3:1x1x1,", "all"])
def test_a_text_that_is_no_agglomeration_is_refused(text):
    with pytest.raises(ConfigError, match=r"give auto, none, or levels .*such as 3:2x1x1,4:1x1x1"):
        parse_agglomeration(text, 4, (4, 1, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:1x1x1", r"0:1x1x1: the network has levels 1 to 3"),
        ("4:1x1x1", r"4:1x1x1: the network has levels 1 to 3"),
        ("2:2x1x1,2:1x1x1", r"2:1x1x1: comes behind level 2; give levels in rising order"),
        ("3:2x1x1,2:1x1x1", r"2:1x1x1: comes behind level 3"),
        ("2:3x1x1", r"2:3x1x1: 3 does not divide the 4 ranks on axis D of 4x2x1"),
        ("2:2x1x1,3:1x2x1", r"3:1x2x1: 2 does not divide the 1 ranks on axis H of 2x1x1"),
        ("2:4x2x2", r"2:4x2x2: 2 does not divide the 1 ranks on axis W"),
        ("2:4x2x1", r"2:4x2x1: is the grid that is there already"),
    ],
)
def test_stages_that_do_not_suit_levels_or_grid_are_refused(text, message):
    with pytest.raises(PartitionError, match=message):
        parse_agglomeration(text, 3, (4, 2, 1))


def test_the_option_for_a_network_and_a_layout():
    model = ModelConfig(in_channels=1, classes=2, levels=3)
    layout = Layout.even((32, 16, 8), (4, 2, 1), 8)
    assert agglomeration_for("none", unet(model), layout) == NONE
    assert agglomeration_for("2:2x1x1,3:1x1x1", unet(model), layout) == TWO_STAGES
    assert agglomeration_for("auto", unet(model), layout).check(3, (4, 2, 1)) is None
    other = ModelConfig(in_channels=1, classes=2, levels=3, kernel_size=9)
    assert agglomeration_for("none", unet(other), layout) == NONE
    with pytest.raises(PartitionError, match=r"as encoder 0.1 is a convolution of 9x9x9; use --agglomerate none"):
        agglomeration_for("3:1x1x1", unet(other), layout)


def test_messages_and_what_a_leader_receives():
    layout = Layout.even((40, 16, 16), (3, 1, 1), 8)  # 8, 16, 16
    assert gathered_voxels(layout, merged(layout, (1, 1, 1))) == 32 * 16 * 16
    assert message_planes(2**18 + 1) == 1
    assert message_floats(layout, 8) == 16 * 16 * 16 * 8
    assert message_floats(layout, 512) == 2 * 16 * 16 * 512


def test_a_rank_s_share():
    layout = Layout.even((40, 16, 8), (4, 2, 1), 8)  # 8, 8, 8, 16 on D
    led = share_of((1, 0, 0), layout, halvings(3), TWO_STAGES)
    assert (led.sides, led.merges, led.last) == (((8, 8, 8), (4, 4, 4)), {2}, 1)
    assert (led.low, led.high) == (((1, 0, 0),) * 2, ((1, 1, 0),) * 2)
    once = share_of((2, 0, 0), layout, halvings(3), TWO_STAGES)
    assert (once.sides[2], once.low[2], once.high[2], once.merges, once.last) == ((6, 4, 2), (1, 0, 0), (0, 0, 0),
                                                                              {2, 3}, 2)  # fmt: skip
    root = share_of((0, 0, 0), layout, halvings(3), TWO_STAGES)
    assert root.sides == ((8, 8, 8), (4, 4, 4), (4, 4, 2), (5, 2, 1))
    assert root.high[2:] == ((1, 0, 0), (0, 0, 0))
    assert root.below(1) == (2, 2, 2)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.sampled_from([1, 2, 4])] * 3), st.tuples(*[st.integers(0, 3)] * 3), st.booleans())
def test_no_rank_surpasses_the_busy_ones(dims, more, halos):
    shape = tuple(8 * (p + n) for p, n in zip(dims, more, strict=True))
    layout = Layout.even(shape, dims, 8)
    halved = tuple(max(1, p // 2) for p in dims)
    stages = [] if prod(dims) == 1 else [(1, halved)] + ([(3, (1, 1, 1))] if prod(halved) > 1 else [])
    agglomeration = Agglomeration(tuple(stages))
    busy = busy_shares(layout, halvings(3), agglomeration, halos=halos)

    def sizes(share, firsts):
        return [[n + a + b for n, a, b in zip(share.sides[level], share.low[level], share.high[level], strict=True)]
                for level in firsts]  # fmt: skip

    for coords in product(*(range(n) for n in dims)):
        share = share_of(coords, layout, halvings(3), agglomeration, halos=halos)
        firsts = [0, *(level for level, _ in stages if level <= share.last)]
        mine = sizes(share, firsts)
        assert any(
            other.last >= share.last
            and all(a >= b for x, y in zip(sizes(other, firsts), mine, strict=True) for a, b in zip(x, y, strict=True))
            for other in busy
        )
    if not stages:
        assert len(busy) == 1
