"""The command: what it refuses, and a whole small study that is interrupted and goes on."""

import csv
import json

import pytest

from volseg.cli.app import run
from volseg.planning.profile import built_in_profile, save_profile


@pytest.fixture
def study(capsys, tmp_path):
    """``study(*arguments)``: exit code and what is printed, into a new folder."""

    def start(*arguments):
        code = run(["study", *map(str, arguments), "-o", str(tmp_path / "study")])
        out, err = capsys.readouterr()
        return code, out, err

    return start


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["everything"], "everything"),
        (["--sides=48,many"], "--sides 48,many: give whole numbers"),
        (["--sides=4"], "--sides 4: give 8 (2^levels) to 4096"),
        (["--sides=9000"], "--sides 9000"),
        (["--channels=0"], "--channels 0: give whole numbers"),
        (["--channels=400"], "--channels 400: give 1 to 320"),
        (["--ranks=1,-2"], "--ranks 1,-2: give whole numbers"),
        (["--levels=7"], "--levels 7: give 0 to 6"),
        (["--minutes=0"], "--minutes 0: give more than"),
        (["--minutes=nan"], "--minutes nan: give more than"),
        (["--profile=none.json"], "none.json: cannot be read"),
        (["--launcher=srun"], "write {ranks} where their number goes"),
    ],
)
def test_errors_are_exit_code_2_and_at_most_two_lines(study, arguments, said):
    code, out, err = study(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert 1 <= len(err.splitlines()) <= 2
    assert "Traceback" not in err


def test_a_folder_with_something_in_it_is_left_alone(study, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "mine.txt").write_text("mine")
    code, _, err = study("channels")
    assert code == 2
    assert "--continue" in err
    assert "--overwrite" in err
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["mine.txt"]


def test_a_table_that_is_none_is_refused(study, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "measurements.csv").write_text("a,b\n1,2\n")
    save_profile(built_in_profile(), tmp_path / "study" / "profile.json")
    code, _, err = study("channels", "--continue")
    assert code == 2
    assert "is no table of volseg study" in err


@pytest.mark.parametrize("option", ["--continue", "--overwrite"])
def test_a_folder_that_is_no_study_is_left_alone(study, tmp_path, option):
    for name in ("work/plan.txt", "report.html", "measurements.csv"):
        (tmp_path / "study" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "study" / name).write_text("mine")
    code, _, err = study("channels", option)
    assert code == 2
    assert "is no study of volseg" in err
    assert sum(path.read_text() == "mine" for path in (tmp_path / "study").rglob("*") if path.is_file()) == 3


def test_it_is_refused_on_several_ranks(mpirun, tmp_path):
    ended = mpirun(2, ["-m", "volseg", "study", "-o", tmp_path / "study"])
    assert ended.returncode == 2
    assert ended.stderr.count("run it as an ordinary process") == 1
    assert not (tmp_path / "study").exists()


def test_without_a_profile_the_machine_is_measured_and_without_time_all_is_left_out(study, tmp_path, monkeypatch):
    from volseg.study import calibration

    measured = []

    def measure_settings(launcher, listen):
        measured.append(launcher)
        return [built_in_profile()]

    monkeypatch.setattr(calibration, "measure_settings", measure_settings)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("VOLSEG_PROFILE", raising=False)
    monkeypatch.chdir(tmp_path)
    code, out, err = study("channels", "--sides=16", "--channels=4", "--levels=2", "--minutes=0.7")
    assert code == 1
    assert len(measured) == 1
    assert "0 cases done, 0 failed, 2 left out" in out
    assert "measuring it first" in err
    assert err.count("left out: ") == 2
    names = {
        "measurements.csv",
        "report.html",
        "profile.json",
        "memory_channels.png",
        "planned_measured.png",
        "messages.log",
    }
    assert {path.name for path in (tmp_path / "study").iterdir()} == names
    assert "What was left out" in (tmp_path / "study" / "report.html").read_text()
    code, out, err = study("channels", "--sides=16", "--channels=4", "--levels=2", "--minutes=0.7", "--overwrite")
    assert (code, len(measured)) == (1, 2)  # --overwrite begins anew, the profile included


OPTIONS = ("--sides=16,24", "--channels=4", "--ranks=1,2", "--levels=2", "--minutes=30", "--quiet")


def table(folder):
    with (folder / "measurements.csv").open(newline="") as file:
        return {tuple(row[c] for c in ("task", "shape", "ranks", "variant")): row for row in csv.DictReader(file)}


@pytest.mark.timeout(900)
def test_a_small_study_from_end_to_end_and_on_from_the_middle(python, tmp_path):
    profile, folder = tmp_path / "profile.json", tmp_path / "study"
    save_profile(built_in_profile(), profile)
    command = ["-m", "volseg", "study", "scaling", "-o", folder, "--profile", profile, *OPTIONS]
    ended = python(command, timeout=600)
    assert ended.returncode == 0, ended.stderr
    rows = table(folder)
    assert set(rows) == {
        (task, shape, ranks, variant)
        for task, variant in (("train", "plain"), ("segment", "in-place"))
        for shape, ranks in (("24x24x24", "1"), ("24x24x24", "2"), ("12x12x12", "1"), ("24x12x12", "2"))
    }
    for row in rows.values():
        assert row["state"] == "done", row["error"]
        assert 0.7 < float(row["planned_over_measured_memory"]) < 1.3
        assert int(row["peak_bytes"]) > 2**28
        if row["timed"] == "1":
            assert float(row["seconds"]) > 0
    trained = rows["train", "24x24x24", "2", "plain"]
    if trained["timed"] == "1":
        assert float(trained["seconds_convolution"]) > 0
        assert trained["grid"] == "2x1x1"
        assert 0 < float(trained["load_balance"]) <= 1
    names = {path.name for path in folder.iterdir()} - {"messages.log"}
    assert names == {
        "measurements.csv", "report.html", "profile.json", "memory_ranks.png", "strong_scaling.png", "weak_scaling.png",
        "where_time_goes.png", "planned_measured.png",
    }  # fmt: skip
    assert json.loads((folder / "profile.json").read_text())["machine"] == built_in_profile().machine
    assert "memory, training" in ended.stdout
    assert "8 cases done, 0 failed, 0 left out" in ended.stdout
    assert "24³" in (folder / "report.html").read_text()

    # As if it had been interrupted: one row is missing, one is of a run that failed.
    lines = (folder / "measurements.csv").read_text().splitlines(keepends=True)
    missing = ("segment", "12x12x12", "1", "in-place")
    failed = ("segment", "24x12x12", "2", "in-place")
    kept = [line for line in lines if not line.startswith("segment,12x12x12")]
    kept = [line.replace(",done,", ",failed,") if line.startswith("segment,24x12x12") else line for line in kept]
    (folder / "measurements.csv").write_text("".join(kept))
    assert len(table(folder)) == 7
    ended = python([*command, "--continue"], timeout=600)
    assert ended.returncode == 0, ended.stderr
    again = table(folder)
    assert {key: row for key, row in again.items() if key not in (missing, failed)} == {
        key: row for key, row in rows.items() if key not in (missing, failed)
    }
    assert {again[missing]["state"], again[failed]["state"]} == {"done"}
    assert again[failed]["wall_seconds"] != rows[failed]["wall_seconds"]
