"""report.json and report.html: what was run, on what, by whom; the page needs nothing but itself."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tiny import SERIAL, tiny_config, tiny_dataset
from volseg.distributed.communicator import SerialCommunicator
from volseg.errors import ConfigError
from volseg.events import Caution
from volseg.training import inputs as hashing
from volseg.training.inputs import hash_inputs
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.training.tensorboard import check_tensorboard
from volseg.volumes.dataset import read_dataset

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags close in order; keeps texts, links and pictures."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.links, self.pictures = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [value for name, value in found.items() if name in ("src", "href", "srcset", "action")]
        if tag == "img":
            self.pictures.append(base64.b64decode(found["src"].removeprefix("data:image/png;base64,"), validate=True))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with two held-out cases, and what the program says of it."""
    folder = tmp_path_factory.mktemp("report")
    data = tiny_dataset(folder / "data", cases=3)
    job = TrainingJob(data, folder / "run <1>", tiny_config(validation=2), command="volseg train data", previews=2)
    return data, folder / "run <1>", train(job, SerialCommunicator())


def test_the_report_says_what_was_run_and_on_what(finished):
    data, run, report = finished
    found = json.loads((run / "report.json").read_text())
    assert found["command_line"] == "volseg train data"
    assert set(found["versions"]) >= {"volseg", "python", "torch", "numpy", "mpi4py", "machine"}
    assert found["mpi_library"] is None
    assert found["revision"] is None or re.fullmatch(r"[0-9a-f]{40}", found["revision"])
    files = [path for path in data.rglob("*") if path.is_file()]
    assert set(found["inputs"]) == {path.relative_to(data).as_posix() for path in files}
    for path in files:
        one = found["inputs"][path.relative_to(data).as_posix()]
        assert one == {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert sum(found["memory"]["planned_parts"].values()) == pytest.approx(found["memory"]["planned_bytes"], rel=0.2)
    assert found["validation_dice"] == report.validation_dice
    assert found["validation"]["by_class"] == dict(report.validation_by_class)
    assert report.validation_dice == pytest.approx(sum(found["validation"]["by_case"].values()) / 2)


def test_the_page_is_whole_and_needs_nothing_else(finished):
    _, run, report = finished
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text
    assert len(page.pictures) == 3  # the curves, and two cases of the last epoch
    assert page.pictures[0] == (run / "progress.png").read_bytes()
    assert page.pictures[1:] == [path.read_bytes() for path in sorted(run.glob("previews/epoch_0002_*"))]
    words = "\n".join(page.words)
    for expected in (
        "Training run run <1>", f"{report.validation_dice:.4f}", "class_1", "class_2", "volseg train data",
        "imagesTr/ellipsoids_000_0000.nii.gz", "learning_rate", "convolution", "peak memory", "torch",
    ):  # fmt: skip
        assert expected in words


def test_a_run_without_held_out_cases_has_a_page_too(tmp_path):
    train(TrainingJob(tiny_dataset(tmp_path / "data"), tmp_path / "run", tiny_config(epochs=1)), SerialCommunicator())
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert len(page.pictures) == 1
    assert json.loads((tmp_path / "run" / "report.json").read_text())["validation"] is None


@pytest.mark.parallel([1, 2, 4])
def test_ranks_share_the_hashing(communicator, tmp_path_factory, monkeypatch):
    folder = None
    if communicator.is_root:
        folder = tiny_dataset(tmp_path_factory.mktemp("hashes") / "data", format="zarr")
    folder = communicator.broadcast(folder)
    dataset = read_dataset(folder)
    hashed = []

    def sha256(path):
        hashed.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(hashing, "sha256", sha256)
    found = hash_inputs(dataset, communicator)
    counts = communicator.gather_all(len(hashed))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(counts) == len(files)
    assert max(counts) - min(counts) <= 1
    assert found == hash_inputs(dataset, SERIAL)
    image = dataset.cases[0].images[0].path
    inside = sorted(path for path in image.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(image).as_posix()}\n" for p in inside]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert found[image.relative_to(folder).as_posix()]["sha256"] == expected
    monkeypatch.setattr(hashing, "HASHED_BYTES", 10)
    assert all(one["sha256"] is None for one in hash_inputs(dataset, communicator).values())


@pytest.mark.parallel([1, 2])
def test_only_files_that_changed_are_hashed_again(communicator, tmp_path_factory, monkeypatch):
    folder = None
    if communicator.is_root:
        folder = tiny_dataset(tmp_path_factory.mktemp("again") / "data")
    folder = communicator.broadcast(folder)
    known, dataset, hashed = folder.parent / "inputs.json", read_dataset(folder), []
    monkeypatch.setattr(hashing, "sha256", lambda path: hashed.append(path.name) or f"hash {len(path.read_bytes())}")

    def hash_again():
        hashed.clear()
        found = hash_inputs(dataset, communicator, known)
        return found, sorted(name for names in communicator.gather_all(list(hashed)) for name in names)

    first, names = hash_again()
    assert len(names) == len(first) == 5
    assert hash_again() == (first, [])
    label = dataset.cases[0].label
    communicator.barrier()
    if communicator.is_root:
        label.write_bytes(label.read_bytes() + b"more")
    communicator.barrier()
    second, names = hash_again()
    assert names == [label.name]
    assert {name for name in first if first[name] != second[name]} == {f"labelsTr/{label.name}"}
    communicator.barrier()
    if communicator.is_root:
        known.write_text("[1, 2")
    communicator.barrier()
    found, names = hash_again()
    assert (found, len(names)) == (second, 5)


def test_a_run_that_goes_on_reads_its_inputs_once_and_one_that_begins_anew_reads_them_again(tmp_path, monkeypatch):
    data, hashed = tiny_dataset(tmp_path / "data"), []
    monkeypatch.setattr(hashing, "sha256", lambda path: hashed.append(path) or "hash")
    job = TrainingJob(data, tmp_path / "run", tiny_config(), max_time=0.0)
    counts = []
    for one in (job, replace(job, proceed=True), replace(job, overwrite=True)):
        hashed.clear()
        train(one, SERIAL)
        counts.append(len(hashed))
    assert counts == [5, 0, 5]


def test_tensorboard_that_is_missing_is_named_with_its_remedy(tmp_path, monkeypatch):
    data = tiny_dataset(tmp_path / "data")
    monkeypatch.setattr("volseg.training.tensorboard.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        train(TrainingJob(data, tmp_path / "run", tiny_config(), tensorboard=True), SERIAL)
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_curves_and_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    check_tensorboard()
    data = tiny_dataset(tmp_path / "data")
    job = TrainingJob(data, tmp_path / "run", tiny_config(validation=1), tensorboard=True)
    train(job, SerialCommunicator())
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = events.Tags()
    assert {"loss/training", "Dice/held out", "Dice/class_1", "learning rate"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("loss/training")] == [1, 2]
    assert len(tags["images"]) == 1


def test_pictures_that_cannot_be_drawn_do_not_end_a_run(tmp_path, monkeypatch):
    """One Caution for each kind of picture, however often it fails."""

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("volseg.training.previews.draw_preview", fail)
    monkeypatch.setattr("volseg.training.record.draw_progress", fail)
    monkeypatch.setattr("volseg.training.record.DRAWING_SECONDS", 0.0)
    events, job = [], TrainingJob(tiny_dataset(tmp_path / "data"), tmp_path / "run", tiny_config(validation=1))
    train(job, SERIAL, events.append)
    said = [event.text for event in events if isinstance(event, Caution) and "picture" in event.text]
    assert len(said) == 2
    assert all("No space left on device" in text for text in said)
    assert sum("epoch_0001_" in text for text in said) == 1
    assert sum("progress.png" in text for text in said) == 1
    assert (job.run / "report.html").is_file()


def test_half_written_pictures_of_a_killed_run_are_removed_when_it_goes_on(tmp_path):
    job = TrainingJob(tiny_dataset(tmp_path / "data"), tmp_path / "run", tiny_config(validation=1), max_time=0.0)
    train(job, SERIAL)
    leftover = job.run / "previews" / ".epoch_0001_case.1.partial.png"
    leftover.touch()
    train(replace(job, proceed=True), SERIAL)
    assert not leftover.exists()
    assert list(leftover.parent.glob("epoch_*"))


def test_a_run_killed_before_its_report_gets_it_when_it_goes_on(tmp_path):
    job, events = TrainingJob(tiny_dataset(tmp_path / "data"), tmp_path / "run", tiny_config(validation=1)), []
    whole = train(job, SERIAL)
    names = ("report.json", "report.html", "progress.png")
    log, pictures = (job.run / "log.csv").read_bytes(), sorted((job.run / "previews").iterdir())
    for name in names:
        (job.run / name).unlink()
    pictures[-1].unlink()
    report = train(replace(job, proceed=True), SERIAL, events.append)
    assert all((job.run / name).is_file() for name in names)
    assert sorted((job.run / "previews").iterdir()) == pictures
    assert (job.run / "log.csv").read_bytes() == log
    assert report.validation_dice == whole.validation_dice
    assert report.loss == pytest.approx(whole.loss, rel=1e-8)
    found = json.loads((job.run / "report.json").read_text())
    assert (found["steps"], found["stopped"], found["time"]["steps"]) == (2, None, 0)
    assert train(replace(job, proceed=True), SERIAL, events.append).loss is None
    assert sum("nothing to do" in event.text for event in events if isinstance(event, Caution)) == 1
