"""What a user may get wrong: exit code 2, one or two lines on standard error, and nothing written."""

import gzip
import json
import os
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tiny import ct_like, listing, newest, save_nifti, tiny_dataset, untrained_run
from volseg.cli.app import run

TRAIN = ["--epochs=1", "--base-channels=4", "--levels=2", "--validation=0", "-q"]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A data set, a run and a scan, made once."""
    folder = tmp_path_factory.mktemp("template")
    tiny_dataset(folder / "ellipsoids")
    untrained_run(folder / "volseg-run")
    save_nifti(folder / "scan.nii", ct_like())
    save_nifti(folder / "scan.nii.gz", ct_like())
    return folder


@pytest.fixture
def here(template, tmp_path, monkeypatch):
    """A fresh copy of it, as the working folder."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(here, capsys):
    """``refused(*arguments)``: the message of a command line that must fail as a user's error and leave no trace."""

    def start(*arguments):
        before = listing(here)
        try:
            code = run([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        check(code, err)
        assert out == ""
        assert listing(here) == before
        return err

    return start


def check(code, err):
    """Exit code 2 and one or two lines after those of the work that had begun, without a traceback."""
    assert code == 2, err
    assert err.count("error: ") == 1, err
    assert 1 <= len(err[err.index("error: ") :].splitlines()) <= 2, err
    assert "Traceback" not in err
    assert "internal" not in err


def test_missing_files(refused):
    assert "none.nii.gz: no such file" in refused("segment", "none.nii.gz")
    assert "none: no such data set folder" in refused("train", "none", *TRAIN)
    assert "none.nii: no such file" in refused("verify-partition", "none.nii")
    assert "none.nii: no such file" in refused("plan-partition", "none.nii")
    assert "none: no such run" in refused("segment", "scan.nii", "--model", "none")
    assert "none.toml: cannot be read" in refused("train", "--config", "none.toml", *TRAIN)
    assert "no config.toml to continue with" in refused("train", "-o", "none", "--continue")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("keep", [0, 100, 0.6])
def test_a_truncated_scan(refused, here, name, keep):
    whole = (here / name).read_bytes()
    (here / name).write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    assert name in refused("segment", name)
    assert name in refused("verify-partition", name)


@pytest.mark.parametrize("part", ["imagesTr/ellipsoids_001_0000", "labelsTr/ellipsoids_001"])
def test_a_truncated_file_of_a_data_set(refused, here, part):
    """Even in the case that would come last."""
    path = here / "ellipsoids" / f"{part}.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])
    err = refused("train", "-o", "new", *TRAIN)
    assert part in err
    assert "truncated" in err or "damaged" in err


def test_a_damaged_gzip(refused, here):
    data = bytearray((here / "scan.nii.gz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (here / "scan.nii.gz").write_bytes(bytes(data))
    assert "scan.nii.gz: damaged" in refused("segment", "scan.nii.gz")


def test_what_is_no_volume(refused, here):
    (here / "empty").mkdir()
    (here / "empty.zarr").mkdir()
    (here / "notes.txt").write_text("hello")
    (here / "text.nii.gz").write_text("hello")
    assert "empty" in refused("segment", "empty")
    assert "empty.zarr" in refused("segment", "empty.zarr")
    assert "of no format that volseg reads" in refused("segment", "notes.txt")
    assert "not a readable NIfTI" in refused("segment", "text.nii.gz")
    assert "a data set folder" in refused("segment", "ellipsoids")
    assert "empty: no dataset.json" in refused("train", "empty", *TRAIN)


@pytest.mark.parametrize(("shape", "what"), [((8, 9), "2-D image (8x9)"), ((8, 9, 7, 3), "4-D image (8x9x7x3)")])
def test_images_of_other_dimensions(refused, here, shape, what):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), here / "scan.nii")
    assert what in refused("segment", "scan.nii")
    assert what in refused("plan-partition", "scan.nii")
    shutil.copy(here / "scan.nii", here / "x.nii")
    target = here / "ellipsoids/imagesTr/ellipsoids_001_0000.nii.gz"
    target.write_bytes(gzip.compress((here / "x.nii").read_bytes()))
    assert what in refused("train", "-o", "new", *TRAIN)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers(refused, here, value):
    array = ct_like().astype(np.float32)
    array[-1, 2, 3] = value
    save_nifti(here / "scan.nii", array)
    assert "1 voxel is NaN or infinite" in refused("segment", "scan.nii", "--save-probabilities")
    assert "D x H x W 12x2x3" in refused("verify-partition", "scan.nii")
    save_nifti(here / "ellipsoids/imagesTr/ellipsoids_001_0000.nii.gz", array)
    assert "ellipsoids_001_0000.nii.gz" in refused("train", "-o", "new", *TRAIN)
    assert "ellipsoids_001_0000.nii.gz" in refused("train", "-o", "new", *TRAIN, "--validation=1")


def test_labels_on_another_grid(refused, here):
    labels = here / "ellipsoids/labelsTr/ellipsoids_001.nii.gz"
    save_nifti(labels, np.zeros((13, 18, 14), np.uint8))
    assert "labels of 13x18x14 voxels (D x H x W), but" in refused("train", "-o", "new", *TRAIN)
    save_nifti(labels, np.zeros((13, 18, 15), np.uint8), np.diag([1, 1, 2.0, 1]))
    assert "but at another place" in refused("train", "-o", "new", *TRAIN)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "holds the label value(s) 3; the labels named are 0 to 2"),
        (255, "holds the label value(s) 255; the labels named are 0 to 2"),
        (0.5, "labels must be whole numbers, it holds 0.5"),
    ],
)
def test_label_values_that_dataset_json_does_not_name(refused, here, value, message):
    array = np.zeros((13, 18, 15), np.float32)
    array[5, 5, 5] = value
    save_nifti(here / "ellipsoids/labelsTr/ellipsoids_001.nii.gz", array)
    assert message in refused("train", "-o", "new", *TRAIN)


def test_a_data_set_without_its_parts(refused, here):
    path = here / "ellipsoids/dataset.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description | {"channel_names": {"0": "CT", "1": "PET"}}))
    assert "ellipsoids_000_0001.nii.gz is missing" in refused("train", "-o", "new", *TRAIN)
    path.write_text(json.dumps(description | {"labels": {"background": 0, "class_1": 1}}))
    assert "label value(s) 2" in refused("train", "-o", "new", *TRAIN)


def test_no_foreground_in_a_ct_data_set(refused, here):
    path = here / "ellipsoids/dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"channel_names": {"0": "CT"}}))
    for label in (here / "ellipsoids/labelsTr").iterdir():
        save_nifti(label, np.zeros((13, 18, 15), np.uint8))
    assert "no voxel carries a label" in refused("train", "-o", "new", *TRAIN)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[model]\nclasses = 5", "model.classes = 5, but the data set has 3"),
        ("[model]\nin_channels = 2", "model.in_channels = 2, but the data set has 1"),
        ("[model]\nlevles = 3", "unknown key model.levles; did you mean levels?"),
        ("[modle]\nlevels = 3", "unknown table [modle]; did you mean model?"),
        ("[model]\nlevels = 3.5", "must be a whole number"),
        ("[model]\nlevels = 40", "outside 0..8"),
        ("[model]\nkernel_size = 4", "use an odd one"),
        ("[model]\nnorm = 'layer'", "not one of instance, group, batch, none"),
        ("[training]\nepochs = 0", "outside 1"),
        ("[training]\nlearning_rate = 'fast'", "must be a number"),
        ("model = 3", "[model] must be a table"),
        ("[model", "is not TOML"),
    ],
)
def test_configurations(refused, here, toml, said):
    (here / "c.toml").write_text(toml)
    assert said in refused("train", "-o", "new", "--config", "c.toml")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs=0"], "training.epochs = 0 is outside"),
        (["--norm=layer"], "not one of"),
        (["--optimizer=adam"], "not one of adamw, sgd"),
        (["--validation=2"], "leaves none to train on"),
        (["--partition=2x2x2"], "--partition 2x2x2 needs 8 ranks, this job has 1"),
        (["--partition=two"], "give auto, or a grid"),
        (["--replicas=2"], "--replicas 2 does not divide this job's 1 rank: start it with mpirun -n 2"),
        (["--accumulate=0"], "training.accumulate = 0 is outside"),
        (["--learning-rate=-1"], "learning_rate"),
        (["--epochs=many"], "--epochs"),
        (["--checkpoint-levels=0,fine"], "give levels with commas, such as 0,1"),
        (["--augment=ful"], "--augment ful: give one of none, light, full"),
        (["--flip=dx"], "--flip dx: give some of the axes d, h and w"),
        (["--crop=64"], "--crop 64: give three sizes"),
        (["--checkpoint-levels=0,9"], "checkpoint_levels = 9 is no level of this U-Net"),
    ],
)
def test_options_of_train(refused, options, said):
    assert said in refused("train", "-o", "new", *options)


def test_run_folders(refused, here, capsys):
    assert "weights.safetensors and is no run of volseg" in refused("train", *TRAIN, "--overwrite")
    assert run(["init-config", "-o", "volseg-run/config.toml"]) == 0
    capsys.readouterr()
    assert "exists already; go on with --continue" in refused("train", *TRAIN)
    (here / "file").touch()
    assert "file: is a file" in refused("train", "-o", "file", *TRAIN)
    assert "is a file" in refused("train", "-o", "file/run", *TRAIN)
    (here / "half").mkdir()
    (here / "half/config.toml").write_text("[model]\nlevels = 2\n")
    assert "nothing in checkpoints/ to continue from" in refused("train", "ellipsoids", "-o", "half", "--continue")
    assert "weights.safetensors: no such file" in refused("segment", "scan.nii", "--model", "half")


def test_an_output_that_exists(refused, here, capsys):
    assert run(["segment", "scan.nii", "--statistics", "--preview", "-q"]) == 0
    capsys.readouterr()
    for extra in ([], ["-o", "scan_mask.nii.gz"], ["--save-probabilities"]):
        assert "scan_mask.nii.gz: exists already" in refused("segment", "scan.nii", *extra)
    (here / "scan_mask.nii.gz").unlink()
    assert "scan_mask_statistics.csv: exists already" in refused("segment", "scan.nii", "--statistics")
    assert "scan_mask_preview.png: exists already" in refused("segment", "scan.nii", "--preview")
    assert "is the scan itself" in refused("segment", "scan.nii", "-o", "scan.nii", "--overwrite")


def test_outputs_that_cannot_be(refused, here, monkeypatch):
    assert "no folder nowhere" in refused("segment", "scan.nii", "-o", "nowhere/m.nii.gz")
    assert "cannot write that format" in refused("segment", "scan.nii", "-o", "m.mgz")
    assert "exists and is a folder" in refused("segment", "scan.nii", "-o", make(here / "d.nii"), "--overwrite")
    assert "is no zarr store" in refused("segment", "scan.nii", "-o", filled(here / "d.zarr"), "--overwrite")
    access = os.access  # the root user may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK and access(path, mode))
    assert "not writable" in refused("segment", "scan.nii")
    assert "is not writable" in refused("train", "-o", "new", *TRAIN)


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def filled(folder: Path) -> Path:
    (make(folder) / "precious.txt").touch()
    return folder


def rewrite(path: Path, **changes):
    """The same tensors with some of the description changed, as a version without checksums would have written it."""
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        card = json.loads(file.metadata()["volseg"])
    del card["checksum"], card["validation_dice"], card["finest_from"], card["network"]
    save_file(tensors, str(path), metadata={"volseg": json.dumps(card | changes)})


def test_damaged_and_foreign_weights(refused, here):
    path = here / "volseg-run/weights.safetensors"
    whole = path.read_bytes()
    for broken in (b"", whole[:5], whole[: len(whole) // 2], whole[:-1], b"\xff" * 200, b"PK\x03\x04" + whole):
        path.write_bytes(broken)
        assert "damaged or no safetensors file" in refused("segment", "scan.nii")
    save_file({"x": torch.zeros(3)}, str(path))
    assert "not written by volseg" in refused("segment", "scan.nii")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 2}, "written with schema 2"),
        ({"schema": "x"}, "written with schema x"),
        ({"labels": {"background": 0}}, "description is malformed"),
        ({"channels": []}, "description is malformed"),
        ({"channels": [{"name": "CT"}]}, "malformed"),
        ({"spacing_mm": [1, 2]}, "description is malformed"),
        ({"config": {"model": {"levels": 2, "colour": 1}}}, "description is malformed"),
        ({"config": {"model": {"levels": 1, "base_channels": 4, "in_channels": 1, "classes": 3}}}, "do not fit"),
    ],
)
def test_weights_with_another_description(refused, here, changes, said):
    rewrite(here / "volseg-run/weights.safetensors", **changes)
    assert said in refused("segment", "scan.nii")


def test_models_of_other_channels_or_classes(refused, here):
    shutil.rmtree(here / "volseg-run")
    untrained_run(here / "volseg-run", channels=("CT", "PET"))
    assert "1 image channel(s), but the model was trained with 2 (CT, PET)" in refused("segment", "scan.nii")
    assert "trained with 2" in refused("verify-partition", "scan.nii")


def test_going_on_from_a_damaged_checkpoint_or_with_other_data(refused, here, capsys):
    assert run(["train", "-o", "old", *TRAIN]) == 0
    capsys.readouterr()
    path = newest(here / "old")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged or no safetensors file" in refused("train", "-o", "old", "--continue", "--epochs=2")
    path.write_bytes(whole)
    assert "state of adamw, not of sgd" in refused("train", "-o", "old", "--continue", "--optimizer=sgd")
    assert "another model: model.base_channels was 4, now 8;" in refused(
        "train", "-o", "old", "--continue", "--base-channels=8"
    )
    description = json.loads((here / "ellipsoids/dataset.json").read_text())
    description["labels"]["class_3"] = 3
    (here / "ellipsoids/dataset.json").write_text(json.dumps(description))
    assert "model.classes = 3, but the data set has 4" in refused("train", "-o", "old", "--continue", "--epochs=2")


def test_a_grid_for_other_ranks(refused):
    for command in ("segment", "verify-partition"):
        assert "needs 8 ranks, this job has 1" in refused(command, "scan.nii", "--partition", "2x2x2")
        assert "give auto, or a grid" in refused(command, "scan.nii", "--partition", "0x1x1")


def test_a_launcher_of_another_mpi(here, python):
    before = listing(here)
    for command in (["segment", "scan.nii"], ["train", "-o", "new"]):
        job = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
        ended = python(["-m", "volseg", *command], cwd=here, env=job)
        check(ended.returncode, ended.stderr)
        assert "started by Open MPI's mpirun, but MPI is MPICH" in ended.stderr
    assert listing(here) == before


@pytest.mark.parametrize(
    ("ranks", "arguments", "said"),
    [
        (2, ["segment", "nan.nii"], "nan.nii: 1 voxel is NaN or infinite"),
        (2, ["segment", "scan.nii", "--partition=2x2x2"], "needs 8 ranks, this job has 2"),
        (3, ["segment", "thin.nii"], "cannot be split over 3 ranks"),
        (2, ["train", "-o", "new", "nan", *TRAIN], "ellipsoids_001_0000.nii.gz: 1 voxel is NaN or infinite"),
        (2, ["train", "-o", "new", "ellipsoids", "--partition=1x2x2", *TRAIN], "needs 4 ranks, this job has 2"),
    ],
)
def test_what_one_rank_alone_can_see_ends_the_job_of_all(here, mpirun, ranks, arguments, said):
    """A NaN lies in the last block only; all ranks stop with one message, and soon."""
    array = ct_like().astype(np.float32)
    array[-1, -1, -1] = np.nan
    save_nifti(here / "nan.nii", array)
    save_nifti(here / "thin.nii", ct_like((4, 4, 8)))
    shutil.copytree(here / "ellipsoids", here / "nan")
    save_nifti(here / "nan/imagesTr/ellipsoids_001_0000.nii.gz", array)
    before, begin = listing(here), time.monotonic()
    ended = mpirun(ranks, ["-m", "volseg", *arguments, "--no-progress"], cwd=here, timeout=60)
    check(ended.returncode, ended.stderr)
    assert said in ended.stderr
    assert listing(here) == before
    assert time.monotonic() - begin < 40


def test_the_plan_names_the_largest_grid(refused):
    err = refused("plan-partition", "--shape=13x18x15", "--ranks=500")
    assert "the largest grid is 2x3x2; 12 ranks would work" in err


def test_files_of_other_formats_that_cannot_be_read(refused, here):
    (here / "cut.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 9 9 9\nencoding: raw\nendian: little\n\n"
    )
    assert "give --voxel-size" in refused("info", "cut.nrrd")
    assert "truncated" in refused("segment", "cut.nrrd", "--voxel-size", "1")
    (here / "a.raw").write_bytes(bytes(10))
    assert "10 bytes, but 1x2x3 voxels of uint8 are 6" in refused(
        "ingest", "a.raw", "-o", "b.nii", "--shape", "1x2x3", "--dtype", "uint8", "--voxel-size", "1"
    )
    assert "--voxel-size is for others" in refused("info", "scan.nii", "--voxel-size", "1")
