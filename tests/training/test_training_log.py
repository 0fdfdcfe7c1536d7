"""log.csv: its columns, and what becomes of a log with others; progress.png of all kinds of logs."""

import csv

import pytest
from matplotlib.image import imread

from volseg.training.log import CLASS, COLUMNS, TrainingLog, dice_of_last_epoch, read_log
from volseg.training.progress import best_at_finest, class_columns, draw_progress, label_values
from volseg.training.run_page import _classes

OLD = "step,epoch,loss,dice,learning_rate,seconds,voxels_per_second,case,validation_dice,mood\n"


def test_the_dice_at_the_end_is_the_last_epochs(tmp_path):
    rows = [{"epoch": epoch, "dice": dice} for epoch, dice in (("1", "0.1"), ("2", "0.4"), ("2", ""), ("2", "0.8"))]
    assert dice_of_last_epoch(rows) == pytest.approx(0.6)
    assert dice_of_last_epoch(rows[2:3]) is None
    assert dice_of_last_epoch([]) is None


def test_a_log_of_other_columns_goes_on_with_those_of_both(tmp_path):
    (tmp_path / "log.csv").write_text(
        OLD + "1,1,2.5,0.1,0.1,1,1,a,,good\n2,1,2.25,0.1,0.1,1,1,b,0.5,bad\n3,2,2,,,,,,,\n"
    )
    log = TrainingLog(tmp_path, 2, [CLASS + "liver"])
    assert log.columns == (*COLUMNS, CLASS + "liver", "mood")
    log.add({"step": 3, "epoch": 2, "loss": 2.0, "level": 1, CLASS + "liver": 1 / 3, "validation_dice": None})
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows] == ["2.5", "2.25", "2"]
    assert [row["mood"] for row in rows] == ["good", "bad", ""]
    assert (rows[2][CLASS + "liver"], rows[2]["level"], rows[2]["validation_dice"]) == ("0.333333", "1", "")
    assert read_log(tmp_path)[1]["validation_dice"] == "0.5"


def test_a_figure_without_a_column_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="weather"):
        TrainingLog(tmp_path, 0).add({"step": 1, "weather": "fine"})


def row(step, **more):
    base = {"step": str(step), "epoch": "1", "loss": "1.5", "dice": "0.2", "learning_rate": "0.01"}
    return base | {name: f"{value}" for name, value in more.items()}


@pytest.mark.parametrize(
    ("rows", "classes"),
    [
        ([], 0),
        ([row(1)], 0),
        ([row(n) for n in range(1, 60)], 0),
        ([row(n, validation_dice=0.5, validation_dice_a=0.4) for n in range(1, 5)], 1),
        ([row(n, **{f"validation_dice_{c}": 0.1 * c for c in range(3)}) for n in range(1, 5)], 3),
        ([row(n, **{f"validation_dice_{c}": 0.01 * c for c in range(40)}) for n in range(1, 5)], 40),
    ],
)
def test_progress_is_drawn_of_any_log(tmp_path, rows, classes):
    draw_progress(tmp_path, rows)
    height, width, _ = imread(tmp_path / "progress.png").shape
    assert len(class_columns(rows)) == classes
    assert (height > 0.6 * width) == (1 < classes <= 10)  # four panels: two and two; three in a row


def test_the_best_is_that_of_the_finest_level(tmp_path):
    """A coarser one has another measure, on which a mask often does better."""
    rows = [
        row(1, epoch=1, level=1, validation_dice=0.7, validation_dice_a=0.9),
        row(2, epoch=2, level=0, validation_dice=0.6, validation_dice_a=0.5),
        row(3, epoch=3, level=0, validation_dice=0.7, validation_dice_a=0.4),
    ]
    assert best_at_finest(rows) == (3, 0.7)
    assert best_at_finest(rows[:1]) == (0, 0.0)
    assert "<td>0.5000</td><td>2</td>" in _classes({"a": 0.4}, rows).replace(" class=n", "")
    assert "0.9000</td><td></td><td></td>" in _classes({"a": 0.9}, rows[:1]).replace(" class=n", "")
    draw_progress(tmp_path, rows[:1])
    assert (tmp_path / "progress.png").is_file()


def test_a_class_has_its_labels_value_although_one_before_it_has_no_dice():
    row = {"step": "1", f"{CLASS}liver": "", f"{CLASS}spleen": "0.5"}
    assert class_columns([row]) == [f"{CLASS}spleen"]
    assert label_values([row])[f"{CLASS}spleen"] == 2


def test_rows_that_could_not_be_written_are_kept_and_written_later(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    log = TrainingLog(run, 0)
    log.add({"step": 1, "epoch": 1, "loss": 3.0})
    run.rename(tmp_path / "away")
    with pytest.raises(OSError, match="No such file"):
        log.add({"step": 2, "epoch": 1, "loss": 2.0})
    log.add({"step": 3, "epoch": 1, "loss": 1.0})  # said once, and not tried at every step
    (tmp_path / "away").rename(run)
    assert [row["step"] for row in read_log(run)] == ["1"]
    log.mend()
    log.add({"step": 4, "epoch": 1, "loss": 0.5})
    assert [row["step"] for row in read_log(run)] == ["1", "2", "3", "4"]
