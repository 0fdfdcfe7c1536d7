"""A small language for kernels: 64-bit integers, pointers, and vectors of floats, with Python's operators.

A kernel is a Python function whose parameters are annotated with `Int`, `Pointer`, `Vector`, or a frozen dataclass of
those (`structures.py`); calling its body once writes down the instructions. Python loops unroll, `Function.loop` loops
at run time:

    @module.define
    def scale(f: Function, x: Pointer, factor: Vector, count: Int) -> None:
        with f.loop(count, step=f.lanes) as (i, _):
            (x + i).store((x + i).load() * factor)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from itertools import count
from typing import Any, get_type_hints

from llvmlite import ir

from volseg.nn.kernels.jit.structures import assemble, disassemble, numbers_of

FLOAT, DOUBLE, INT, BOOL, INDEX = ir.FloatType(), ir.DoubleType(), ir.IntType(64), ir.IntType(1), ir.IntType(32)
HALF = ir.IntType(16)
_PREFETCH = "llvm.prefetch.p0"


class _BFloat16(ir.Type):  # type: ignore[misc]
    """LLVM's type of bfloat16 numbers, which llvmlite does not have."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


class Int:
    """A 64-bit signed integer."""

    def __init__(self, f: Function, value: Any) -> None:
        self.f, self.value = f, value

    def _with(self, operation: str, other: int | Int) -> Int:
        return Int(self.f, getattr(self.f.builder, operation)(self.value, self.f.number(other).value))

    def _compare(self, how: str, other: int | Int) -> Bool:
        return Bool(self.f, self.f.builder.icmp_signed(how, self.value, self.f.number(other).value))

    def __add__(self, other: int | Int) -> Int:
        return self._with("add", other)

    __radd__ = __add__

    def __sub__(self, other: int | Int) -> Int:
        return self._with("sub", other)

    def __rsub__(self, other: int | Int) -> Int:
        return self.f.number(other) - self

    def __mul__(self, other: int | Int) -> Int:
        return self._with("mul", other)

    __rmul__ = __mul__

    def __floordiv__(self, other: int | Int) -> Int:
        """Of numbers that are not negative."""
        return self._with("sdiv", other)

    def __mod__(self, other: int | Int) -> Int:
        """Of numbers that are not negative."""
        return self._with("srem", other)

    def __lt__(self, other: int | Int) -> Bool:
        return self._compare("<", other)

    def __ge__(self, other: int | Int) -> Bool:
        return self._compare(">=", other)

    def equals(self, other: int | Int) -> Bool:
        """Whether both are the same number."""
        return self._compare("==", other)


class Bool:
    """A condition."""

    def __init__(self, f: Function, value: Any) -> None:
        self.f, self.value = f, value

    def __and__(self, other: Bool) -> Bool:
        return Bool(self.f, self.f.builder.and_(self.value, other.value))


class Vector:
    """As many float32 (or, `wide`, float64) numbers as the function has lanes."""

    def __init__(self, f: Function, value: Any) -> None:
        self.f, self.value = f, value

    def __add__(self, other: Vector) -> Vector:
        return Vector(self.f, self.f.builder.fadd(self.value, other.value))

    def __sub__(self, other: Vector) -> Vector:
        return Vector(self.f, self.f.builder.fsub(self.value, other.value))

    def __mul__(self, other: Vector) -> Vector:
        return Vector(self.f, self.f.builder.fmul(self.value, other.value))

    def __truediv__(self, other: Vector) -> Vector:
        return Vector(self.f, self.f.builder.fdiv(self.value, other.value))

    def __neg__(self) -> Vector:
        return Vector(self.f, self.f.builder.fneg(self.value))

    def wide(self) -> Vector:
        """The same numbers in float64."""
        return Vector(self.f, self.f.builder.fpext(self.value, self.f.wide_type))

    def narrow(self) -> Vector:
        """float64 numbers rounded to float32."""
        return Vector(self.f, self.f.builder.fptrunc(self.value, self.f.vector_type))


class Element(Enum):
    """What numbers in memory are; all are computed with in float32, or, of `DOUBLE`, in float64.

    A `BYTE` is a whole number from 0 to 255, which is read one by one, and not written.
    """

    FLOAT = 4
    DOUBLE = 8
    BFLOAT16 = 2
    BYTE = 1

    @property
    def stored(self) -> Any:
        """Its type in memory: of bfloat16, the upper half of a float32's bits."""
        kinds = {Element.FLOAT: FLOAT, Element.DOUBLE: DOUBLE, Element.BFLOAT16: HALF, Element.BYTE: ir.IntType(8)}
        return kinds[self]


class Pointer:
    """The address of a number: of a float32 unless `element` says otherwise.

    A function that `Module.define` wrote down takes a pointer as it is: there is one for each kind of numbers.
    """

    def __init__(self, f: Function, value: Any, element: Element = Element.FLOAT) -> None:
        self.f, self.value, self.element = f, value, element

    def _typed(self, kind: Any) -> Any:
        return self.f.builder.bitcast(self.value, kind.as_pointer())

    def __add__(self, offset: int | Int) -> Pointer:
        place = self.f.builder.gep(self._typed(self.element.stored), [self.f.number(offset).value])
        return Pointer(self.f, self.f.builder.bitcast(place, FLOAT.as_pointer()), self.element)

    def load(self) -> Vector:
        """The numbers that begin here; no alignment is asked for."""
        kind = ir.VectorType(self.element.stored, self.f.lanes)
        numbers = self.f.builder.load(self._typed(kind), align=self.element.value)
        return Vector(self.f, self.f.widened(numbers) if self.element is Element.BFLOAT16 else numbers)

    def store(self, numbers: Vector) -> None:
        """Write numbers from here on; to bfloat16 they are rounded to nearest, ties to even."""
        value = self.f.rounded(numbers.value) if self.element is Element.BFLOAT16 else numbers.value
        self.f.builder.store(value, self._typed(value.type), align=self.element.value)

    def splat(self) -> Vector:
        """The one number here in all lanes."""
        return self.f.splat(self._single())

    def _single(self) -> Any:
        """The one number here, as a float32."""
        number = self.f.builder.load(self._typed(self.element.stored))
        if self.element is Element.BYTE:
            return self.f.builder.uitofp(number, FLOAT)
        return self.f.widened(number) if self.element is Element.BFLOAT16 else number

    def integer(self) -> Int:
        """The 64-bit integer here, at an address that `+` counts in floats."""
        return Int(self.f, self.f.builder.load(self._typed(INT)))

    def copy_one(self, source: Pointer) -> None:
        """Write the one number that `source` points to; neither may be a float64, and this one no byte."""
        number = source._single()
        value = self.f.rounded(number) if self.element is Element.BFLOAT16 else number
        self.f.builder.store(value, self._typed(value.type))

    def prefetch(self) -> None:
        """Begin to bring what lies here into the second cache; the address need not be one of the process's memory."""
        module, kinds = self.f.function.module, [FLOAT.as_pointer(), INDEX, INDEX, INDEX]
        known = module.globals.get(_PREFETCH)
        kind = ir.FunctionType(ir.VoidType(), kinds)
        prefetch = known if known is not None else ir.Function(module, kind, _PREFETCH)
        read, second_cache, data = INDEX(0), INDEX(2), INDEX(1)
        self.f.builder.call(prefetch, [self.value, read, second_cache, data])

    def wide(self) -> Pointer:
        """The same address, of float64 numbers."""
        return Pointer(self.f, self.value, Element.DOUBLE)

    def bfloat16(self) -> Pointer:
        """The same address, of bfloat16 numbers."""
        return Pointer(self.f, self.value, Element.BFLOAT16)

    def at(self, value: Any) -> Pointer:
        """Such a pointer at another LLVM address."""
        return Pointer(self.f, value, self.element)

    def of(self, element: Element) -> Pointer:
        """The same address, of such numbers."""
        return Pointer(self.f, self.value, element)

    def is_null(self) -> Bool:
        """Whether it points to nothing."""
        return Bool(self.f, self.f.builder.icmp_unsigned("==", self.f.builder.ptrtoint(self.value, INT), INT(0)))

    def is_given(self) -> Bool:
        """Whether it points to something."""
        return Bool(self.f, self.f.builder.icmp_unsigned("!=", self.f.builder.ptrtoint(self.value, INT), INT(0)))


Value = Int | Vector | Pointer


class Carried:
    """Values that a loop takes from one turn to the next; set `values` to those of the next turn.

    After the loop they are the last turn's.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self.values: Any = tuple(values)


class Function:
    """A kernel while it is written down."""

    def __init__(self, name: str, lanes: int, function: Any, rounds_at_once: bool = False) -> None:
        self.name, self.lanes, self.function, self.rounds_at_once = name, lanes, function, rounds_at_once
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.vector_type, self.wide_type = ir.VectorType(FLOAT, lanes), ir.VectorType(DOUBLE, lanes)

    def number(self, value: int | Int) -> Int:
        """An integer, constant or not."""
        return value if isinstance(value, Int) else Int(self, INT(value))

    def constant(self, value: float) -> Vector:
        """`value` in all lanes."""
        return Vector(self, ir.Constant(self.vector_type, [float(value)] * self.lanes))

    def nothing(self) -> Pointer:
        """A pointer to nothing."""
        return Pointer(self, ir.Constant(FLOAT.as_pointer(), None))

    def splat(self, number: Any) -> Vector:
        """One LLVM float in all lanes."""
        nothing = ir.Constant(self.vector_type, ir.Undefined)
        first = self.builder.insert_element(nothing, number, INDEX(0))
        everywhere = ir.Constant(ir.VectorType(INDEX, self.lanes), [0] * self.lanes)
        return Vector(self, self.builder.shuffle_vector(first, nothing, everywhere))

    def fma(self, a: Vector, b: Vector, c: Vector) -> Vector:
        """``a * b + c``, rounded once."""
        name = f"llvm.fma.v{self.lanes}f32"
        module = self.function.module
        known = module.globals.get(name)
        kind = self.vector_type
        fma = known if known is not None else ir.Function(module, ir.FunctionType(kind, [kind] * 3), name)
        return Vector(self, self.builder.call(fma, [a.value, b.value, c.value]))

    def power_of_two(self, shifted: Vector) -> Vector:
        """2^n of whole numbers n from -126 to 127, made from ``n + 1.5 * 2^23``, whose last bits are those of n."""
        kind = ir.VectorType(INDEX, self.lanes)
        places, bias = (ir.Constant(kind, [value] * self.lanes) for value in (23, 0x3F800000))
        bits = self.builder.shl(self.builder.bitcast(shifted.value, kind), places)
        return Vector(self, self.builder.bitcast(self.builder.add(bits, bias), self.vector_type))

    def split_power(self, x: Vector) -> tuple[Vector, Vector]:
        """Whole numbers n and fractions from 1 to 2 with ``x = 2^n * fraction``, of normal numbers above zero."""
        kind, builder = ir.VectorType(INDEX, self.lanes), self.builder
        bits = builder.bitcast(x.value, kind)
        power = builder.sub(builder.lshr(bits, _constant(kind, 23)), _constant(kind, 127))
        fraction = builder.or_(builder.and_(bits, _constant(kind, 0x7FFFFF)), _constant(kind, 0x3F800000))
        return (
            Vector(self, builder.sitofp(power, self.vector_type)),
            Vector(self, builder.bitcast(fraction, self.vector_type)),
        )

    def widened(self, halves: Any) -> Any:
        """LLVM float32 number or vector, from the 16 bits of bfloat16 numbers."""
        bits = _like(halves.type, INDEX)
        whole = self.builder.shl(self.builder.zext(halves, bits), _constant(bits, 16))
        return self.builder.bitcast(whole, _like(halves.type, FLOAT))

    def rounded(self, floats: Any) -> Any:
        """The 16 bits of bfloat16 numbers nearest to an LLVM float32 number or vector; ties to even, NaN stays NaN."""
        builder, kind = self.builder, _like(floats.type, INDEX)
        if self.rounds_at_once:
            return builder.bitcast(builder.fptrunc(floats, _like(kind, _BFloat16())), _like(kind, HALF))
        bits = builder.bitcast(floats, kind)
        odd = builder.and_(builder.lshr(bits, _constant(kind, 16)), _constant(kind, 1))
        nearest = builder.add(bits, builder.add(odd, _constant(kind, 0x7FFF)))
        quiet = builder.or_(bits, _constant(kind, 0x400000))
        chosen = builder.select(builder.fcmp_unordered("uno", floats, floats), quiet, nearest)
        return builder.trunc(builder.lshr(chosen, _constant(kind, 16)), _like(kind, HALF))

    def _choose(self, condition: Any, a: Any, b: Any) -> Any:
        assert not isinstance(a, Pointer) or a.element is b.element
        return self._like(a, self.builder.select(condition, a.value, b.value))

    def _like(self, value: Any, number: Any) -> Any:
        """An LLVM number as what `value` is: a pointer points to the same kind of numbers."""
        return value.at(number) if isinstance(value, Pointer) else type(value)(self, number)

    def choose(self, condition: Bool, a: Any, b: Any) -> Any:
        """`a` where the condition holds, else `b`; integers, vectors or pointers."""
        return self._choose(condition.value, a, b)

    def smaller(self, a: int | Int, b: int | Int) -> Int:
        """The smaller integer."""
        a, b = self.number(a), self.number(b)
        return Int(self, self.builder.select((a < b).value, a.value, b.value))

    def larger(self, a: int | Int, b: int | Int) -> Int:
        """The larger integer."""
        a, b = self.number(a), self.number(b)
        return Int(self, self.builder.select((a < b).value, b.value, a.value))

    def largest(self, a: Vector, b: Vector) -> Vector:
        """Lane by lane `a` where it is larger, else `b`."""
        return Vector(self, self.builder.select(self._above(a, b), a.value, b.value))

    def leaky(self, x: Vector, slope: Vector) -> Vector:
        """`x` where it is above zero, else ``x * slope``: leaky ReLU."""
        zero = ir.Constant(self.vector_type, [0.0] * self.lanes)
        return Vector(self, self.builder.select(self._above(x, Vector(self, zero)), x.value, (x * slope).value))

    def leaky_gradient(self, gradient: Vector, x: Vector, slope: Vector) -> Vector:
        """`gradient` where `x` is above zero, else ``gradient * slope``."""
        zero = ir.Constant(self.vector_type, [0.0] * self.lanes)
        above = self._above(x, Vector(self, zero))
        return Vector(self, self.builder.select(above, gradient.value, (gradient * slope).value))

    def take_where_above(self, a: Vector, b: Vector, new: Vector, old: Vector) -> Vector:
        """Lane by lane `new` where ``a > b``, else `old`."""
        return Vector(self, self.builder.select(self._above(a, b), new.value, old.value))

    def take_where_equal(self, a: Vector, b: Vector, new: Vector, old: Vector) -> Vector:
        """Lane by lane `new` where ``a == b``, else `old`."""
        return Vector(
            self, self.builder.select(self.builder.fcmp_ordered("==", a.value, b.value), new.value, old.value)
        )

    def _above(self, a: Vector, b: Vector) -> Any:
        return self.builder.fcmp_ordered(">", a.value, b.value)

    @contextmanager
    def loop(
        self, stop: int | Int, start: int | Int = 0, step: int = 1, carried: Sequence[Value] = ()
    ) -> Iterator[tuple[Int, Carried]]:
        """``for i in range(start, stop, step)`` at run time."""
        builder, first, end = self.builder, self.number(start), self.number(stop)
        before = builder.block
        head, body, after = (self.function.append_basic_block(f"loop.{part}") for part in ("head", "body", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.phi(INT)
        i.add_incoming(first.value, before)
        phis = [builder.phi(value.value.type) for value in carried]
        for phi, value in zip(phis, carried, strict=True):
            phi.add_incoming(value.value, before)
        state = Carried([self._like(value, phi) for phi, value in zip(phis, carried, strict=True)])
        builder.cbranch(builder.icmp_signed("<", i, end.value), body, after)
        builder.position_at_end(body)
        yield Int(self, i), state
        i.add_incoming(builder.add(i, INT(step)), builder.block)
        for phi, value in zip(phis, state.values, strict=True):
            phi.add_incoming(value.value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        state.values = tuple(self._like(value, phi) for phi, value in zip(phis, carried, strict=True))

    @contextmanager
    def when(self, condition: Bool) -> Iterator[None]:
        """What follows, only where the condition holds."""
        with self.builder.if_then(condition.value):
            yield

    @contextmanager
    def either(self, condition: Bool) -> Iterator[tuple[Any, Any]]:
        """``with f.either(c) as (then, otherwise): with then: ...; with otherwise: ...``"""
        with self.builder.if_else(condition.value) as branches:
            yield branches


def _like(shape: Any, kind: Any) -> Any:
    """The type `kind`, or a vector of it that is as long as the vector type `shape`."""
    return ir.VectorType(kind, shape.count) if isinstance(shape, ir.VectorType) else kind


def _constant(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


_TYPES = {Int: INT, Pointer: FLOAT.as_pointer()}
Body = Callable[..., None]


class Module:
    """Kernels that are compiled together, for vectors of `lanes` floats."""

    def __init__(self, lanes: int, rounds_at_once: bool = False) -> None:
        """rounds_at_once  the processor has an instruction that rounds to bfloat16 (AVX512_BF16): denormals become 0"""
        self.lanes, self._rounds_at_once = lanes, rounds_at_once
        self.module = ir.Module()
        self.entries: dict[str, dict[str, type]] = {}

    def define(self, body: Body) -> Body:
        """`body` as a function; the result, called in another body, writes down a call of it.

        The function itself is written down at the first call, and again for pointers to other kinds of numbers.
        """
        kinds, written = _parameters(body), dict[tuple[Element | None, ...], Any]()

        def call(caller: Function, *arguments: Any) -> None:
            values = [
                caller.number(value) if isinstance(value, int) else value
                for (name, kind), argument in zip(kinds.items(), arguments, strict=True)
                for value in disassemble(kind, argument, name)
            ]
            elements = tuple(value.element if isinstance(value, Pointer) else None for value in values)
            if elements not in written:
                written[elements] = self._write_down(body, kinds, elements)
            caller.builder.call(written[elements], [value.value for value in values])

        return call

    def _write_down(self, body: Body, kinds: dict[str, type], elements: Sequence[Element | None]) -> Any:
        """The function of a body, whose pointers, among its parameters' numbers, are to such elements."""
        name = self.module.get_unique_name(body.__name__)
        f, function = self._begin(name, [self._type(n) for kind in kinds.values() for n in numbers_of(kind)])
        numbers = zip(function.args, elements, strict=True)

        def next_number(kind: type) -> Any:
            value, element = next(numbers)
            return kind(f, value) if element is None else Pointer(f, value, element)

        body(f, *(assemble(kind, next_number) for kind in kinds.values()))
        f.builder.ret_void()
        function.linkage = "internal"
        function.attributes.add("noinline")  # inlined, the larger kernels take three times as long to compile
        return function

    def entry(self, body: Body) -> Body:
        """Write down `body` as a function that Python calls: ``body(f, first, last, scratch, *, named, ...)``.

        first, last  the range of work items to do
        scratch      this thread's memory
        named        what `compiler.Entry.bind` is given by name: integers, pointers, floats (as vectors), structures
        """
        kinds = _parameters(body)
        named = dict(list(kinds.items())[3:])
        f, function = self._begin(body.__name__, [INT.as_pointer(), INT, INT, FLOAT.as_pointer()])
        places = count()

        def next_number(kind: type) -> Any:
            word = f.builder.load(f.builder.gep(function.args[0], [INT(next(places))]))
            if kind is Pointer:
                return Pointer(f, f.builder.inttoptr(word, FLOAT.as_pointer()))
            if kind is Vector:
                return f.splat(f.builder.bitcast(f.builder.trunc(word, INDEX), FLOAT))
            return Int(f, word)

        values = {name: assemble(kind, next_number) for name, kind in named.items()}
        first, last, scratch = function.args[1:]
        body(f, Int(f, first), Int(f, last), Pointer(f, scratch), **values)
        f.builder.ret_void()
        self.entries[body.__name__] = named
        return body

    def _type(self, kind: type) -> Any:
        return ir.VectorType(FLOAT, self.lanes) if kind is Vector else _TYPES[kind]

    def _begin(self, name: str, types: list[Any]) -> tuple[Function, Any]:
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), types), name)
        function.attributes.add("nounwind")
        return Function(name, self.lanes, function, self._rounds_at_once), function


def _parameters(body: Body) -> dict[str, type]:
    hints = get_type_hints(body)
    return {name: hints[name] for name in list(inspect.signature(body).parameters)[1:]}
