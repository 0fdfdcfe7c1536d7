"""The plan: its table, its JSON, its exit codes, and that it starts neither torch nor MPI."""

import json
from itertools import pairwise

import numpy as np
import pytest

from tiny import ct_like, save_nifti
from volseg.cli.app import run


@pytest.fixture
def plan(capsys):
    """``plan(*arguments)``: exit code and what is printed."""

    def start(*arguments):
        code = run(["plan-partition", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return start


def facts(plan, *arguments):
    code, out, _ = plan(*arguments, "--json")
    return code, json.loads(out)


def test_json_says_everything(plan):
    code, found = facts(plan, "--shape=122x101x112", "--ranks=4")
    assert code == 0
    assert (found["shape"], found["padded_shape"], found["ranks"]) == ([122, 101, 112], [128, 104, 112], 4)
    assert np.prod(found["grid"]) == 4
    for cuts, side, parts in zip(found["boundaries"], found["padded_shape"], found["grid"], strict=True):
        assert (cuts[0], cuts[-1], len(cuts)) == (0, side, parts + 1)
        assert all(cut % 8 == 0 for cut in cuts)
    assert found["halo_bytes_per_forward"] > 0
    assert found["memory_limit_bytes"] is None
    assert found["model"]["levels"] == 3
    assert set(found["tasks"]) == {"train", "segment"}
    for task in found["tasks"].values():
        whole = task["process_bytes"] + task["weights_bytes"] + task["activations_bytes"]
        assert task["peak_bytes_per_rank"] >= 0.99 * whole
        assert sum(task["activations_bytes_by_level"]) == pytest.approx(task["activations_bytes"], rel=0.01)
        assert (task["fits"], task["fewest_ranks"]) == (None, None)
    assert found["tasks"]["train"]["peak_bytes_per_rank"] > found["tasks"]["segment"]["peak_bytes_per_rank"]


def test_more_ranks_need_less_memory_each(plan):
    peaks = [facts(plan, "--shape=256x256x256", f"--ranks={n}")[1]["tasks"]["train"] for n in (1, 2, 4, 8)]
    activations = [task["activations_bytes"] for task in peaks]
    for more, fewer in pairwise(activations):
        assert 0.45 * more < fewer < 0.65 * more


def test_the_fewest_ranks_that_fit(plan):
    code, found = facts(plan, "--shape=256x256x256", "--memory=3GiB", "--for=train")
    assert code == 0
    task = found["tasks"]["train"]
    assert list(found["tasks"]) == ["train"]
    assert task["fits"]
    assert task["fewest_ranks"] == found["ranks"] > 1
    assert np.prod(task["fewest_ranks_grid"]) == task["fewest_ranks"]
    assert task["peak_bytes_per_rank"] <= found["memory_limit_bytes"] == 3 * 2**30
    _, fewer = facts(plan, "--shape=256x256x256", f"--ranks={task['fewest_ranks'] - 1}")
    assert fewer["tasks"]["train"]["peak_bytes_per_rank"] > 3 * 2**30


def test_what_does_not_fit_is_exit_code_1(plan):
    code, found = facts(plan, "--shape=256x256x256", "--memory=3GiB", "--ranks=1", "--for=train")
    assert code == 1
    assert found["tasks"]["train"]["fits"] is False
    code, out, _ = plan("--shape=64x64x64", "--memory=10MiB")
    assert code == 1
    assert "no number of ranks fits" in out


def test_the_table_names_grid_and_memory(plan):
    code, out, err = plan("--shape=64x64x64", "--ranks=4", "--partition=1x2x2")
    assert (code, err) == (0, "")
    assert "1x2x2" in out
    assert "GiB" in out
    for word in ("train", "segment", "level 0", "halo"):
        assert word in out


def test_a_grid_says_how_many_ranks(plan):
    _, found = facts(plan, "--shape=64x64x64", "--partition=1x2x2")
    assert (found["ranks"], found["grid"]) == (4, [1, 2, 2])


def test_a_file_and_a_configuration(plan, tmp_path):
    turned = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    scan = save_nifti(tmp_path / "scan.nii", ct_like((13, 18, 15)), turned)
    (tmp_path / "config.toml").write_text("[model]\nlevels = 2\nbase_channels = 4\n")
    code, found = facts(plan, scan, "--config", tmp_path / "config.toml", "--ranks=2")
    assert code == 0
    assert found["shape"] == [15, 18, 13]  # in canonical order, as ranks see it
    assert found["padded_shape"] == [16, 20, 16]
    assert facts(plan, scan, "--model", tmp_path, "--ranks=2") == (code, found)


@pytest.mark.parametrize("file", [True, False])
def test_neither_torch_nor_mpi_is_imported(python, tmp_path, file):
    """With a file and without, as a table and as JSON."""
    what = str(save_nifti(tmp_path / "scan.nii.gz", ct_like())) if file else "--shape=64x64x64"
    script = (
        "import sys\nfrom volseg.cli.app import run\n"
        f"for end in ([], ['--json'], ['--memory=8GiB']): assert run(['plan-partition', {what!r}, *end]) == 0\n"
        "print('\\n', [name for name in ('torch', 'mpi4py') if name in sys.modules])\n"
    )
    ended = python(["-c", script])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1].strip() == "[]"


def test_checkpointed_levels_need_less_to_train_and_as_much_to_segment(plan):
    before, after = (
        facts(plan, "--shape=96x96x96", "--ranks=2", *more)[1]["tasks"] for more in ([], ["--checkpoint-levels=0,1"])
    )
    assert after["train"]["peak_bytes_per_rank"] < before["train"]["peak_bytes_per_rank"]
    assert after["segment"] == before["segment"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a volume, or its size"),
        (["x.nii", "--shape=8x8x8"], "give a volume, or its size"),
        (["--shape=64x64"], "give three sizes"),
        (["--shape=0x64x64"], "give three sizes"),
        (["--shape=64x64x64", "--ranks=0"], "give at least 1"),
        (["--shape=64x64x64", "--ranks=513"], "the largest grid is 8x8x8; 512 ranks would work"),
        (["--shape=64x64x64", "--ranks=11"], "the largest grid is 8x8x8; 10 ranks would work"),
        (["--shape=64x64x64", "--ranks=4", "--partition=2x1x1"], "needs 2 ranks, this job has 4"),
        (["--shape=64x64x64", "--ranks=16", "--partition=16x1x1"], "the largest grid is 8x8x8"),
        (["--shape=64x64x64", "--partition=2by2"], "give auto, or a grid"),
        (["--shape=64x64x64", "--memory=lots"], "give an amount such as 24GiB"),
        (["--shape=64x64x64", "--memory=0"], "give an amount such as 24GiB"),
        (["--shape=64x64x64", "--for=dream"], "--for"),
        (["--shape=64x64x64", "--checkpoint-levels=top"], "give levels with commas, such as 0,1"),
        (["--shape=64x64x64", "--checkpoint-levels=0,7"], "checkpoint_levels = 7 is no level of this U-Net"),
        (["--shape=64x64x64", "--config=none.toml"], "none.toml: cannot be read"),
        (["--shape=64x64x64", "--model=none"], "none"),
        (["--shape=64x64x64", "--model=a", "--config=b"], "not both"),
        (["none.nii.gz"], "none.nii.gz: no such file"),
    ],
)
def test_errors_are_exit_code_2_and_at_most_two_lines(plan, arguments, said):
    code, out, err = plan(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert 1 <= len(err.splitlines()) <= 2
    assert "Traceback" not in err


def test_coarse_levels_on_fewer_ranks(plan):
    shape = ("--shape=128x128x128", "--ranks=8", "--partition=2x2x2")
    _, plain = facts(plan, *shape)
    code, merged = facts(plan, *shape, "--agglomerate=2:2x1x1,3:1x1x1")
    assert code == 0
    assert (plain["agglomeration"], plain["grids_by_level"]) == ("none", [[2, 2, 2]] * 4)
    assert merged["agglomeration"] == "2:2x1x1,3:1x1x1"
    assert merged["grids_by_level"] == [[2, 2, 2], [2, 2, 2], [2, 1, 1], [1, 1, 1]]
    for task in ("train", "segment"):  # the busiest rank holds more of the coarse levels
        assert merged["tasks"][task]["activations_bytes"] > plain["tasks"][task]["activations_bytes"]
    # Fewer ghosts at the coarse levels, but the blocks themselves travel.
    assert merged["halo_bytes_per_forward"] > plain["halo_bytes_per_forward"]
    code, out, _ = plan(*shape, "--agglomerate=3:1x1x1")
    assert code == 0
    assert "2x2x2, from level 3 on as 1x1x1" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4:1x1x1", "--agglomerate 4:1x1x1: the network has levels 1 to 3"),
        ("2:3x1x1", "3 does not divide the 2 ranks on axis D of 2x2x2"),
        ("fewer", "--agglomerate fewer: give auto, none, or levels"),
    ],
)
def test_an_agglomeration_that_does_not_suit_is_refused(plan, text, message):
    code, _, err = plan("--shape=128x128x128", "--partition=2x2x2", f"--agglomerate={text}")
    assert code == 2
    assert message in err
