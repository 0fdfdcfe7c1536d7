"""dataset.json as people write it: what is taken, and what is said of the rest."""

import json
from pathlib import Path

import pytest

from volseg.errors import VolumeError
from volseg.volumes.dataset import read_ignored_value, read_label_names
from volseg.volumes.dataset.description import parse_channel_names, parse_labels
from volseg.volumes.dataset.json_file import load_json

PATH = Path("dataset.json")


def loaded(tmp_path, text):
    path = tmp_path / "dataset.json"
    path.write_text(text, encoding="utf-8")
    return load_json(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b": 2,\n}', "a comma too many at line 2, column 8, before a closing bracket"),
        ('{"a": [1, 2,]}', "a comma too many at line 1, column 12"),
        ('{"a": 1, // the first\n "b": 2}', "a comment at line 1, column 10; JSON has none"),
        ('{"a": 1,\n # two\n "b": 2}', "a comment at line 2, column 2"),
        ('{"a": "http://x", "b": 2 "c": 3}', "Expecting ',' delimiter at line 1, column 26"),
        ("{'a': 1}", "single quotation marks at line 1, column 2"),
        ("{\u201ca\u201d: 1}", "typographic quotation marks at line 1, column 2"),
        ("", "the file is empty"),
        ('{"labels": {"liver": 1, "liver": 2}}', "'liver' occurs twice, as 1 and as 2; keep one"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_json_is_said_with_its_place(tmp_path, text, message):
    with pytest.raises(VolumeError) as raised:
        loaded(tmp_path, text)
    assert message in str(raised.value)


def test_the_same_twice_is_no_fault(tmp_path):
    assert loaded(tmp_path, '{"numTraining": 2, "numTraining": 2}') == {"numTraining": 2}


@pytest.mark.parametrize("written", [{"1": "CT", "0": "PET"}, {"0001": "CT", "0000": "PET"}, ["PET", "CT"]])
@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_channels_go_by_their_numbers(key, written):
    assert parse_channel_names({key: written}, PATH) == ("PET", "CT")


@pytest.mark.parametrize("written", [{"1": "CT"}, {"0": "CT", "2": "PET"}, {"CT": 0}, {"0": "CT", "00": "PET"}])
def test_channels_that_are_numbered_otherwise_are_told_how(written):
    with pytest.raises(VolumeError, match=r"number its channels from 0 without a gap.*\{\"0\": "):
        parse_channel_names({"modality": written}, PATH)


@pytest.mark.parametrize(
    "written",
    [
        {"background": 0, "liver": 1, "spleen": 2},
        {"0": "background", "1": "liver", "2": "spleen"},
        {"spleen": "2", "liver": 1.0, "background": "0"},
    ],
)
def test_labels_in_any_form(written):
    assert parse_labels({"labels": written}, PATH) == {"background": 0, "liver": 1, "spleen": 2}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"liver": 1.5}, "'liver' has the value 1.5; give a whole number"),
        ({"liver": True}, "'liver' has the value True"),
        ({"0": "background", "1": "kidney", "2": "kidney"}, "two labels are called 'kidney'"),
        (
            {"whole": [1, 2], "core": [2]},
            r"its labels are 2 regions .whole, core., so it needs \"regions_class_order\"",
        ),
    ],
)
def test_labels_that_are_none_are_named(written, message):
    with pytest.raises(VolumeError, match=message):
        parse_labels({"labels": written}, PATH)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ({"liver": 1, "ignore": 2}, 2),
        ({"liver": 1, "ignore": 255}, 255),
        ({"0": "background", "1": "liver", "2": "ignore"}, 2),
        ({"liver": 1}, None),
    ],
)
def test_the_label_ignore_is_none_of_the_classes(tmp_path, written, value):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(written))
    assert read_label_names(path) == {"background": 0, "liver": 1}
    assert read_ignored_value(path) == value
