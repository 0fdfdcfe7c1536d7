"""Pieces of an arena never overlap, are whole again when all are given back, and small ones fill what is left."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.partition.arena import ALIGNMENT, Arena, Piece


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 300), st.integers(0, 50)), max_size=60))
def test_pieces_are_disjoint_and_come_back_whole(steps):
    arena, held = Arena(), []
    for take, size, which in steps:
        if take or not held:
            piece = arena.take(size)
            assert piece.size >= size
            assert piece.start % ALIGNMENT == 0
            assert piece.stop <= arena.chunks[piece.chunk]
            assert all(p.chunk != piece.chunk or p.stop <= piece.start or p.start >= piece.stop for p in held)
            held.append(piece)
        else:
            arena.give(held.pop(which % len(held)))
        assert arena.free + sum(p.size for p in held) == arena.total
    for piece in held:
        arena.give(piece)
    for size in list(arena.chunks):
        arena.take(size)
    assert arena.free == 0, "each chunk was one piece again"


def test_the_smallest_piece_that_is_large_enough_is_split():
    arena = Arena()
    large, small = arena.take(1600), arena.take(160)
    arena.give(large)
    arena.give(small)
    assert arena.take(150) == Piece(1, 0, 160)
    assert arena.take(320) == Piece(0, 0, 320)
    assert arena.take(1280) == Piece(0, 320, 1280)
    assert arena.total == 1760
