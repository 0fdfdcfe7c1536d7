"""``volseg check`` as a user types it: what is printed, and the exit code."""

import json

import numpy as np
import pytest

from data_sets import change, cut_short, image, labels, move, nnunet_folder, save
from volseg.cli.app import run


@pytest.fixture
def volseg(tmp_path, monkeypatch, capsys):
    """``volseg(*arguments)``: exit code, standard output and standard error of a command line."""
    monkeypatch.chdir(tmp_path)

    def start(*arguments):
        try:
            code = run([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return start


def test_quiet_prints_the_faults_alone(volseg, tmp_path):
    folder = nnunet_folder(tmp_path / "set")
    assert volseg("check", "set", "-q")[:2] == (0, "")
    change(folder / "labelsTr" / "case_1.nii.gz", lambda a: a * 0)
    code, out, _ = volseg("check", "set", "-q")
    assert (code, out.count("\n")) == (2, 1)
    assert out.startswith("fault: case_1: empty labels")


def plant(folder):
    """Eight faults, one a case."""
    cases = {f"case_{n}": (folder / "imagesTr" / f"case_{n}_0000.nii.gz", folder / "labelsTr" / f"case_{n}.nii.gz")
             for n in range(10)}  # fmt: skip

    def put(array, value):
        array[1, 2, 3] = value
        return array

    cases["case_1"][0].unlink()
    cases["case_2"][1].unlink()
    change(cases["case_3"][1], lambda a: a[1:])
    move(cases["case_4"][0], 5.0)
    change(cases["case_5"][1], lambda a: put(a, 3))
    change(cases["case_6"][0], lambda a: put(a.astype(np.float32), np.nan))
    change(cases["case_7"][1], lambda a: a * 0)
    cut_short(cases["case_8"][0])
    return {
        "case_1": "missing image", "case_2": "missing labels", "case_3": "geometry", "case_4": "geometry",
        "case_5": "outside the list", "case_6": "not finite", "case_7": "empty labels", "case_8": "unreadable",
    }  # fmt: skip


def test_eight_planted_faults_are_all_told_in_one_run(volseg, tmp_path):
    expected = plant(nnunet_folder(tmp_path / "set", cases=10))
    code, out, _ = volseg("check", "set")
    assert code == 2
    lines = [line for line in out.splitlines() if line.startswith("fault: ")]
    assert [tuple(line.split(": ")[1:3]) for line in lines] == list(expected.items())
    assert "set: 10 cases, 8 faults" in out
    assert "3 cases that can be trained on" in out  # one of them on background alone
    code, out, _ = volseg("check", "set", "--json", "--no-progress")
    assert code == 2
    report = json.loads(out)
    assert {fault["case"]: fault["kind"] for fault in report["faults"]} == expected
    assert not report["sound"]
    assert [case["name"] for case in report["fingerprint"]["cases"]] == ["case_0", "case_7", "case_9"]


def test_a_sound_set_ends_with_0(volseg, tmp_path):
    nnunet_folder(tmp_path / "set", channels=("CT", "PET"))
    code, out, _ = volseg("check", "set")
    assert code == 0
    assert "set: 3 cases, no faults" in out
    for shown in ("12 x 10 x 8", "2 x 1 x 1", "spleen", "3 of 3", "PET"):
        assert shown in out


def test_what_is_allowed_is_a_warning(volseg, tmp_path):
    change(nnunet_folder(tmp_path / "set") / "labelsTr" / "case_1.nii.gz", lambda a: a * 0)
    assert volseg("check", "set")[0] == 2
    code, out, _ = volseg("check", "set", "--allow-empty")
    assert code == 0
    assert "warning: case_1: empty labels" in out
    assert "no faults, 1 warning" in out


def test_on_a_terminal_faults_are_a_table(volseg, tmp_path, monkeypatch):
    cut_short(nnunet_folder(tmp_path / "set") / "labelsTr" / "case_1.nii.gz")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, out, _ = volseg("check", "set")
    assert code == 2
    assert "│ case_1 " in out
    assert not [line for line in out.splitlines() if line.startswith("fault:")]


def test_on_two_ranks_it_is_printed_once_and_ends_with_2(tmp_path, mpirun):
    expected = plant(nnunet_folder(tmp_path / "set", cases=10))
    ended = mpirun(2, ["-m", "volseg", "check", "set"], cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout.count("fault: ") == len(expected)


def test_one_scan_and_its_labels(volseg, tmp_path):
    save(tmp_path / "scan.nii.gz", image(0))
    save(tmp_path / "seg.nii.gz", labels(0))
    code, out, err = volseg("check", "scan.nii.gz", "--labels", "seg.nii.gz")
    assert (code, "scan.nii.gz: 1 case, no faults" in out) == (0, True)
    assert "taken for CT; --channels MR says otherwise" in err
    (tmp_path / "names.json").write_text('{"liver": 1}')
    code, out, _ = volseg("check", "scan.nii.gz", "--labels=seg.nii.gz", "--label-names=names.json", "--channels=MR")
    assert code == 2
    assert "outside the list" in out


def test_what_is_no_data_set_is_said(volseg, tmp_path):
    code, _, err = volseg("check", "nowhere")
    assert code == 2
    assert "no such data set folder" in err
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    code, _, err = volseg("check", "scan.nii.gz")
    assert code == 2
    assert "--labels" in err
