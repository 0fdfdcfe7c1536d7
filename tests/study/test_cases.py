"""What is run: each part's cases, and that matrices keep to memory and time."""

import time
from dataclasses import replace
from math import prod

import pytest

from volseg.errors import LaunchError
from volseg.planning.profile import built_in_profile
from volseg.study import runs
from volseg.study.cases import PARTS, SEGMENT, TRAIN, Case, Ranges, cases_of, cube, rank_of_need, weak_shape
from volseg.study.extrapolation import foretell
from volseg.study.means import Means, find_means, ranks_up_to
from volseg.study.rows import Row
from volseg.study.runs import Runner, expected, reachable
from volseg.study.study import Wishes, choose_ranges

PROFILE = built_in_profile()
MEANS = Means("a processor", 2, 1, 16 * 2**30, 24 * 2**30)
RANGES = Ranges((48, 72, 96))


def test_the_memory_matrix_is_whole():
    cases = set(cases_of(["memory"], RANGES))
    for side in RANGES.sides:
        for channels in (8, 16):
            for ranks in (1, 2, 4):
                for task, variants in ((TRAIN, ("plain", "checkpoint")), (SEGMENT, ("in-place", "recompute"))):
                    for variant in variants:
                        assert Case(task, cube(side), channels, 3, ranks, variant) in cases


def test_no_case_is_run_twice():
    cases = cases_of(PARTS, RANGES)
    assert len(cases) == len(set(cases)) == len({case.name for case in cases})
    assert len(cases) < sum(len(cases_of([part], RANGES)) for part in PARTS)


def test_checkpointing_is_of_the_levels_that_save_memory():
    plain = Case(TRAIN, cube(96), 16, 3, 1, "plain")
    again = replace(plain, variant="checkpoint")
    assert (plain.training.checkpoint_levels, again.training.checkpoint_levels) == ((), (1, 2, 3))
    assert foretell(again, PROFILE, 1).memory.peak < foretell(plain, PROFILE, 1).memory.peak


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8, 12, 64, 1000])
def test_in_weak_scaling_every_rank_has_one_block(ranks):
    shape = weak_shape(16, ranks)
    assert prod(shape) == ranks * 16**3
    model = foretell(Case(TRAIN, shape, 8, 3, ranks, "plain"), PROFILE, 1)
    assert model.shared == 1
    assert model.imbalance == 0


def test_blocks_of_unequal_size_wait():
    model = foretell(Case(TRAIN, cube(40), 8, 3, 2, "plain"), PROFILE, 2)  # blocks of 16 and 24 planes
    assert model.shared == pytest.approx(20 / 24)
    kinds = model.by_kind()
    assert sum(kinds.values()) + model.imbalance == pytest.approx(model.time.seconds)


def test_quickest_first_and_what_memory_cannot_hold_is_left():
    small = replace(MEANS, memory=2 * 2**30)
    cases, left = reachable(cases_of(PARTS, RANGES), PROFILE, small)
    times = [expected(foretell(case, PROFILE, 2), small) for case in cases]
    assert times == sorted(times)
    assert set(cases) | {one.case for one in left} == set(cases_of(PARTS, RANGES))
    assert left
    assert all("of memory" in one.why for one in left)
    for case in cases:
        assert foretell(case, PROFILE, 2).memory.peak * case.ranks <= small.memory


def test_what_curves_are_drawn_through_comes_first_and_what_goes_beyond_last():
    ranks = {case: rank_of_need(case, RANGES) for case in cases_of(PARTS, RANGES)}
    assert {ranks[case] for case in cases_of(["scaling", "channels"], RANGES)} == {0}
    assert {case for case, rank in ranks.items() if rank == 2} == {
        Case(task, cube(side), 16, 3, 1, variant)
        for side in (144, 192)
        for task, variant in ((TRAIN, "plain"), (SEGMENT, "in-place"))
    }
    assert ranks[Case(TRAIN, cube(48), 8, 3, 2, "checkpoint")] == 1


def test_a_volume_that_ranks_cannot_share_is_left():
    cases, left = reachable([Case(TRAIN, cube(8), 8, 3, 2, "plain")], PROFILE, MEANS)
    assert cases == []
    assert "cannot be split" in left[0].why


def test_more_time_chooses_larger_volumes():
    tops = [
        choose_ranges(Wishes("all", None, minutes=minutes), PROFILE, MEANS, 60 * minutes).sides[-1]  # type: ignore[arg-type]
        for minutes in (1, 20, 120, 1000)
    ]
    assert tops == sorted(tops)
    assert tops[0] < tops[-1]


@pytest.mark.parametrize("minutes", [20, 60])
def test_chosen_volumes_keep_to_the_time(minutes):
    ranges = choose_ranges(Wishes("all", None, minutes=minutes), PROFILE, MEANS, 60 * minutes)  # type: ignore[arg-type]
    matrix = [case for case in cases_of(PARTS, ranges) if max(case.shape) <= ranges.sides[-1]]
    assert sum(expected(foretell(case, PROFILE, 2), MEANS) for case in matrix) <= 60 * minutes
    assert len(ranges.sides) == 3
    assert all(side % 8 == 0 for side in ranges.sides)


def test_what_the_user_gave_is_taken():
    wishes = Wishes("all", None, sides=(16, 24), channels=(4,), ranks=(1, 2), levels=2)  # type: ignore[arg-type]
    ranges = choose_ranges(wishes, PROFILE, MEANS, 1)
    assert (ranges.sides, ranges.channels, ranges.ranks, ranges.levels) == ((16, 24), (4,), (1, 2), 2)
    assert {case.base_channels for case in cases_of(PARTS, ranges)} == {4}


@pytest.mark.parametrize(
    ("environment", "cores", "nodes"),
    [
        ({"SLURM_NTASKS": "64", "SLURM_JOB_NUM_NODES": "4"}, 64, 4),
        ({"PBS_NP": "8"}, 8, 1),
        ({"NSLOTS": "3"}, 3, 1),
    ],
)
def test_a_batch_job_says_how_many_ranks(environment, cores, nodes):
    means = find_means(environment)
    assert (means.cores, means.nodes, means.scheduler) == (cores, nodes, True)
    ranges = choose_ranges(Wishes("scaling", None), PROFILE, replace(means, memory=2**36), 3600)  # type: ignore[arg-type]
    assert max(ranges.ranks) <= cores
    assert ranges.ranks == ranges.more_ranks == ranks_up_to(cores, 0)


def test_a_batch_job_takes_volumes_that_one_rank_cannot_hold():
    means = Means("a processor", 512, 16, 100 * 2**30, 128 * 2**30, scheduler=True)
    ranges = choose_ranges(Wishes("scaling", None), PROFILE, means, 3600)  # type: ignore[arg-type]
    largest = [case for case in cases_of(["scaling"], ranges) if case.shape == cube(ranges.sides[-1])]
    cases, left = reachable(largest, PROFILE, means)
    assert 512 in {case.ranks for case in cases}
    assert 1 in {one.case.ranks for one in left}
    assert all(one.case.ranks < 128 for one in left)


def test_without_a_batch_job_there_is_this_machine():
    means = find_means({})
    assert not means.scheduler
    assert means.nodes == 1
    assert 0 < means.memory < means.installed


def test_what_there_is_no_time_for_is_left_and_said(tmp_path):
    kept = []
    runner = Runner(tmp_path, PROFILE, MEANS, None, time.monotonic() - 1)
    case = Case(TRAIN, cube(16), 4, 2, 1, "plain")
    left = runner.run([case], kept.append)
    assert [one.case for one in left] == [case]
    assert "were left" in left[0].why
    assert kept == []


def test_a_case_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    def fail_twice(folder, *arguments, **more):
        raise LaunchError("the machine is on fire")

    monkeypatch.setattr(runs, "run_volseg", fail_twice)
    kept: list[Row] = []
    runner = Runner(tmp_path, PROFILE, MEANS, None, time.monotonic() + 1000)
    cases = [Case(task, cube(16), 4, 2, 1, variant) for task, variant in ((TRAIN, "plain"), (SEGMENT, "in-place"))]
    assert runner.run(cases, kept.append) == []
    assert [row.case for row in kept] == cases
    assert all(not row.done and row.error == "the machine is on fire" for row in kept)
    assert all(row.planned_seconds and row.memory_ratio is None and row.time_ratio is None for row in kept)
