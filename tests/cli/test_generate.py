"""volseg generate, as typed."""

import pytest

from volseg.cli import app
from volseg.volumes.dataset import read_dataset

SMALL = ["--shape", "8x12x10", "--cases", "2", "--quiet", "--no-progress"]


def exit_code(arguments):
    try:
        return app.run(arguments)
    except SystemExit as ending:
        return ending.code


def test_default_folder_and_shape_in_array_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exit_code(["generate", *SMALL]) == 0
    dataset = read_dataset("ellipsoids")
    assert len(dataset.cases) == 2
    assert dataset.cases[0].images[0].open().shape == (8, 12, 10)
    assert capsys.readouterr() == ("", "")


def test_options_reach_the_data_set(tmp_path):
    out = str(tmp_path / "d")
    assert exit_code(["generate", out, *SMALL, "--classes", "4", "--ellipsoids", "5", "--format", "zarr"]) == 0
    dataset = read_dataset(out)
    assert dataset.file_ending == ".zarr"
    assert list(dataset.labels.values()) == [0, 1, 2, 3, 4]


def test_it_says_what_it_made(tmp_path, capsys):
    assert exit_code(["generate", str(tmp_path / "d"), "--shape", "8x12x10", "--cases", "1"]) == 0
    assert "1 case of 8x12x10 voxels, 2 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "64x64"], "--shape 64x64: give three sizes"),
        (["--shape", "2x64x64"], "at least 4 voxels"),
        (["--ellipsoids", "a:b"], "--ellipsoids a:b"),
        (["--ellipsoids", "4:2"], "FEWEST:MOST"),
        (["--classes", "0"], "classes 0"),
        (["--cases", "0"], "cases 0"),
        (["--noise", "-1"], "noise"),
        (["--format", "dicom"], "dicom"),
    ],
)
def test_wrong_options_exit_2_and_write_nothing(tmp_path, capsys, options, message):
    assert exit_code(["generate", str(tmp_path / "d"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_exits_2_without_overwrite(tmp_path, capsys):
    out = str(tmp_path / "d")
    assert exit_code(["generate", out, *SMALL]) == 0
    assert exit_code(["generate", out, *SMALL]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert exit_code(["generate", out, *SMALL, "--overwrite"]) == 0
