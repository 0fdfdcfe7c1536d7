"""The plan: its table, its JSON, its exit codes, and that it starts neither torch nor MPI."""

import json
import re
import shlex
import subprocess
from itertools import pairwise
from math import prod

import numpy as np
import pytest

from nnunet_folders import dataset, plans
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


MACHINES = ("--node-memory=64GiB", "--cores-per-node=8")


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


def test_the_resolutions_of_a_run(plan):
    asked = ("--shape=128x128x128", "--ranks=4", "--for=train", "--multigrid=3", "--cases=10")
    code, found = facts(plan, *asked)
    task = found["tasks"]["train"]
    assert code == 0
    assert [each["shape"] for each in task["resolutions"]] == [[128] * 3, [64] * 3, [32] * 3]
    assert sum(each["steps"] for each in task["resolutions"]) == 40 * 10
    assert task["run_seconds"] == pytest.approx(sum(each["all_seconds"] for each in task["resolutions"]))
    assert task["peak_bytes_per_rank"] == max(each["peak_bytes_per_rank"] for each in task["resolutions"])
    assert task["command"].endswith("--multigrid 3")
    _, out, _ = plan(*asked)
    assert "resolutions of the training run" in out
    assert "all steps together" in out
    assert "of the time of as many steps at the finest resolution" in out
    code, _, err = plan("--shape=64x64x64", "--for=segment", "--multigrid=2")
    assert code == 2
    assert "segmenting has none; leave it out, or use --for train" in err


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
    _, other = facts(plan, scan, "--model", tmp_path, "--ranks=2")
    commands = [task.pop("command") for task in (*found["tasks"].values(), *other["tasks"].values())]
    assert other == found
    assert commands[0] == commands[2]
    assert commands[0].endswith(f"--config {tmp_path / 'config.toml'}")
    assert f"segment {scan} --model RUN" in commands[1]
    assert f"segment {scan} --model {tmp_path}" in commands[3]


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


def test_bfloat16_is_planned_with_half_the_tensors_and_asked_for_in_the_command(plan):
    _, single = facts(plan, "--shape=96x96x96", "--ranks=2")
    _, half = facts(plan, "--shape=96x96x96", "--ranks=2", "--precision=bfloat16")
    assert (single["precision"], half["precision"]) == ("float32", "bfloat16")
    for task in ("train", "segment"):
        before, after = (found["tasks"][task] for found in (single, half))
        assert after["activations_bytes"] < 0.6 * before["activations_bytes"]
        assert "--precision bfloat16" in after["command"]
        assert "--precision" not in before["command"]
    code, _, said = plan("--shape=64x64x64", "--precision=half")
    assert code == 2
    assert "bfloat16" in said


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
        (["--shape=64x64x64", "--ranks=4", "--partition=2x1x1"], "needs 2 ranks; give --ranks 2, or leave it out"),
        (["--shape=64x64x64", "--ranks=8", "--partition=1x1x2", "--replicas=3"], "replicas of 1x1x2 needs 6 ranks"),
        (["--shape=64x64x64", "--ranks=1:8", "--partition=1x1x2"], "leave out either"),
        (["--shape=64x64x64", "--ranks=8", "--replicas=3"], "is no multiple of --replicas 3"),
        (["--shape=64x64x64", "--ranks=1:8", "--replicas=2"], "leave out either"),
        (["--shape=64x64x64", "--replicas=2", "--for=segment"], "segmenting has none"),
        (["--shape=64x64x64", "--partition=1x1x2", "--replicas=0"], "--replicas 0: give at least 1"),
        (["--shape=64x64x64", "--threads=0"], "--threads 0: give at least 1"),
        (["--shape=64x64x64", "--cores-per-node=0"], "--cores-per-node 0: give at least 1"),
        (["--shape=64x64x64", *MACHINES, "--nodes=0"], "--nodes 0: give at least 1"),
        (["--shape=64x64x64", "--node-memory=2GiB", "--cores-per-node=2"], "2.00 GiB are left to the system"),
        (["--shape=64x64x64", "--node-memory=1GiB", "--cores-per-node=2"], "2.00 GiB are left to the system"),
        (["--shape=64x64x64", "--node-memory=8GiB"], "give --node-memory and --cores-per-node"),
        (["--shape=64x64x64", "--cores-per-node=8", "--nodes=2"], "give --node-memory and --cores-per-node"),
        (["--shape=64x64x64", *MACHINES, "--replicas=2"], "--replicas: follows from the machines"),
        (["--shape=64x64x64", *MACHINES, "--threads=1"], "--threads: follows from the machines"),
        (["--shape=64x64x64", *MACHINES, "--memory=1GiB"], "--memory: follows from the machines"),
        (["--shape=64x64x64", *MACHINES, "--ranks=4"], "--ranks: follows from the machines"),
        (["--shape=64x64x64", "--slurm", "--json", "--for=train"], "--slurm and --json"),
        (["--shape=64x64x64", "--slurm"], "say what for"),
        (["--shape=64x64x64", "--plot=scaling.png"], "needs a range of ranks"),
        (["--shape=64x64x64", "--profile=none.json"], "none.json: cannot be read"),
        (["--shape=64x64x64", "--memory=8GiB", "--agglomerate=9:1x1x1"], "the network has levels 1 to 3"),
        (["--shape=64x64x64", "--ranks=4", "--agglomerate=3:3x1x1"], "no other grid of 4 ranks suits it either"),
        (["--shape=64x64x64", "--ranks=7", "--agglomerate=3:1x2x1"], "2 does not divide the 1 ranks on axis H"),
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


def test_grids_that_the_stages_do_not_suit_are_left_out(plan):
    code, found = facts(plan, "--shape=128x128x128", "--partition=2x2x2", "--agglomerate=3:1x1x1", "--memory=64GiB")
    assert (code, found["grid"], found["agglomeration"]) == (0, [2, 2, 2], "3:1x1x1")
    assert found["tasks"]["train"]["fewest_ranks"] is None  # a grid is given: nothing to search
    code, found = facts(plan, "--shape=64x256x256", "--ranks=8", "--agglomerate=3:2x1x1")
    assert code == 0
    assert found["grid"][0] % 2 == 0
    code, found = facts(plan, "--shape=64x256x256", "--memory=1GiB", "--agglomerate=3:3x1x1", "--for=train")
    assert code == 0
    assert found["grid"][0] % 3 == 0
    assert found["tasks"]["train"]["fewest_ranks"] == found["ranks"] == prod(found["grid"])


@pytest.mark.parametrize("more", [[], ["--nodes=2"], ["--nodes=2", "--partition=2x2x2"], ["--nodes=3"]])
def test_machines_have_room_for_their_ranks(plan, more):
    code, found = facts(plan, "--shape=128x128x128", "--node-memory=16GiB", "--cores-per-node=8", *more)
    assert code == 0
    assert found["node"] == {"cores": 8, "memory_bytes": 16 * 2**30}
    for task in found["tasks"].values():
        nodes = task["nodes"]
        assert nodes["nodes"] == int(next(iter(more), "=1").partition("=")[2])
        assert (nodes["nodes"] - 1) * nodes["ranks_per_node"] < task["ranks"]
        assert task["ranks"] <= nodes["nodes"] * nodes["ranks_per_node"]
        assert nodes["ranks_per_node"] * nodes["threads_per_rank"] == 8
        assert nodes["ranks_per_node"] * task["peak_bytes_per_rank"] <= 14 * 2**30
        if "--partition=2x2x2" in more:
            assert task["grid"] == [2, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--shape=64x64x64", *MACHINES, "--nodes=1000"], "--nodes 1000 are more than the 512 blocks"),
        (["--shape=512x512x512", "--node-memory=12GiB", "--cores-per-node=8", "--nodes=1"], "give --nodes"),
        (["--shape=64x64x64", "--node-memory=2.1GiB", "--cores-per-node=2"], "no number of machines of 2.10 GiB"),
        (["--shape=64x64x64", *MACHINES, "--nodes=2", "--partition=1x1x1"], "more than the 1 blocks"),
    ],
)
def test_machines_that_hold_no_run_say_why(plan, arguments, why):
    code, out, err = plan(*arguments, "--for=train")
    assert (code, err) == (1, "")
    assert "none fits" in out
    assert why in out
    assert "memory of a rank" not in out  # nothing of a run that nobody asked for
    code, found = facts(plan, *arguments, "--for=train")
    assert code == 1
    (reason,) = found["tasks"]["train"]["reasons"]
    assert why in reason
    code, out, err = plan(*arguments, "--for=train", "--slurm")
    assert (code, out) == (1, "")
    assert why in err
    assert len(err.splitlines()) == 1


def slurm(plan, *arguments):
    """The script's options by name, the line that starts the ranks in words, and all of it."""
    code, out, err = plan(*arguments, "--slurm")
    assert (code, err) == (0, "")
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", out, re.MULTILINE))
    (command,) = [line for line in out.splitlines() if line.startswith("srun ")]
    return asked, shlex.split(command), out


@pytest.mark.parametrize("task", ["train", "segment"])
@pytest.mark.parametrize("more", [[], ["--nodes=2"], ["--nodes=2", "--partition=2x2x2"]])
def test_the_script_asks_for_the_machines_of_the_plan(plan, task, more):
    arguments = ("--shape=128x128x128", *MACHINES, f"--for={task}", *more)
    _, found = facts(plan, *arguments)
    planned = found["tasks"][task]
    asked, command, _ = slurm(plan, *arguments)
    nodes, each, ranks = (int(asked[name]) for name in ("nodes", "ntasks-per-node", "ntasks"))
    assert (nodes, ranks) == (planned["nodes"]["nodes"], planned["ranks"])
    assert (nodes - 1) * each < ranks <= nodes * each
    assert int(asked["cpus-per-task"]) == planned["nodes"]["threads_per_rank"]
    assert each * int(asked["cpus-per-task"]) <= 8
    assert planned["peak_bytes_per_rank"] * each <= int(asked["mem"][:-1]) * 2**20 <= 64 * 2**30
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=$SLURM_CPUS_PER_TASK", "--cpu-bind=cores"} <= set(command)
    assert command[command.index("--partition") + 1] == "x".join(map(str, planned["grid"]))
    assert command[command.index("--agglomerate") + 1] == planned["agglomeration"]
    assert ("--schedule" in command) == (task == "segment")


SITE = ("--account=lab", "--queue=long", "--time=4h", "--setup=module load mpich", "--launch-options=--bind-to core")
HEADS = {
    "slurm": {"SBATCH --account=lab", "SBATCH --partition=long", "SBATCH --time=04:00:00", "SBATCH --ntasks=4"},
    "pbs": {"PBS -A lab", "PBS -q long", "PBS -l walltime=04:00:00"},
    "lsf": {"BSUB -P lab", "BSUB -q long", "BSUB -W 04:00", "BSUB -n 4"},
}


@pytest.mark.parametrize("system", HEADS)
@pytest.mark.parametrize("task", ["train", "segment"])
def test_each_batch_system_has_a_script_that_a_shell_runs(plan, tmp_path, system, task):
    options = ("--shape=64x64x64", "--ranks=4", f"--for={task}", f"--batch={system}", *SITE)
    code, script, err = plan(*options)
    assert (code, err) == (0, "")
    assert HEADS[system] <= {line.removeprefix("#") for line in script.splitlines()}
    # The programs that it calls, as a cluster would have them.
    inputs = {"DATASET": "my data", "RUN": "run"} if task == "train" else {"SCAN": "a scan.nii", "MASK": "mask.nii"}
    for name in ("srun", "mpirun", "module", "scontrol", "qsub", "brequeue"):
        program = tmp_path / name
        program.write_text('#!/bin/bash\necho "$(basename "$0")" "$@" >> "$LOG"\n[ -z "$STOP" ] || eval "$STOP"\n')
        program.chmod(0o755)
    stop = 'mkdir -p run; echo \'{"stopped": "signal"}\' > run/report.json'
    jobs = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "LSB_JOBID": "7", "PBS_O_WORKDIR": str(tmp_path)}
    environment = {"LOG": str(tmp_path / "log"), "STOP": stop, "PATH": f"{tmp_path}:/usr/bin:/bin"} | inputs | jobs
    arguments = list(inputs.values()) if system == "slurm" else []
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "job.sh", *arguments], cwd=tmp_path, env=environment, check=True, timeout=30)
    called = (tmp_path / "log").read_text().splitlines()
    assert called[0] == "module load mpich"
    assert f"volseg {task} {next(iter(inputs.values()))}" in called[1]
    assert "--bind-to core" in called[1]
    again = {"slurm": "scontrol requeue 7", "pbs": "qsub -v DATASET=my data,RUN=run job.sh", "lsf": "brequeue 7"}
    assert called[2:] == ([again[system]] if task == "train" else [])


def test_without_machines_the_script_asks_for_memory_a_core(plan):
    arguments = ("--shape=256x256x256", "--ranks=4096", "--threads=2", "--for=train")
    _, found = facts(plan, *arguments)
    asked, _, _ = slurm(plan, *arguments)
    assert (asked["ntasks"], asked["cpus-per-task"]) == ("4096", "2")
    assert not {"nodes", "ntasks-per-node", "mem"} & set(asked)
    memory = 2 * int(asked["mem-per-cpu"][:-1]) * 2**20
    assert 1.09 < memory / found["tasks"]["train"]["peak_bytes_per_rank"] < 1.12


def test_the_script_runs_the_network_that_was_planned(plan, tmp_path):
    folder = tmp_path / "my run's"
    folder.mkdir()
    (folder / "config.toml").write_text("[model]\nlevels = 2\n[training]\ncheckpoint_levels = [1]\n")
    shape = ("--shape=64x64x64", "--ranks=2")
    _, command, _ = slurm(plan, *shape, "--for=train", "--config", folder / "config.toml", "--base-channels=8")
    assert command[command.index("--config") + 1] == str(folder / "config.toml")
    assert command[command.index("--base-channels") + 1] == "8"
    assert not {"--levels", "--checkpoint-levels"} & set(command)  # as the file has them
    _, command, _ = slurm(plan, *shape, "--for=train", "--model", folder, "--levels=3", "--checkpoint-levels=")
    assert command[command.index("--config") + 1] == str(folder / "config.toml")
    assert command[command.index("--checkpoint-levels") + 1] == ""
    assert command[command.index("--agglomerate") + 1] == "none"
    _, command, script = slurm(plan, *shape, "--for=segment", "--model", folder)
    assert command[command.index("--model") + 1] == "$MODEL"
    (line,) = [line for line in script.splitlines() if line.startswith("MODEL=")]
    told = subprocess.run(["bash", "-c", f'{line}\necho "$MODEL"'], capture_output=True, text=True, check=True)
    assert told.stdout == f"{folder}\n"


def test_a_plan_that_does_not_fit_has_no_script_and_no_command(plan):
    arguments = ("--shape=256x256x256", "--memory=3GiB", "--ranks=1", "--for=train")
    code, out, err = plan(*arguments, "--slurm")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"error: --slurm: train on 1 .* needs .* GiB a rank, and may use 3.00 GiB; 3 ranks .*\n", err)
    assert facts(plan, *arguments)[1]["tasks"]["train"]["command"] is None
    assert "run it with" not in plan(*arguments)[1]


def test_replicas_multiply_the_ranks(plan):
    shape = ("--shape=256x256x256", "--memory=3GiB")
    _, one = facts(plan, *shape, "--for=train")
    assert not any("replica" in reason for reason in one["tasks"]["train"]["reasons"])  # several would not fit
    code, found = facts(plan, *shape, "--replicas=4", "--for=train")
    assert code == 0
    assert found["ranks"] == 4 * one["ranks"] == 4 * found["tasks"]["train"]["fewest_ranks"]
    assert "--replicas 4" in found["tasks"]["train"]["command"]
    code, out, _ = plan(*shape, "--replicas=4")
    assert code == 0
    assert re.search(rf"ranks +│ {4 * one['ranks']} +│ 1 ", out)  # a column for each task
    _, found = facts(plan, "--shape=64x64x64", "--partition=1x1x2", "--replicas=3", "--for=train")
    assert (found["ranks"], found["grid"], found["tasks"]["train"]["replicas"]) == (6, [1, 1, 2], 3)


def test_a_list_of_ranks_is_no_range(plan):
    for text, ranks in {"2,6": [2, 6], "2:6": [2, 4, 6], "4:4": []}.items():
        _, found = facts(plan, "--shape=64x64x64", f"--ranks={text}", "--for=train")
        assert [run["ranks"] for run in found["tasks"]["train"]["scaling"] or []] == ranks
    _, found = facts(plan, "--shape=64x64x64", "--ranks=1,11", "--for=train")
    assert found["ranks"] == 10
    assert "there is no grid of 11 ranks" in found["tasks"]["train"]["reasons"]


def test_what_fits_only_with_files_fits(plan):
    arguments = ("--shape=512x512x512", "--ranks=1", "--memory=2GiB", "--for=segment")
    code, out, _ = plan(*arguments)
    assert code == 0
    assert "only with files (spill), and its time is without the disk's" in " ".join(out.split())
    assert "does not fit" not in out
    _, found = facts(plan, *arguments)
    task = found["tasks"]["segment"]
    assert (task["fits"], task["fits_in_memory"], task["schedule"]) == (True, False, "spill")
    assert "--schedule spill" in task["command"]
    assert task["fewest_ranks"] > 1  # in memory


@pytest.mark.parametrize("more", [[], ["--threads=2"], ["--cores-per-node=16"], ["--cores-per-node=16", "--threads=4"]])
def test_where_the_ranks_lie_is_said(plan, tmp_path, more):
    from dataclasses import replace

    from volseg.planning.profile import built_in_profile, save_profile

    save_profile(replace(built_in_profile(), machine="other", cores=8), tmp_path / "p.json")
    arguments = ("--shape=128x128x128", "--ranks=64", "--profile", tmp_path / "p.json", *more)
    code, found = facts(plan, *arguments)
    assert code == 0
    assert (found["profile"]["machine"], found["profile"]["cores"]) == ("other", 8)
    assert found["profile"]["between"]["latency"] > 0
    cores = 16 if "--cores-per-node=16" in more else 8
    threads = int(more[-1][-1]) if more and "threads" in more[-1] else 1
    for task in found["tasks"].values():
        assert task["placing"] == {"ranks_per_machine": cores // threads, "threads_per_rank": threads}
        assert task["command"].startswith(f"OMP_NUM_THREADS={threads} mpirun -n 64 volseg ")
    _, out, _ = plan(*arguments)
    assert re.search(rf"ranks a machine, threads of each │ {cores // threads}, {threads} ", out)


def test_networks_without_a_time_say_so(plan, tmp_path):
    (tmp_path / "wide.toml").write_text("[model]\nkernel_size = 9\n")
    arguments = ("--shape=64x64x64", "--config", tmp_path / "wide.toml", "--ranks=1:4")
    code, out, _ = plan(*arguments)
    assert code == 0
    assert "no time, for encoder 0.1 is a convolution of 9x9x9, which was not measured" in " ".join(out.split())
    assert not re.search(r"\d m?s\b|efficiency", out)
    _, found = facts(plan, *arguments)
    for task in found["tasks"].values():
        assert (task["seconds"], task["cases_per_second"], task["seconds_by_kind"]) == (None, None, None)
        assert all(run["seconds"] is run["efficiency"] is None for run in task["scaling"])
        assert task["peak_bytes_per_rank"] > 0
    assert "--schedule" not in found["tasks"]["segment"]["command"]  # segment knows no name for layers
    assert plan(*arguments, "--plot", tmp_path / "a.png")[0] == 2


def test_a_plot_is_drawn(plan, tmp_path):
    code, out, _ = plan("--shape=64x64x64", "--ranks=1:8", "--plot", tmp_path / "scaling.png")
    assert code == 0
    assert "efficiency" in out
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_the_network_follows_the_spacing(plan, tmp_path, monkeypatch):
    """As `train` chooses it, where there are kernels for it; `--anisotropy none` in the file keeps all axes alike."""
    monkeypatch.setattr("volseg.networks.choice.why_not_covered", lambda network: "")
    _, found = facts(plan, "--shape=40x90x90", "--spacing=5x0.8x0.8", "--ranks=2")
    assert found["network"]["strides"] == [[1, 2, 2], [1, 2, 2], [2, 2, 2]]
    assert found["network"]["kernels"] == [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert found["network"]["reason"].startswith("voxels of 5x0.8x0.8 mm, 40x90x90 of them: kernels 1x3x3")
    assert found["padded_shape"] == [40, 96, 96]
    scan = save_nifti(tmp_path / "scan.nii", ct_like((40, 90, 90)), np.diag([0.8, 0.8, 5.0, 1.0]))
    assert facts(plan, scan, "--ranks=2")[1]["network"] == found["network"]
    assert facts(plan, scan, "--ranks=2", "--spacing=1")[1]["network"]["strides"] == [[2, 2, 2]] * 3
    assert facts(plan, "--shape=40x90x90", "--ranks=2")[1]["network"]["reason"] is None
    (tmp_path / "config.toml").write_text('[model]\nanisotropy = "none"\n')
    _, alike = facts(plan, scan, "--ranks=2", "--config", tmp_path / "config.toml")
    assert (alike["network"]["reason"], alike["padded_shape"]) == (None, [40, 96, 96])
    out = " ".join(plan(scan, "--ranks=2")[1].split())
    assert "network: voxels of 5x0.8x0.8 mm, 40x90x90 of them: kernels 1x3x3, 1x3x3" in out


def test_the_network_of_a_run_is_settled(plan, tmp_path):
    (tmp_path / "config.toml").write_text("[model]\nlevels = 2\nstrides = [[1, 2, 2], [2, 2, 2]]\n")
    code, found = facts(plan, "--shape=13x18x15", "--ranks=1", "--model", tmp_path)
    assert (code, found["padded_shape"]) == (0, [14, 20, 16])
    assert found["network"]["strides"] == [[1, 2, 2], [2, 2, 2]]
    assert found["tasks"]["train"]["peak_bytes_per_rank"] > 0
    code, _, err = plan("--shape=13x18x15", "--model", tmp_path, "--spacing=5x1x1")
    assert code == 2
    assert "leave out --spacing, or --model" in err


def test_a_crop_is_planned_with_its_making_and_validation(plan, tmp_path):
    """A step on a crop needs less than one on the whole, and the command asks for it; segmenting sees all."""
    whole, cropped = (facts(plan, "--shape=192x192x192", "--ranks=1", *more)[1] for more in ((), ("--crop=64x64x64",)))
    peaks = [found["tasks"]["train"]["peak_bytes_per_rank"] for found in (whole, cropped)]
    assert peaks[1] < peaks[0] / 2
    assert whole["tasks"]["segment"] == cropped["tasks"]["segment"]
    assert "--crop 64x64x64" in cropped["tasks"]["train"]["command"]
    assert cropped["tasks"]["train"]["seconds"] < whole["tasks"]["train"]["seconds"] / 10
    (tmp_path / "validated.toml").write_text("[data]\ncrop = [64, 64, 64]\n[training]\nvalidation = 1\n")
    _, validated = facts(plan, "--shape=192x192x192", "--ranks=1", "--config", tmp_path / "validated.toml")
    assert validated["tasks"]["train"]["peak_at"].startswith("validation")
    (tmp_path / "turned.toml").write_text("[augmentation]\nrotate = 0.5\nblur = 0.2\n")
    _, turned = facts(plan, "--shape=192x192x192", "--ranks=1", "--config", tmp_path / "turned.toml")
    assert turned["tasks"]["train"]["peak_bytes_per_rank"] >= peaks[0]


def test_the_network_of_a_plan_of_nnunets(plan, tmp_path):
    (tmp_path / "plans.json").write_text(json.dumps(plans(transpose_forward=[1, 0, 2])))
    (tmp_path / "dataset.json").write_text(json.dumps(dataset({"background": 0, "a": 1, "b": 2, "c": 3})))
    asked = ("--shape=64x64x64", "--ranks=2", f"--plans={tmp_path / 'plans.json'}")
    code, shown = facts(plan, *asked)
    assert code == 0
    assert (shown["model"]["classes"], shown["model"]["features"]) == (4, [4, 8, 12])
    assert f"--plans {tmp_path / 'plans.json'}" in shown["tasks"]["train"]["command"]
    assert plan(*asked, "--levels=2")[0] == 2
    code, _, err = plan("--shape=64x64x64", "--configuration=3d_lowres")
    assert (code, "--configuration 3d_lowres: goes with --plans" in err) == (2, True)


def test_the_network_of_a_module(plan, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "def make(in_channels, classes, width=8):\n"
        "    first = nn.Conv3d(in_channels, width, 3, padding=1)\n"
        "    return nn.Sequential(first, nn.ReLU(), nn.Conv3d(width, classes, 1))\n"
    )
    code, shown = facts(
        plan, "--shape=32x32x32", "--ranks=1", f"--network={file}:make", "--network-args=width = 12", "--for=segment"
    )  # fmt: skip
    assert code == 0
    assert shown["model"]["features"] == [12]
    assert shown["tasks"]["segment"]["peak_bytes_per_rank"] > 0
    assert plan("--shape=32x32x32", f"--network={file}:other")[0] == 2
