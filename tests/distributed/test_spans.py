"""Pieces of work as arrays."""

from volseg.distributed import spans
from volseg.distributed.spans import PHASE, Span, Spans, outermost_first


def test_they_come_out_as_they_went_in():
    kept = Spans()
    pieces = [Span("halo", "halo", "encoder 0.1", 1.5, 2.0), Span("step 1", PHASE, "", 1.0, 3.25)]
    for piece in pieces:
        kept.add(piece.name, piece.category, piece.layer, piece.begin, piece.end)
    assert list(kept) == pieces
    assert Spans().rows().shape == (0,)


def test_what_is_too_much_is_counted_and_phases_stay(monkeypatch):
    monkeypatch.setattr(spans, "MOST", 2)
    kept = Spans()
    for number in range(4):
        kept.add("halo", "halo", "", number, number + 1)
    kept.add("step 1", PHASE, "", 0, 4)
    assert [span.name for span in kept] == ["halo", "halo", "step 1"]
    assert kept.lost == 2


def test_outermost_first_also_where_pieces_begin_and_end_together():
    kept = Spans()
    for name, begin, end in (("c", 1, 2), ("b", 1, 3), ("a", 1, 3), ("d", 3, 4), ("all", 0, 4)):
        kept.add(name, "", "", begin, end)
    assert [kept.names[row["name"]] for row in outermost_first(kept.rows())] == ["all", "a", "b", "c", "d"]
