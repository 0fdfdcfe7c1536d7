"""What kernels are written in: loops, choices, vectors; and the same bits for every length of vector."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, widest_vector
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer, Vector

pytestmark = pytest.mark.skipif(not widest_vector(), reason="no fused multiply-add here")


def library(lanes: int = 8) -> Library:
    module = Module(lanes)

    @module.define
    def add_to(f: Function, target: Pointer, value: Vector, count: Int) -> None:
        with f.loop(count, step=lanes) as (i, _):
            (target + i).store((target + i).load() + value)

    @module.entry
    def numbers(
        f: Function, first: Int, last: Int, scratch: Pointer, *, out: Pointer, a: Int, b: Int, half: Vector
    ) -> None:
        with f.loop(last, start=first, carried=[f.number(0), f.constant(0)]) as (i, state):
            count, total = state.values
            state.values = count + i * 2, total + half
        results = [
            state.values[0], a + b, a - b, 1 - a, a * b, a // b, a % b, f.smaller(a, b), f.larger(a, 5),
            f.choose(a < b, a, b), f.choose((a >= b) & a.equals(7), f.number(1), f.number(0)),
        ]  # fmt: skip
        for place, value in enumerate(results):
            with f.loop(value) as (_, _s):  # as many additions of one as the number says
                add_to(f, out + place * lanes, f.constant(1), lanes)
        (out + len(results) * lanes).store(state.values[1])

    @module.entry
    def vectors(
        f: Function, first: Int, last: Int, scratch: Pointer, *, x: Pointer, y: Pointer, out: Pointer, size: Int,
        none: Pointer, wide: Pointer,
    ) -> None:  # fmt: skip
        slope = f.constant(0.25)
        with f.loop(last, start=first, step=lanes) as (i, _):
            a, b = (x + i).load(), (y + i).load()
            results = [
                a + b, a - b, a * b, -a, f.fma(a, b, a), f.largest(a, b), f.leaky(a, slope),
                f.leaky_gradient(b, a, slope), f.take_where_above(a, b, a * a, b), (x + i).splat(),
                (a.wide() + b.wide()).narrow(),
            ]  # fmt: skip
            for number, value in enumerate(results):
                (out + (size * number + i)).store(value)
            with f.either(none.is_null()) as (then, otherwise):
                with then:
                    (wide.wide() + i).store((wide.wide() + i).load() + a.wide())
                with otherwise:
                    (out + i).store(f.constant(-1))
            with f.when(wide.is_null()):
                (out + i).store(f.constant(-2))

    return Library(module)


def test_integers_loops_and_choices() -> None:
    out = torch.zeros(12, 8)
    library()["numbers"].bind(out=out, a=7, b=3, half=0.5)(1, 4)
    assert out[:, 0].tolist() == [12, 10, 4, 0, 21, 2, 1, 3, 7, 3, 1, 1.5]
    assert (out == out[:, :1]).all()


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_vectors_do_what_numpy_does_for_every_length(lanes: int) -> None:
    generator = np.random.default_rng(0)
    x, y = (generator.standard_normal(64).astype(np.float32) for _ in range(2))
    out, wide = torch.zeros(11, 64), torch.ones(64, dtype=torch.float64)
    job = library(lanes)["vectors"].bind(
        x=torch.from_numpy(x), y=torch.from_numpy(y), out=out, size=64, none=None, wide=wide
    )
    job(0, 64)
    found = out.numpy()
    expected = [
        x + y, x - y, x * y, -x, None, np.maximum(x, y), np.where(x > 0, x, x * np.float32(0.25)),
        np.where(x > 0, y, y * np.float32(0.25)), np.where(x > y, x * x, y), np.repeat(x[::lanes], lanes),
        (x.astype(float) + y).astype(np.float32),
    ]  # fmt: skip
    for number, values in enumerate(expected):
        if values is not None:
            assert np.array_equal(found[number], values), number
    exact = x.astype(np.longdouble) * y + x  # a fused multiply-add rounds once
    assert np.array_equal(found[4], exact.astype(np.float32))
    assert np.array_equal(wide.numpy(), 1 + x.astype(float))


def test_an_entry_wants_just_its_parameters_and_memory_it_can_use() -> None:
    entry = library()["numbers"]
    with pytest.raises(AssertionError, match="half"):
        entry.bind(out=None, a=1, b=1)
    with pytest.raises(AssertionError, match="float16"):
        entry.bind(out=torch.zeros(1, dtype=torch.float16), a=1, b=1, half=0)


@dataclass(frozen=True)
class Grid:
    """Where lines lie, for a kernel."""

    lines: Int
    line: Int


@dataclass(frozen=True)
class Scaled:
    """Numbers to read with a factor, for a kernel."""

    data: Pointer
    grid: Grid
    factor: Vector


def structured() -> Library:
    """out[n, :] = a[n, :] * its factor (+ b[n, :] * its factor, where there is b)."""
    module = Module(8)

    @module.define
    def add_line(f: Function, x: Scaled, number: Int, out: Pointer) -> None:
        out.store(out.load() + (x.data + number * x.grid.line).load() * x.factor)

    @module.entry
    def add(
        f: Function, first: Int, last: Int, scratch: Pointer, *, a: Scaled, count: Int, b: Scaled, out: Pointer
    ) -> None:
        with f.loop(f.smaller(last, a.grid.lines), start=first) as (n, _):
            add_line(f, a, n, out + n * count)
            with f.when(b.data.is_given()):
                add_line(f, b, n, out + n * count)

    return Library(module)


def test_structures_arrive_whole_in_entries_and_parts() -> None:
    entry = structured()["add"]
    x, y = torch.randn(3, 8), torch.randn(3, 16)
    a = {"data": x, "grid": {"lines": 3, "line": 8}, "factor": 2.0}
    b = SimpleNamespace(data=y, grid=SimpleNamespace(lines=3, line=16), factor=0.5)
    out = torch.zeros(4, 8)
    entry.bind(a=a, count=8, b=None, out=out)(0, 4)
    assert torch.equal(out[:3], x * 2)
    assert not out[3].any(), "a structure's number counts the lines"
    entry.bind(a=a, count=8, b=b, out=out.zero_())(1, 4)
    assert torch.equal(out[1:3], x[1:] * 2 + y[1:, :8] * 0.5)
    with pytest.raises(AssertionError, match=r"a\.grid.*lines.*pitch"):
        entry.bind(a=a | {"grid": {"pitch": 3, "line": 8}}, count=8, b=b, out=out)


def test_shares_cover_all_items_once() -> None:
    for items in (0, 1, 5, 100):
        for threads in (1, 2, 7):
            parts = workers.shares(items, threads)
            assert [n for a, b in parts for n in range(a, b)] == list(range(items))
            assert max(b - a for a, b in parts) - min(b - a for a, b in parts) <= 1


def test_threads_have_memory_of_their_own_and_an_error_comes_through() -> None:
    torch.set_num_threads(3)
    try:
        seen: list[tuple[int, int, int]] = []

        def note(first: int, last: int, place: int) -> None:
            seen.append((first, last, place))

        workers.run([note] * 3, 7, floats=10)
        assert sorted((a, b) for a, b, _ in seen) == [(0, 2), (2, 4), (4, 7)]
        assert len({place for _, _, place in seen}) == 3
        seen.clear()
        workers.run(note, 100, floats=10)  # in turn
        assert sorted(n for a, b, _ in seen for n in range(a, b)) == list(range(100))
        assert len(seen) > 3

        def fail(first: int, last: int, place: int) -> None:
            if first:
                raise ValueError("a block")

        with pytest.raises(ValueError, match="a block"):
            workers.run(fail, 7)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_bfloat16_is_rounded_as_torch_rounds(lanes: int) -> None:
    module = Module(lanes)

    @module.entry
    def narrow(
        f: Function,
        first: Int,
        last: Int,
        scratch: Pointer,
        *,
        x: Pointer,
        halves: Pointer,
        back: Pointer,
        one: Pointer,
    ) -> None:
        with f.loop(last, start=first, step=lanes) as (i, _):
            (halves.bfloat16() + i).store((x + i).load())
            (back + i).store((halves.bfloat16() + i).load())
        with f.loop(last, start=first) as (i, _):
            (one.bfloat16() + i).copy_one(x + i)
        (one.bfloat16() + last).store((halves.bfloat16() + (last - 1)).splat())

    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=generator).to(torch.int32)
    x = bits.view(torch.float32).clone()
    ties = (bits[:64].abs() << 16 | 0x8000).view(torch.float32)
    x[:64] = torch.where(ties.isfinite(), ties, torch.ones(()))
    x[64:70] = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 3.4e38, 1e-40])
    x[70] = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)[0]  # NaN only in the bits that go
    halves, back = torch.zeros(4096, dtype=torch.bfloat16), torch.zeros(4096)
    one = torch.zeros(4096 + lanes, dtype=torch.bfloat16)
    Library(module)["narrow"].bind(x=x, halves=halves, back=back, one=one)(0, 4096)
    expected, number = x.to(torch.bfloat16), ~x.isnan()
    assert torch.equal(halves.isnan(), x.isnan())
    assert torch.equal(halves[number].view(torch.int16), expected[number].view(torch.int16))
    assert torch.equal(one[:4096].view(torch.int16), halves.view(torch.int16))
    assert torch.equal(back.view(torch.int32) >> 16, halves.view(torch.int16).to(torch.int32))
    assert (one[4096:].view(torch.int16) == halves[-1:].view(torch.int16)).all()


def test_bringing_a_line_near_changes_nothing_and_may_lie_beyond_all_memory() -> None:
    module = Module(8)

    @module.entry
    def copy(f: Function, first: Int, last: Int, scratch: Pointer, *, x: Pointer, out: Pointer) -> None:
        with f.loop(last, start=first, step=f.lanes) as (i, _):
            for place in (x + i, x + (i + 1) * 2**40, f.nothing()):
                place.prefetch()
                place.prefetch(to_write=False)
            (out + i).store((x + i).load())

    x, out = torch.randn(64), torch.zeros(64)
    before = x.clone()
    Library(module)["copy"].bind(x=x, out=out)(0, 64)
    assert torch.equal(out, before)
    assert torch.equal(x, before)
