"""The table on disk, and the summary of it."""

import csv
from dataclasses import replace

import pytest

from study_rows import FAILED, PROFILE, RANGES, all_rows, row_of
from volseg.errors import ConfigError
from volseg.study.cases import SEGMENT, TRAIN, Case, cube
from volseg.study.extrapolation import foretell, over_sides
from volseg.study.rows import COLUMNS, read_rows, write_rows
from volseg.study.summary import agreements, exponent, main_case, sentences


def close(row):
    """What five digits keep."""

    def rounded(value):
        return None if value is None else float(f"{value:.5g}")

    return replace(
        row, seconds=rounded(row.seconds), planned_seconds=rounded(row.planned_seconds),
        kinds={k: rounded(v) for k, v in row.kinds.items()},
        planned_kinds={k: rounded(v) for k, v in row.planned_kinds.items()},
    )  # fmt: skip


def test_rows_come_back_as_they_were(tmp_path):
    rows = all_rows()
    write_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == [close(row) for row in rows]


def test_the_table_has_ratios_and_says_what_failed(tmp_path):
    write_rows(tmp_path / "rows.csv", all_rows())
    with (tmp_path / "rows.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    assert list(records[0]) == list(COLUMNS)
    assert float(records[0]["planned_over_measured_memory"]) == pytest.approx(1 / 1.02, rel=1e-4)
    assert float(records[0]["planned_over_measured_seconds"]) == pytest.approx(1 / 0.9, rel=1e-4)
    failed = [record for record in records if record["state"] == "failed"]
    assert [record["error"] for record in failed] == [FAILED.error]
    assert failed[0]["peak_bytes"] == failed[0]["planned_over_measured_memory"] == ""
    shared = [record for record in records if record["ranks"] == "8"]
    assert shared
    assert all(record["timed"] == "0" and record["planned_over_measured_seconds"] == "" for record in shared)


def test_no_file_is_no_rows(tmp_path):
    assert read_rows(tmp_path / "none.csv") == []


@pytest.mark.parametrize("text", ["task,shape\ntrain,1x1\n", "a,b\n1,2\n", "task,shape,base_channels\ndance,8x8x8,4\n"])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ConfigError, match="is no table of volseg study"):
        read_rows(tmp_path / "rows.csv")


def test_agreement_names_the_worst_row():
    good = [row_of(Case(TRAIN, cube(48), 8, 3, ranks, "plain"), 1.01, 1.1) for ranks in (1, 2)]
    bad = row_of(Case(TRAIN, cube(72), 8, 3, 1, "plain"), 1.25, 2.0)
    memory, seconds = agreements([*good, bad, FAILED])
    assert (memory.count, memory.worst_row.case, seconds.worst_row.case) == (3, bad.case, bad.case)
    assert memory.worst == pytest.approx(0.8, rel=1e-3)
    assert memory.median == pytest.approx(1 - 1 / 1.01, rel=1e-3)
    assert seconds.worst == pytest.approx(0.5)


def test_rows_that_share_cores_say_nothing_of_time():
    rows = [row_of(Case(SEGMENT, cube(48), 8, 3, 8, "in-place"))]
    assert [one.what for one in agreements(rows)] == ["memory, segmenting"]


def test_the_exponent_of_a_power():
    assert exponent([(x, 5 * x**2.5) for x in (1, 3, 7)]) == pytest.approx(2.5)
    assert exponent([(3, 1)]) is None
    assert exponent([(3, 1), (3, 2)]) is None
    assert exponent([(1, 1), (2, -1)]) is None


def test_the_model_of_large_volumes_is_cubic():
    models = over_sides(main_case(RANGES, TRAIN, 512), (512, 1024, 2048, 4096), PROFILE)
    assert exponent([(one.case.shape[0], one.memory.peak) for one in models]) == pytest.approx(3, abs=0.02)


def test_sentences_are_made_from_rows():
    said = " ".join(sentences(all_rows(), RANGES, PROFILE))
    assert "Memory of training on one rank grows as side^" in said
    assert "Memory of segmenting 72³ grows as channels^" in said
    assert "a rank of 8 holds" in said
    assert "to train 4096³" in said
    assert "times as fast on 2 ranks as on one" in said


def test_sentences_of_nothing_are_the_model_alone():
    (only,) = sentences([FAILED], RANGES, PROFILE)
    assert only.startswith("Predicted: ")


def test_thousands_of_ranks_are_needed():
    """What the project began with: of 4096³, no hundred ranks of 4 GB hold what training takes."""
    case = main_case(RANGES, TRAIN, 4096, 1024)
    assert foretell(case, PROFILE, 32).memory.peak > 4e9
