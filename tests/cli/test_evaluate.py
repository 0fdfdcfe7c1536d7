"""volseg evaluate, as typed."""

import json
import shutil

import numpy as np
import pytest

from volseg.cli import app
from volseg.distributed.communicator import SerialCommunicator
from volseg.geometry import Box
from volseg.volumes.generation import Recipe, generate_dataset
from volseg.volumes.reading import open_volume
from volseg.volumes.writing import write_volume

RECIPE = Recipe(shape=(12, 14, 16), cases=3, ellipsoids=(3, 3), spacing=(2.0, 1.0, 1.0))


def exit_code(arguments):
    try:
        return app.run(arguments)
    except SystemExit as ending:
        return ending.code


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """References, and predictions that are right but for one case shifted by a voxel."""
    folder = tmp_path_factory.mktemp("evaluate")
    generate_dataset(folder / "data", RECIPE, SerialCommunicator())
    shutil.copytree(folder / "data" / "labelsTr", folder / "pred")
    path = folder / "pred" / "ellipsoids_001.nii.gz"
    volume = open_volume(path)
    shifted = np.roll(volume.read(Box.whole(volume.shape)), 1, axis=2)
    write_volume(
        path,
        volume.space,
        shifted.dtype,
        lambda units: shifted[units[0].box.slices],
        SerialCommunicator(),
        overwrite=True,
    )
    return folder


def test_a_mask_against_itself(made, capsys):
    reference = str(made / "data" / "labelsTr" / "ellipsoids_000.nii.gz")
    assert exit_code(["evaluate", reference, reference, "--no-progress"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("1.0000") == 6  # Dice and IoU of two labels and the mean
    assert "class_1" in shown.out  # by the dataset.json of the set that it belongs to
    assert "1 of 1 masks are compared with themselves" in shown.err


def test_folders_with_names_and_a_summary(made, tmp_path, capsys):
    output = tmp_path / "summary.json"
    command = ["evaluate", str(made / "pred"), str(made / "data" / "labelsTr"), "--no-progress", "-o", str(output)]
    assert exit_code([*command, "--labels", str(made / "data" / "dataset.json")]) == 0
    shown = capsys.readouterr().out
    summary = json.loads(output.read_text())
    assert "class_1" in shown
    assert "mean of 3 cases" in shown
    assert f"{summary['foreground_mean']['Dice']:.4f}" in shown
    assert len(summary["metric_per_case"]) == 3
    assert summary["metric_per_case"][0]["metrics"]["1"]["Dice"] == 1.0
    assert 0.3 < summary["metric_per_case"][1]["metrics"]["1"]["Dice"] < 1.0
    ml = summary["mean"]["1"]["n_ref"] * 0.002
    assert f"{ml:,.2f}" in shown
    assert exit_code(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert exit_code([*command, "--overwrite"]) == 0


def test_an_output_that_cannot_be_is_told_before_any_comparison(made, tmp_path, capsys, monkeypatch):
    from volseg.segmentation import evaluation

    monkeypatch.setattr(evaluation, "compare", lambda *masks: pytest.fail("compared"))
    for output, message in ((tmp_path / "none" / "s.json", "make it first"), (tmp_path, "is a folder")):
        folder = str(made / "pred")
        assert exit_code(["evaluate", folder, folder, "--no-progress", "--overwrite", "-o", str(output)]) == 2
        assert message in capsys.readouterr().err


def test_json_is_the_summary(made, capsys):
    assert exit_code(["evaluate", str(made / "pred"), str(made / "data" / "labelsTr"), "--json", "--no-progress"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert set(summary) == {"foreground_mean", "mean", "metric_per_case"}


def test_labels_that_are_not_named_are_mentioned(made, tmp_path, capsys):
    names = tmp_path / "labels.json"
    names.write_text('{"organ": 1}')
    reference = str(made / "data" / "labelsTr" / "ellipsoids_000.nii.gz")
    assert exit_code(["evaluate", reference, reference, "--labels", str(names), "--no-progress"]) == 0
    captured = capsys.readouterr()
    assert "organ" in captured.out
    assert "left out here: 2" in captured.err


def test_wrong_input_exits_2(made, tmp_path, capsys):
    reference = str(made / "data" / "labelsTr" / "ellipsoids_000.nii.gz")
    other = tmp_path / "other.nii.gz"
    empty = tmp_path / "empty.nii.gz"
    space = open_volume(reference).space
    for path, shape in ((other, (12, 14, 15)), (empty, space.shape)):
        zeros = np.zeros(shape, np.uint8)
        write_volume(
            path,
            type(space)(shape, space.affine),
            zeros.dtype,
            lambda units, zeros=zeros: zeros[units[0].box.slices],
            SerialCommunicator(),
        )
    image = str(made / "data" / "imagesTr" / "ellipsoids_000_0000.nii.gz")
    for arguments, message in (
        ([reference, str(tmp_path / "none.nii.gz")], "no such file"),
        ([reference, str(made / "pred")], "two masks or two folders"),
        ([str(other), reference], "12x14x15"),
        ([image, reference], "Is this an image"),
        ([str(empty), str(empty)], "both masks are empty"),
        ([reference, reference, "--labels", str(tmp_path / "none.json")], "none.json: cannot be read"),
    ):
        assert exit_code(["evaluate", *arguments, "--no-progress"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) <= 2


@pytest.mark.parallel([2])
def test_ranks_share_the_cases(made, capsys):
    """Each rank makes its own copy of the data; the paths rank 0 compares are its own for every case it owns."""
    assert exit_code(["evaluate", str(made / "pred"), str(made / "data" / "labelsTr"), "--json", "--no-progress"]) == 0
    shown = capsys.readouterr().out
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        assert len(json.loads(shown)["metric_per_case"]) == 3
    else:
        assert shown == ""
