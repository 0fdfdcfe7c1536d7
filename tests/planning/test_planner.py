"""The grid with the least halo, the fewest ranks that fit, and what the ledger remembers."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from volseg.config import ModelConfig, TrainingConfig
from volseg.errors import ConfigError, PartitionError
from volseg.networks.unet import unet
from volseg.partition.layout import Layout, padded_shape
from volseg.planning.ledger import Ledger
from volseg.planning.memory import segmenting_memory, training_memory
from volseg.planning.planner import (
    choose_grid,
    fewest_ranks,
    grids_of,
    halo_voxels,
    make_plan,
    most_ranks,
    parse_grid,
)  # fmt: skip
from volseg.program.schedule import Schedule
from volseg.sizes import parse_memory

NETWORK = unet(ModelConfig(in_channels=1, classes=3, base_channels=8, levels=2))
sides = st.tuples(*[st.integers(1, 40)] * 3)


def ghosts_counted(layout: Layout) -> int:
    """Voxels outside a block but within one of it and inside the volume; of the block that has most, one by one."""
    most = 0
    for box in layout.blocks():
        outer = 1
        for axis in range(3):
            outer *= min(box.stop[axis] + 1, layout.shape[axis]) - max(box.start[axis] - 1, 0)
        most = max(most, outer - box.size)
    return most


@settings(max_examples=60, deadline=None)
@given(sides, st.integers(1, 12), st.integers(0, 2))
def test_the_chosen_grid_is_the_best_of_all(shape, ranks, levels):
    multiple = 2**levels
    padded = padded_shape(shape, multiple)
    layouts = [
        Layout.even(padded, (z, y, x), multiple)
        for z, y, x in product(range(1, ranks + 1), repeat=3)
        if z * y * x == ranks and all(p * multiple <= n for p, n in zip((z, y, x), padded, strict=True))
    ]
    if not layouts:
        with pytest.raises(PartitionError, match="the largest grid is"):
            choose_grid(shape, ranks, multiple)
        return
    dims = choose_grid(shape, ranks, multiple)
    chosen = Layout.even(padded, dims, multiple)
    balanced = min(prod(layout.largest_block) for layout in layouts) * 17 // 16
    assert prod(chosen.largest_block) <= balanced
    rivals = [layout for layout in layouts if prod(layout.largest_block) <= balanced]
    assert halo_voxels(chosen) == min(map(halo_voxels, rivals))


def test_least_halo_wins_over_a_slightly_smaller_block():
    """400 = 50 pieces of 8 over 4 ranks: blocks of 104 voxels, not 100, but half the halo of a 2x2x1 grid."""
    assert choose_grid((400, 64, 64), 4, 8) == (4, 1, 1)
    assert choose_grid((32, 40, 40), 3, 8) == (1, 3, 1)  # 2 of 5 pieces, where D would give 2 of 4


@settings(max_examples=60, deadline=None)
@given(sides, st.tuples(*[st.integers(1, 4)] * 3))
def test_halo_voxels_bounds_what_any_rank_receives(shape, dims):
    assume(all(p <= n for p, n in zip(dims, shape, strict=True)))
    layout = Layout.even(shape, dims)
    assert halo_voxels(layout) >= ghosts_counted(layout)
    if all(n % p == 0 for n, p in zip(shape, dims, strict=True)):
        assert halo_voxels(layout) == ghosts_counted(layout)


@pytest.mark.parametrize("ranks", [1, 2, 12, 30])
def test_grids_of(ranks):
    found = list(grids_of(ranks))
    assert sorted(found) == [g for g in product(range(1, ranks + 1), repeat=3) if prod(g) == ranks]


def test_a_cube_is_cut_into_cubes_and_a_stack_across_its_slices():
    assert choose_grid((64, 64, 64), 8, 8) == (2, 2, 2)
    assert choose_grid((64, 64, 64), 2, 8) == (2, 1, 1)
    assert choose_grid((384, 64, 64), 4, 8) == (4, 1, 1)


def test_too_many_ranks_names_the_largest_grid_and_a_number_that_works():
    with pytest.raises(PartitionError, match=r"64x32x16 voxels .* 1000 ranks .*largest grid is 8x4x2; 64 ranks would"):
        choose_grid((64, 32, 16), 1000, 8)
    with pytest.raises(PartitionError, match=r"7 ranks in blocks of .*: the largest grid is 2x2x2; 4 ranks"):
        choose_grid((16, 16, 16), 7, 8)
    assert most_ranks((16, 16, 16), 7, 8) == 4


def test_parse_grid():
    assert parse_grid("1x2x3", 6) == (1, 2, 3)
    for text in ("2x2", "0x1x2", "axbxc", "1x2x2 ", "-1x2x2", ""):
        with pytest.raises(PartitionError, match="such as 1x2x2"):
            parse_grid(text, 4)
    with pytest.raises(PartitionError, match="needs 4 ranks, this job has 2: start it with mpirun -n 4"):
        parse_grid("1x2x2", 2)


@pytest.mark.parametrize("task", ["train", "segment"])
@pytest.mark.parametrize("shape", [(32, 32, 32), (13, 40, 22)])
def test_the_fewest_ranks_are_really_fewest(task, shape):
    peaks = {}
    for ranks in range(1, 41):
        try:
            plan = make_plan(shape, NETWORK, ranks, task, TrainingConfig())
        except PartitionError:
            continue
        peaks[ranks] = min((m.peak for s, m in plan.by_schedule.items() if s.in_memory), default=plan.memory.peak)
    margin = 1.03 if task == "segment" else 1
    for peak in sorted(peaks.values()):
        limit = int(peak * margin) + 1
        plan = fewest_ranks(shape, NETWORK, task, TrainingConfig(), limit)
        assert plan is not None
        assert prod(plan.layout.dims) == min(n for n, peak in peaks.items() if peak * margin <= limit)
    assert fewest_ranks(shape, NETWORK, task, TrainingConfig(), 2**20) is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * 2**30), ("24", 24 * 2**30), ("512 MiB", 512 * 2**20), ("1.5g", 3 * 2**29), ("2GB", 2 * 10**9),
     (" 7mb ", 7 * 10**6), ("4g", 2**32), ("4 GiB", 2**32), ("4G", 2**32), ("1TiB", 2**40), ("512K", 2**19),
     ("4096B", 4096)],
)  # fmt: skip
def test_parse_memory(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "1e3", "nan", "4 gigabytes"])
def test_parse_memory_refuses_by_name(text):
    with pytest.raises(ConfigError, match="give an amount such as 24GiB or 512MiB"):
        parse_memory(text)


def test_ledger():
    book = Ledger()
    book.operation = "first"
    book.make("a", 0, 10)
    book.make("b", 1, 5)
    assert (book.total, book.peak, book.peak_at) == (60, 60, "first")
    book.drop("a", "never there")
    book.operation = "second"
    book.make("b", 1, 15)  # made again, the old one goes
    assert (book.total, book.peak) == (60, 60)
    assert book.peak_at == "first", "the peak is where it was first reached"
    book.make("c", 2, 1)
    assert (book.peak, book.peak_at, book.at_peak) == (64, "second", {1: 60, 2: 4})
    book.drop("b", "c")
    assert (book.total, book.peak) == (0, 64)


@pytest.mark.parametrize("task", ["train", "segment"])
def test_more_ranks_need_less_memory_each_and_levels_add_up(task):
    last = None
    for ranks in (1, 2, 4, 8):
        memory = make_plan((256, 256, 256), NETWORK, ranks, task, TrainingConfig()).memory
        assert sum(memory.by_level) == memory.activations
        assert memory.peak_at
        if last is not None:
            assert memory.activations < 0.75 * last
        last = memory.activations


@pytest.mark.parametrize("dims", [(1, 1, 1), (2, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("how", ["train", "train again", *Schedule])
def test_the_parts_of_a_plan_make_up_the_whole(dims, how):
    network = unet(ModelConfig(in_channels=1, classes=3, base_channels=8, levels=3))
    layout = Layout.even((64, 64, 64), dims, network.multiple)
    if how.startswith("train"):
        levels = (1, 2) if "again" in how else ()
        plan = training_memory(network, TrainingConfig(checkpoint_levels=levels), layout)
    else:
        plan = segmenting_memory(network, layout, how)
    assert sum(plan.parts.values()) == plan.peak
    assert all(size >= 0 for size in plan.parts.values())
    if dims == (1, 1, 1):
        assert plan.parts.get("halos", 0) == 0
    elif how in ("train", "train again", Schedule.IN_PLACE):
        assert plan.parts["halos"] > 0
    assert sum(plan.by_level) == plan.activations
    if plan.by_operation:
        assert max(plan.by_operation.values()) <= plan.peak
