"""`volseg info` as a user types it."""

import json

import nibabel as nib
import numpy as np
import pytest

from dicom_files import save, series_datasets, stored_values


@pytest.fixture
def folder(tmp_path):
    mask = np.zeros((4, 5, 6), "u1")
    mask[1, 2, 3] = 9
    nib.save(nib.Nifti1Image(mask, np.diag([1, 2, 3, 1.0])), tmp_path / "mask.nii.gz")
    save(series_datasets(stored_values()), tmp_path / "series")
    return tmp_path


def info(python, folder, *arguments):
    return python(["-m", "volseg", "info", *arguments], cwd=folder)


def test_a_mask(python, folder):
    run = info(python, folder, "mask.nii.gz")
    assert run.returncode == 0, run.stderr
    for words in ("6 x 5 x 4", "3 x 2 x 1", "S, A, R", "uint8", "0 to 9"):
        assert words in run.stdout


def test_json(python, folder):
    facts = json.loads(info(python, folder, "mask.nii.gz", "--json").stdout)
    assert facts["shape"] == [6, 5, 4]
    assert facts["labels"] == {"0": 119, "9": 1}
    facts = json.loads(info(python, folder, "series", "--json", "--header-only").stdout)
    assert (facts["format"], facts["orientation_dhw"], facts["dtype"]) == ("DICOM", "SPL", "int16")
    assert "minimum" not in facts


def test_a_run_folder(python, tmp_path):
    (tmp_path / "config.toml").write_text('[model]\nchannels = [16, 32]\nnorm = "instance"\n')
    run = info(python, tmp_path, ".")
    assert run.returncode == 0, run.stderr
    assert "model.channels" in run.stdout
    (tmp_path / "report.json").write_text('{"loss": 0.25, "epochs": 3}')
    run = info(python, tmp_path, ".", "--json")
    facts = json.loads(run.stdout)
    assert facts["config"]["model"]["norm"] == "instance"
    assert facts["report"] == {"loss": 0.25, "epochs": 3}
    (tmp_path / "report.json").write_text("{")
    run = info(python, tmp_path, ".")
    assert (run.returncode, "report.json: damaged" in run.stderr) == (2, True)


@pytest.mark.parametrize("name", ["nothing.nii", "empty"])
def test_bad_input(python, folder, name):
    (folder / "empty").mkdir()
    run = info(python, folder, name)
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("path", ["mask.nii.gz", "series", "scan.zarr"])
def test_imports_neither_torch_nor_mpi(python, folder, path):
    python(["-m", "volseg", "ingest", "series", "-o", "scan.zarr"], cwd=folder)
    script = (
        "import sys\nfrom volseg.cli.app import run\n"
        f"code = run(['info', {path!r}])\nprint(code, *[n for n in ('torch', 'mpi4py') if n in sys.modules])\n"
    )
    assert python(["-c", script], cwd=folder).stdout.splitlines()[-1] == "0"
