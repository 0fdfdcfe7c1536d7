"""Messages quote files, and files may hold anything."""

import pickle

from volseg.errors import LONGEST_LINE, VolumeError


def test_what_a_file_says_cannot_steer_the_terminal():
    error = VolumeError("a.dcm: SeriesDescription '\x1b[2J\x00Kopf – Schädel'\nsecond line")
    assert str(error) == "a.dcm: SeriesDescription '\\x1b[2J\\x00Kopf – Schädel'\nsecond line"


def test_a_long_line_keeps_its_ends():
    text = str(VolumeError("a.dcm: " + "x" * 10**6 + "; copy it again"))
    assert text.startswith("a.dcm: xxx")
    assert text.endswith("xxx; copy it again")
    assert len(text) < LONGEST_LINE + 20


def test_an_error_travels_between_ranks():
    error = pickle.loads(pickle.dumps(VolumeError("a\x00b")))
    assert (str(error), error.args) == ("a\\x00b", ("a\x00b",))
