"""The planner's search: fewest, fastest, replicas, scaling, machines, agglomeration, batch scripts."""

from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path

import pytest

from volseg.config import ModelConfig, TrainingConfig
from volseg.errors import PartitionError
from volseg.networks.unet import unet
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.partition.layout import Layout
from volseg.planning.agglomeration_choice import choose_agglomeration
from volseg.planning.batch_script import Place, batch_script
from volseg.planning.command import Origin
from volseg.planning.explanation import why_chosen, why_fewest, why_no_machines, why_scaling, why_split
from volseg.planning.nodes import SYSTEM, Node, on_nodes
from volseg.planning.operations import Family
from volseg.planning.planner import choose_grid
from volseg.planning.profile import Cost, Network, Profile, Setting
from volseg.planning.search import (
    Question,
    Scaling,
    candidate,
    fastest,
    fewest,
    fits,
    powers_up_to,
    scaling,
    splits,
)
from volseg.planning.time_model import Placing, TimePlan, training_time
from volseg.program.schedule import Schedule

MODEL = ModelConfig(in_channels=1, classes=3, base_channels=16, levels=3)
NETWORK = unet(MODEL)
GIB = 2**30


def machine(latency=1e-6, call=0.0):
    """Each operation takes a nanosecond for 64 products of channels and voxels, and `call` seconds besides."""
    costs = tuple(Cost(family, 8, 8, n**3, call + 1e-9 * n**3) for family in Family for n in (2, 16, 128))
    network = Network(latency, 1e10, latency)
    return Profile("m", 4, 2**36, 1e11, 1e11, (Setting(1, 1, costs),), network, network)


def question(task="train", shape=(128, 128, 128), **more):
    settings = {"profile": machine(), "placing": Placing(64, 1)} | more
    return Question(shape, NETWORK, TrainingConfig(), task, **settings)


@pytest.mark.parametrize("task", ["train", "segment"])
def test_no_fewer_ranks_than_the_fewest_fit(task):
    asked = question(task, limit=int((1.0 if task == "train" else 0.385) * GIB))
    least = fewest(asked)
    assert least.ranks > 1
    assert fits(asked, least)
    assert least.plan.memory.peak <= asked.limit
    for ranks in range(1, least.ranks):
        try:
            assert not fits(asked, fastest(asked, ranks))
        except PartitionError:
            continue


def test_nothing_fits_less_than_the_process():
    assert fewest(question(limit=100 * 2**20)) is None
    assert fewest(question()) is None  # without a limit there is nothing to fit
    assert "no number of ranks fits" in why_fewest(question(limit=100 * 2**20), None)


def test_the_fastest_grid_is_no_slower_than_any_other():
    asked = question(shape=(64, 128, 96))
    best = fastest(asked, 8)
    assert best.ranks == prod(best.dims) == 8
    for dims in [(8, 1, 1), (1, 8, 1), (2, 2, 2), (4, 2, 1)]:
        assert best.seconds <= 1.02 * candidate(asked, dims).seconds


def test_checkpointing_only_where_it_makes_the_run_fit():
    asked = question(shape=(96, 96, 96))
    plain, again = (
        candidate(replace(asked, training=TrainingConfig(checkpoint_levels=levels)), (1, 1, 1)).plan.memory.peak
        for levels in ((), (1, 2, 3))
    )
    assert again < plain
    between = replace(asked, limit=(plain + again) // 2)
    chosen = fastest(between, 1)
    assert chosen.checkpoint_levels == (1, 2, 3)
    assert fits(between, chosen)
    assert "--checkpoint-levels 1,2,3" in why_chosen(between, chosen)
    assert fastest(replace(asked, limit=plain), 1).checkpoint_levels == ()


def test_segmenting_takes_the_schedule_that_fits():
    free = fastest(question("segment"), 1)
    assert free.plan.schedule is Schedule.IN_PLACE
    assert free.checkpoint_levels == ()
    tight = fastest(question("segment", limit=free.plan.memory.peak - 2**24), 1)
    assert tight.plan.schedule is Schedule.RECOMPUTE
    assert tight.seconds > free.seconds


def test_replicas_where_small_blocks_are_slow():
    """A call that takes as long as a block: then half the ranks for each of two cases give more cases a second."""
    asked = question(shape=(32, 32, 32), profile=machine(call=1e-4))
    found = splits(asked, 8)
    assert [c.ranks for c in found] == [8] * len(found)
    assert found[0].replicas > 1
    assert all(a.cases_per_second >= b.cases_per_second for a, b in pairwise(found))
    whole = next(c for c in found if c.replicas == 1)
    assert "times as many cases a second" in why_split(found[0], whole)
    with pytest.raises(PartitionError, match="no multiple of 3 replicas"):
        fastest(asked, 8, replicas=3)


def test_replicas_must_fit_as_well():
    asked = question(limit=int(0.9 * GIB))
    found = splits(asked, 16)
    assert found
    assert all(fits(asked, c) for c in found)
    assert max(c.replicas for c in found) < 16


def test_efficiency_falls_with_small_blocks():
    found = scaling(question(profile=machine(call=1e-5)), powers_up_to(512))
    assert [run.ranks for run in found.runs] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert found.efficiency[0] == 1
    assert found.efficiency[-1] < 0.5 < found.efficiency[2]
    assert all(1.03 * a.seconds > b.seconds for a, b in pairwise(found.runs))
    assert all(a.plan.memory.peak > b.plan.memory.peak for a, b in pairwise(found.runs))
    assert f"it is {found.efficiency[-1]:.0%}" in why_scaling(found)


def test_numbers_of_ranks_without_a_grid_are_left_out():
    found = scaling(question(shape=(16, 16, 16)), [1, 7, 8])
    assert [run.ranks for run in found.runs] == [1, 8]
    with pytest.raises(PartitionError, match="none of these numbers"):
        scaling(question(shape=(16, 16, 16)), [7, 9])


def test_machines_hold_what_their_ranks_need():
    asked = question(shape=(256, 256, 256))
    node = Node(8, 6 * GIB)
    plan = on_nodes(asked, node)
    assert plan.per_node * plan.threads == 8
    assert plan.run.ranks <= plan.nodes * plan.per_node
    assert plan.per_node * plan.run.plan.memory.peak <= node.memory - SYSTEM
    assert on_nodes(asked, node, plan.nodes - 1) is None
    more = on_nodes(asked, node, 2 * plan.nodes)
    assert more.run.seconds < plan.run.seconds
    assert on_nodes(asked, Node(8, GIB)) is None


@pytest.mark.parametrize(("nodes", "found"), [(None, 1), (1, 1), (2, 2), (4, 4), (8, 8), (9, None)])
def test_a_grid_on_machines_has_its_own_ranks(nodes, found):
    """Eight ranks on two machines are four each, of two threads, and never eight on both."""
    plan = on_nodes(question(dims=(2, 2, 2)), Node(8, 64 * GIB), nodes)
    if found is None:
        assert plan is None
        return
    assert (plan.nodes, plan.run.dims, plan.run.ranks) == (found, (2, 2, 2), 8)
    assert plan.per_node * found == 8
    assert plan.threads == found


def test_machines_that_hold_nothing_are_not_searched_through(monkeypatch):
    asked, tried = question(shape=(256, 256, 256)), []
    monkeypatch.setattr("volseg.planning.nodes.fastest", lambda *a: tried.append(a) or fastest(*a))
    assert on_nodes(asked, Node(8, 6 * GIB), 1) is None
    assert not tried


def test_why_no_machines_do():
    asked = question(shape=(256, 256, 256))
    few = on_nodes(asked, Node(8, 6 * GIB)).nodes
    assert f"give --nodes {few} or more" in why_no_machines(asked, Node(8, 6 * GIB), 1)
    assert "give --nodes 32768 or fewer" in why_no_machines(asked, Node(8, 6 * GIB), 10**5)
    assert "2.00 GiB of each are its system's" in why_no_machines(asked, Node(8, 2 * GIB + 2**20), None)


def test_a_script_asks_for_no_more_than_a_machine_has():
    run = candidate(question(), (2, 2, 2))
    peak = run.plan.memory.peak
    for memory, asked in {9 * peak: 8.8 * peak, int(8.5 * peak): 8.5 * peak}.items():
        script = batch_script("train", run, Place(1, 1, 8, memory))
        (line,) = [line for line in script.splitlines() if line.startswith("#SBATCH --mem=")]
        assert asked / 2**20 - 1 <= int(line[14:-1]) <= asked / 2**20


def test_the_grid_of_the_run_unless_another_is_clearly_faster():
    for shape, ranks in {(128, 128, 128): 8, (64, 256, 256): 4, (96, 128, 160): 6, (64, 64, 256): 12}.items():
        asked = question(shape=shape)
        chosen, run = choose_grid(shape, ranks, MODEL.multiple), fastest(asked, ranks)
        faster = candidate(asked, chosen).seconds / run.seconds
        assert run.dims == chosen or faster > 1.03


def test_grids_that_the_stages_do_not_suit_are_passed_over():
    asked = question(shape=(64, 128, 128), agglomerate="3:3x1x1", limit=GIB)
    assert fastest(asked, 12).dims[0] % 3 == 0
    assert fewest(asked).dims[0] % 3 == 0
    with pytest.raises(PartitionError, match="3 does not divide"):
        fastest(asked, 8)
    with pytest.raises(PartitionError, match="levels 1 to 3"):
        fewest(replace(asked, agglomerate="4:1x1x1"))
    assert fewest(replace(asked, dims=(3, 1, 1))) is None


def test_what_is_agglomerated_unasked_fits():
    """Where leaders of groups would hold more than the limit, groups are left out."""
    free = question(shape=(64, 64, 64), profile=machine(5e-3), agglomerate="auto")
    merged, plain = candidate(free, (4, 4, 4)), candidate(replace(free, agglomerate="none"), (4, 4, 4))
    assert merged.plan.memory.peak > plain.plan.memory.peak
    tight = replace(free, limit=(merged.plan.memory.peak + plain.plan.memory.peak) // 2)
    run = candidate(tight, (4, 4, 4))
    assert fits(tight, run)
    assert not run.plan.agglomeration.stages
    assert fits(tight, fewest(tight))


def test_a_run_that_fits_with_files_is_better_than_none():
    peaks = candidate(question("segment"), (1, 1, 1)).plan.by_schedule
    asked = question("segment", limit=int(1.1 * peaks[Schedule.SPILL].peak))
    assert not fits(asked, candidate(asked, (1, 1, 1)))
    run = fastest(asked, 1)
    assert run.plan.schedule is Schedule.SPILL
    assert fits(asked, run, files=True)
    assert "only with files (spill)" in why_chosen(asked, run)
    assert "does not fit" not in why_chosen(asked, run)
    assert fits(asked, fewest(asked))


def test_scaling_ends_before_the_first_dip():
    runs = scaling(question(), [1, 2, 4, 8]).runs
    slow = tuple(replace(r, time=TimePlan({("", "other"): s})) for r, s in zip(runs, (8, 4, 5, 1), strict=True))
    assert why_scaling(Scaling(slow)).startswith("up to 2 ranks at least 50%")


def test_agglomeration_where_messages_take_long():
    layout = Layout.even((64, 64, 64), (4, 4, 4), MODEL.multiple)

    def times(latency):
        def time_of(stages):
            layouts = stages.layouts(layout, MODEL.factors)
            return training_time(NETWORK, TrainingConfig(), layouts, machine(latency), Placing(64, 1))

        return time_of

    slow = times(5e-3)
    chosen = choose_agglomeration(NETWORK, layout, slow)
    assert chosen.stages
    chosen.check(MODEL.levels, layout.dims)
    assert slow(chosen).seconds < 0.98 * slow(NONE).seconds
    assert choose_agglomeration(NETWORK, layout, times(1e-9)) == NONE
    others = [Agglomeration(((level, (1, 1, 1)),)) for level in range(1, MODEL.levels + 1)]
    assert slow(chosen).seconds <= 1.02 * min(slow(one).seconds for one in others)


def test_networks_that_are_not_fused_are_not_agglomerated():
    model = replace(MODEL, kernel_size=5)
    layout = Layout.even((64, 64, 64), (2, 1, 1), model.multiple)
    assert choose_agglomeration(unet(model), layout, lambda stages: TimePlan({("", "halo"): 1.0})) == NONE


def test_the_planner_agglomerates_as_asked():
    asked = question(shape=(64, 64, 64), profile=machine(5e-3), agglomerate="auto")
    run = candidate(asked, (4, 4, 4))
    assert run.plan.agglomeration.stages
    assert run.seconds < candidate(replace(asked, agglomerate="none"), (4, 4, 4)).seconds
    named = candidate(replace(asked, agglomerate="3:1x1x1"), (4, 4, 4))
    assert str(named.plan.agglomeration) == "3:1x1x1"


def test_a_batch_script_asks_for_what_was_planned():
    run = candidate(question(agglomerate="2:1x1x1"), (2, 2, 2), replicas=2)
    script = batch_script("train", run, Place(4, 2, 8, 64 * GIB), Origin(Path("unet.toml")))
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks=16", "#SBATCH --ntasks-per-node=8"} <= set(lines)
    assert {"#SBATCH --cpus-per-task=4", "export OMP_NUM_THREADS=4"} <= set(lines)
    (memory,) = [int(line[14:-1]) for line in lines if line.startswith("#SBATCH --mem=")]
    assert 1.0 < memory * 2**20 / (8 * run.plan.memory.peak) < 1.2
    (command,) = [line for line in lines if line.startswith("srun ")]
    assert command.startswith("srun --cpus-per-task=$SLURM_CPUS_PER_TASK --cpu-bind=cores volseg train ")
    for option in ("--partition 2x2x2", "--replicas 2", "--agglomerate 2:1x1x1", "--config unet.toml"):
        assert option in command
