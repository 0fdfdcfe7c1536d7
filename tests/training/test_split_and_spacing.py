"""Who is trained on and who is held out: folds, nnU-Net's splits, and what a run remembers of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_sets import change, image, labels, nnunet_folder, save
from tiny import MODEL, SERIAL, listing
from volseg.config import Config, DataConfig, TrainingConfig
from volseg.errors import CheckpointError, ConfigError, VolumeError
from volseg.events import Caution, Message, Progress
from volseg.training.cases import SPLIT, Split, check_same_split, split_cases, write_split
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.training.preparing import prepare
from volseg.volumes.dataset import Case, Dataset, read_dataset
from volseg.volumes.fingerprint import FINGERPRINT, read_fingerprint

MODEL = replace(MODEL, anisotropy="none")
SHALLOW = replace(MODEL, levels=1)


def dataset_of(folder, names):
    return Dataset(Path(folder), ("CT",), {"background": 0, "a": 1}, ".nii", tuple(Case(n, (), None) for n in names))


def names(split: Split):
    return [case.name for case in split.training], [case.name for case in split.validation]


def config(**training):
    return TrainingConfig(**training)


TEN = [f"case_{n}" for n in range(10)]


def test_folds_hold_out_every_case_once_and_follow_from_the_seed(tmp_path):
    dataset = dataset_of(tmp_path, TEN)
    splits = [split_cases(dataset, config(folds=3, fold=fold)) for fold in range(3)]
    assert sorted(name for split in splits for name in names(split)[1]) == TEN
    for split in splits:
        training, validation = names(split)
        assert sorted(training + validation) == TEN
        assert len(validation) in (3, 4)
    assert split_cases(dataset, config(folds=3, fold=1)) == splits[1]
    assert split_cases(dataset, config(folds=3, fold=1, seed=1)) != splits[1]
    assert splits[1].described == " (fold 1 of 3)"


def test_without_folds_as_many_as_asked_for_are_held_out(tmp_path):
    dataset = dataset_of(tmp_path, TEN)
    assert len(split_cases(dataset, config()).validation) == 1  # one in eight
    assert len(split_cases(dataset, config(validation=4)).validation) == 4
    assert split_cases(dataset, config(validation=0)).validation == ()
    with pytest.raises(VolumeError, match="leaves none to train on"):
        split_cases(dataset, config(validation=10))


def test_more_folds_than_cases_are_refused(tmp_path):
    with pytest.raises(VolumeError, match="folds = 11, but there are 10 cases"):
        split_cases(dataset_of(tmp_path, TEN), config(folds=11))


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (5, -1), (5, 1000)])
def test_folds_that_cannot_be_are_refused(folds, fold):
    with pytest.raises(ConfigError, match=r"training\.fold"):
        config(folds=folds, fold=fold).check()


@pytest.mark.parametrize(
    ("folds", "fold", "message"), [(5, 5, r"there are 5 folds.*--fold 0 to 4"), (0, 1, "training.folds = 0.*--folds 5")]
)
def test_a_fold_that_is_not_there_is_refused(tmp_path, folds, fold, message):
    config(folds=folds, fold=fold).check()
    with pytest.raises(ConfigError, match=rf"training\.fold = {fold}.*{message}"):
        split_cases(dataset_of(tmp_path, TEN), config(folds=folds, fold=fold))


def test_a_file_may_have_more_folds_than_are_asked_for(tmp_path):
    splits = [{"train": [f"case_{n}"], "val": [f"case_{n + 1}"]} for n in range(8)]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    wanted = config(folds=5, fold=6)
    wanted.check()
    assert names(split_cases(dataset_of(tmp_path, TEN), wanted)) == (["case_6"], ["case_7"])


def test_nnunets_splits_are_honoured_where_folds_are_asked_for(tmp_path):
    dataset = dataset_of(tmp_path, TEN)
    splits = [{"train": ["case_3", "case_1"], "val": ["case_2"]}, {"train": ["case_2"], "val": ["case_1", "case_3"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    split = split_cases(dataset, config(folds=5, fold=1))
    assert names(split) == (["case_2"], ["case_1", "case_3"])
    assert "(fold 1 of 2 in " in split.described
    assert names(split_cases(dataset, config(folds=5)))[0] == ["case_1", "case_3"]
    assert len(split_cases(dataset, config()).training) == 9  # nobody asked for folds
    with pytest.raises(ConfigError, match=r"training.fold = 2, but .*splits_final.json has 2.*--fold below 2"):
        split_cases(dataset, config(folds=5, fold=2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no list of"),
        ("[1]", "no list of"),
        ('[{"train": ["case_1"], "val": ["other"]}]', r"names 1 cases that are not in .*, such as other"),
        ('[{"train": ["case_1"], "val": ["case_1"]}]', "case case_1 both to train on and to validate with"),
        ('[{"train": [], "val": ["case_1"]}]', "no case to train on"),
    ],
)
def test_splits_of_another_set_are_refused(tmp_path, content, message):
    (tmp_path / "splits_final.json").write_text(content)
    with pytest.raises(VolumeError, match=message):
        split_cases(dataset_of(tmp_path, TEN), config(folds=5))


def job(folder, proceed=False, epochs=1, run="run", **training):
    return TrainingJob(
        folder, folder.parent / run, Config(SHALLOW, TrainingConfig(epochs=epochs, **training)), proceed=proceed
    )


@pytest.fixture
def folder(tmp_path):
    return nnunet_folder(tmp_path / "set", cases=4)


def test_a_run_keeps_its_split_and_goes_on_with_no_other(folder):
    run, events = folder.parent / "run", []
    train(job(folder, folds=2, fold=1), SERIAL, events.append)
    assert any(isinstance(event, Message) and "2 held out (fold 1 of 2)" in event.text for event in events)
    kept = json.loads((run / SPLIT).read_text())
    assert kept == split_cases(read_dataset(folder), config(folds=2, fold=1)).as_json()
    with pytest.raises(CheckpointError, match=r"training.fold 1, but .* give 0"):
        train(job(folder, True, 2, folds=2, fold=0), SERIAL)
    (folder / "splits_final.json").write_text(json.dumps([{"train": [], "val": []}, {"train": ["case_0"], "val": []}]))
    with pytest.raises(CheckpointError, match=r"other cases than there are now \(missing: case_\d, "):
        train(job(folder, True, 2, folds=2, fold=1), SERIAL)


def test_the_fingerprint_is_made_once_and_used_again(folder, monkeypatch):
    def read_cases(proceed, epochs):
        events = []
        train(job(folder, proceed, epochs, validation=1), SERIAL, events.append)
        return sum(isinstance(event, Progress) and event.task == "check" for event in events)

    run = folder.parent / "run"
    assert read_cases(False, 1) == 4
    made = (run / FINGERPRINT).read_bytes()
    assert read_cases(True, 2) == 0
    assert (run / FINGERPRINT).read_bytes() == made
    (run / FINGERPRINT).unlink()  # as in a run of an older version
    assert read_cases(True, 3) == 4
    assert (run / FINGERPRINT).read_bytes() == made
    fingerprint = read_fingerprint(run)
    assert fingerprint is not None
    from volseg.models.stored import load_model

    assert load_model(run)[1].schemes == fingerprint.schemes()


def test_a_run_goes_on_with_the_same_files_alone(folder):
    train(job(folder, validation=1), SERIAL)
    moved = folder.rename(folder.with_name("moved"))
    train(job(moved, True, 2, validation=1), SERIAL)
    change(moved / "labelsTr" / "case_1.nii.gz", lambda a: a[::-1])
    change(moved / "imagesTr" / "case_1_0000.nii.gz", lambda a: a + 1)
    change(moved / "imagesTr" / "case_2_0000.nii.gz", lambda a: a + 1)
    before = listing(folder.parent / "run")
    with pytest.raises(CheckpointError, match=r"of case_1 \(image and labels\), case_2 \(image\) are not those"):
        train(job(moved, True, 3, validation=1), SERIAL)
    assert listing(folder.parent / "run") == before


def test_validation_beside_folds_is_said_not_to_be_used(folder):
    events = []
    train(job(folder, folds=2, fold=1, validation=2), SERIAL, events.append)
    assert any("training.validation = 2 is not used" in e.text for e in events if isinstance(e, Caution))
    report = json.loads((folder.parent / "run" / "report.json").read_text())
    kept = json.loads((folder.parent / "run" / SPLIT).read_text())
    assert report["cases"] == {"training": kept["train"], "held_out": kept["val"]}
    assert report["best"] == {"epoch": 1, "validation_dice": pytest.approx(report["validation_dice"], abs=1e-6)}


def test_other_cases_are_told_by_name(tmp_path):
    cases = dataset_of(tmp_path, ["a", "b", "c", "d"]).cases
    write_split(tmp_path, Split(cases[:2], cases[2:3]))
    with pytest.raises(CheckpointError, match=r"\(new: d; missing: a; held out before, now to train on: c\)"):
        check_same_split(tmp_path, Split(cases[1:], ()))


def test_cases_without_foreground_are_said_and_trained_on(folder):
    change(folder / "labelsTr" / "case_2.nii.gz", lambda a: a * 0)
    events = []
    train(job(folder, validation=0), SERIAL, events.append)
    cautions = [event.text for event in events if isinstance(event, Caution)]
    assert any("1 of 4 cases hold background alone, such as case_2" in text for text in cautions)
    assert sum("nothing is held out" in event.text for event in events if isinstance(event, Message)) == 1


def test_several_faults_are_counted(folder):
    for case in (1, 2):
        change(folder / "labelsTr" / f"case_{case}.nii.gz", lambda a: a * 5)
    with pytest.raises(VolumeError, match=r"case_1.nii.gz: holds .* \(2 faults; `volseg check .*set` lists all\)"):
        train(job(folder, validation=0), SERIAL)
    assert not (folder.parent / "run").exists()


def test_the_plan_is_of_the_cases_of_the_run(tmp_path, folder):
    """Whole volumes are validated only where cases are held out; those in no part of the split do not matter."""

    def planned(train, val, crop=()):
        folds = [{"train": train, "val": val}]
        (folder / "splits_final.json").write_text(json.dumps(folds))
        wanted = Config(SHALLOW, TrainingConfig(folds=5), DataConfig(crop=crop))
        return prepare(TrainingJob(folder, tmp_path / "none", wanted), SERIAL, lambda event: None).finest

    save(folder / "imagesTr" / "case_3_0000.nii.gz", image(3, (48, 64, 48)))
    save(folder / "labelsTr" / "case_3.nii.gz", labels(3, (48, 64, 48)))
    crop = (8, 8, 8)
    step = planned(["case_0", "case_1"], [], crop)
    assert not step.planned.peak_at.startswith("validation")
    small = planned(["case_0", "case_1"], ["case_2"], crop)
    large = planned(["case_0", "case_1"], ["case_3"], crop)
    assert step.planned.peak <= small.planned.peak < large.planned.peak
    assert large.planned.peak_at.startswith("validation")
    assert planned(["case_0", "case_3"], [], crop).planned.peak < large.planned.peak  # large, seen in crops
    assert planned(["case_0"], ["case_1"]).largest == planned(["case_0"], []).largest  # case_3 is not of the run
    save(folder / "imagesTr" / "case_2_0000.nii.gz", image(2, (2, 2, 2)))
    save(folder / "labelsTr" / "case_2.nii.gz", labels(2, (2, 2, 2)))
    planned(["case_0"], ["case_1"])  # one voxel at its deepest level, but not of the run
    with pytest.raises(ConfigError, match=r"case_2.* are one voxel after 1 halvings"):
        planned(["case_0"], ["case_2"])
