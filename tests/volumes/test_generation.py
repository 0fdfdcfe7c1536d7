"""Data sets on disk: the same bytes on any number of ranks, whole or not at all."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from volseg.distributed.communicator import MpiCommunicator, SerialCommunicator
from volseg.errors import ConfigError, VolumeError
from volseg.events import Progress
from volseg.geometry import Box
from volseg.volumes import generation
from volseg.volumes.checks import check_same_grid
from volseg.volumes.dataset import read_dataset
from volseg.volumes.generation import Recipe, generate_dataset
from volseg.volumes.reading import open_volume

SMALL = Recipe(shape=(12, 20, 16), cases=2, seed=7)
MANY_UNITS = Recipe(shape=(9, 300, 260), cases=1, seed=7)  # several planes to a unit, several units to a file


def digest(folder: Path) -> str:
    """One hash of every file's path and bytes."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


@pytest.mark.parametrize("format", ["nifti", "zarr"])
def test_files_hold_the_scenes(tmp_path, format):
    events = []
    generate_dataset(tmp_path / "d", SMALL, SerialCommunicator(), format=format, listen=events.append)
    dataset = read_dataset(tmp_path / "d")
    assert dataset.labels == {"background": 0, "class_1": 1, "class_2": 2}
    assert [case.name for case in dataset.cases] == ["ellipsoids_000", "ellipsoids_001"]
    for number, case in enumerate(dataset.cases):
        image, label = case.images[0].open(), open_volume(case.label)
        check_same_grid(image, label)
        expected = SMALL.scene(number).render(Box.whole(SMALL.shape))
        np.testing.assert_array_equal(image.read(Box.whole(SMALL.shape)), expected[0])
        np.testing.assert_array_equal(label.read(Box.whole(SMALL.shape)), expected[1])
    assert [e.done for e in events if isinstance(e, Progress)] == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("format", ["nifti", "zarr"])
@pytest.mark.parametrize("recipe", [SMALL, MANY_UNITS])
def test_the_same_bytes_on_any_number_of_ranks(tmp_path, format, recipe):
    from mpi4py import MPI

    world = MpiCommunicator(MPI.COMM_WORLD)
    folder = Path(world.broadcast(str(tmp_path)))
    generate_dataset(folder / "many", recipe, world, format=format)
    alone = folder / f"alone{world.rank}"
    if world.is_root:
        generate_dataset(alone, recipe, SerialCommunicator(), format=format)
        assert digest(folder / "many") == digest(alone)
    world.barrier()


def test_an_existing_folder_is_kept_unless_told_otherwise(tmp_path):
    out = tmp_path / "d"
    generate_dataset(out, SMALL, SerialCommunicator())
    before = digest(out)
    other = Recipe(shape=SMALL.shape, cases=1, seed=8)
    with pytest.raises(VolumeError, match="--overwrite"):
        generate_dataset(out, other, SerialCommunicator())
    assert digest(out) == before
    generate_dataset(out, other, SerialCommunicator(), overwrite=True)
    assert len(read_dataset(out).cases) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_overwrite_spares_what_is_no_data_set(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("all of it")
    with pytest.raises(VolumeError, match=r"thesis\.txt, which `volseg generate` did not write"):
        generate_dataset(tmp_path / "home", SMALL, SerialCommunicator(), overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "all of it"


@pytest.mark.parametrize("mine", ["notes.txt", "masks/a.nii.gz", "labelsTr/patient_1.nii.gz", "dataset.json"])
def test_overwrite_spares_what_lies_in_a_data_set_and_others_data_sets(tmp_path, mine):
    out = tmp_path / "d"
    generate_dataset(out, Recipe(shape=SMALL.shape, cases=1), SerialCommunicator())
    (out / mine).parent.mkdir(exist_ok=True)
    (out / mine).write_text('{"channel_names": {"0": "CT"}}')
    before = digest(out)
    with pytest.raises(VolumeError, match="it is left alone"):
        generate_dataset(out, SMALL, SerialCommunicator(), overwrite=True)
    assert digest(out) == before


def test_nothing_is_left_when_it_fails_half_way(tmp_path, monkeypatch):
    written = []
    real = generation.write_volume

    def fail_at_the_third(path, *args, **kwargs):
        written.append(path)
        if len(written) == 3:
            raise VolumeError("disk full")
        real(path, *args, **kwargs)

    monkeypatch.setattr(generation, "write_volume", fail_at_the_third)
    with pytest.raises(VolumeError, match="disk full"):
        generate_dataset(tmp_path / "d", SMALL, SerialCommunicator())
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_recipe_makes_no_file(tmp_path):
    for recipe in (Recipe(cases=0), Recipe(classes=300), Recipe(shape=(1, 8, 8))):
        with pytest.raises(ConfigError):
            generate_dataset(tmp_path / "d", recipe, SerialCommunicator())
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(VolumeError, match="cannot be made"):
        generate_dataset(tmp_path / "file" / "d", SMALL, SerialCommunicator())


@pytest.mark.parametrize("case", range(8))
def test_default_cases_are_worth_learning_from(case):
    """Every default case has foreground enough that a voxel of blur at its rim does not decide its Dice."""
    recipe = Recipe()
    labels = recipe.scene(case).render_labels(Box.whole(recipe.shape))
    counts = np.bincount(labels.ravel(), minlength=3)[1:]
    assert counts[counts > 0].min() > 1000
