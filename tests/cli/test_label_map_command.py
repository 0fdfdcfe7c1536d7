"""``--label-map`` of the commands that read labels."""

import json

from typer.testing import CliRunner

from volseg.cli.app import app
from volumes.test_label_map import far_set

run = CliRunner()


def test_check_takes_a_map_and_names_what_it_cannot_use(tmp_path):
    folder = far_set(tmp_path / "far")
    found = run.invoke(app, ["check", str(folder), "--label-map", "liver=5,6", "--label-map", "spleen=9", "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["fingerprint"]["labels"] == {"background": 0, "liver": 1, "spleen": 2}
    wrong = run.invoke(app, ["check", str(folder), "--label-map", "liver=5,7"])
    assert wrong.exit_code == 2
    assert "has no label 7" in wrong.stderr


def test_train_keeps_the_map_and_evaluate_takes_it_from_the_run(tmp_path):
    folder, model = far_set(tmp_path / "far"), tmp_path / "run"
    options = ["--epochs", "1", "--levels", "1", "--base-channels", "4", "--validation", "0"]
    made = run.invoke(app, ["train", str(folder), "-o", str(model), "--label-map", "liver=5,6", *options])
    assert made.exit_code == 0, made.output
    mask, scan = tmp_path / "mask.nii.gz", folder / "imagesTr" / "case_0_0000.nii.gz"
    assert run.invoke(app, ["segment", str(scan), "--model", str(model), "-o", str(mask)]).exit_code == 0
    reference = folder / "labelsTr" / "case_0.nii.gz"
    found = run.invoke(app, ["evaluate", str(mask), str(reference), "--label-map", str(model), "--json"])
    assert found.exit_code == 0, found.output
    assert list(json.loads(found.stdout)["mean"]) == ["1"]
