"""AMX in the language of kernels: eight tiles of up to 16 rows of 64 bytes, and products of bfloat16 matrices in them.

A thread says what its tiles are (`configure`) before it uses them and gives them back (`release`) at its end. Tile
`into` gets, for each row m and column n, in this order of operations (Intel's manual, TDPBF16PS; shown by
`tests/nn/kernels/test_amx.py`): the sum of the products of all even k by fused multiply-adds, that of all odd k, their
sum, and this added to what stood there. Denormal numbers count as zero.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from volseg.nn.kernels.jit.language import FLOAT, HALF, INDEX, Function, Int, Pointer

ROWS, INNER = 16, 32
"""Of a tile: its rows, and the bfloat16 numbers of one of them."""

_TILE, _ADDRESS = ir.IntType(8), FLOAT.as_pointer()
_PAIRS = ir.VectorType(INDEX, ROWS)


def configuration(columns: int) -> list[int]:
    """Eight 64-bit words for `Tiles.configure`, by the tiles' `roles`.

    columns  of sums, in float32, and of right factors, in pairs; left factors have INNER numbers
    """
    sums, left, right = roles()
    width = {**dict.fromkeys(sums, 4 * columns), **dict.fromkeys(left, 2 * INNER), **dict.fromkeys(right, 4 * columns)}
    record = bytearray(64)
    record[0] = 1  # the palette
    for tile in range(8):
        record[16 + 2 * tile : 18 + 2 * tile] = width[tile].to_bytes(2, "little")
        record[48 + tile] = ROWS
    return [int.from_bytes(record[n : n + 8], "little", signed=True) for n in range(0, 64, 8)]


def roles() -> tuple[range, range, range]:
    """The tiles that hold sums, left factors and right factors."""
    return range(4), range(4, 6), range(6, 8)


class Tiles:
    """The tiles, in a kernel while it is written down."""

    def __init__(self, f: Function) -> None:
        self._f = f

    def _call(self, name: str, *arguments: Any) -> None:
        kinds = [argument.type for argument in arguments]
        function = self._f.known(f"llvm.x86.{name}", ir.FunctionType(ir.VoidType(), kinds))
        self._f.builder.call(function, list(arguments))

    def configure(self, configuration: Pointer) -> None:
        """Say what the tiles of this thread are; all become zero."""
        self._call("ldtilecfg", configuration.value)

    def release(self) -> None:
        """Give the tiles back: what is in them need not be kept any more."""
        self._call("tilerelease")

    def zero(self, tile: int) -> None:
        """Fill a tile with zero."""
        self._call("tilezero", _TILE(tile))

    def load(self, tile: int, place: Pointer, stride: int | Int) -> None:
        """Fill a tile from rows that lie `stride` bytes apart."""
        self._call("tileloadd64", _TILE(tile), place.value, self._f.number(stride).value)

    def store(self, tile: int, place: Pointer, stride: int | Int) -> None:
        """Write a tile to rows that lie `stride` bytes apart."""
        self._call("tilestored64", _TILE(tile), place.value, self._f.number(stride).value)

    def add_product(self, into: int, left: int, right: int) -> None:
        """into[m, n] += sum over k of left[m, k] * right[k, n].

        left   [16, 32] bfloat16
        right  [16 pairs of k, columns, 2] bfloat16
        """
        self._call("tdpbf16ps", _TILE(into), _TILE(left), _TILE(right))


def pairs(f: Function, first: Pointer, second: Pointer, lanes: int = ROWS) -> Any:
    """So many bfloat16 numbers from either place, side by side: an LLVM vector of pairs."""
    kind = ir.VectorType(INDEX, lanes)

    def wide(place: Pointer) -> Any:
        halves = f.builder.bitcast(place.value, ir.VectorType(HALF, lanes).as_pointer())
        return f.builder.zext(f.builder.load(halves, align=2), kind)

    return f.builder.or_(wide(first), f.builder.shl(wide(second), ir.Constant(kind, [16] * lanes)))


def store_pairs(f: Function, vector: Any, place: Pointer) -> None:
    """Write pairs to an address."""
    f.builder.store(vector, f.builder.bitcast(place.value, vector.type.as_pointer()), align=4)


def transposed(f: Function, rows: list[Any]) -> list[Any]:
    """A matrix of 16 x 16 pairs turned: in each of four steps, blocks beside the diagonal change their places.

    (Eklundh, "A fast computer method for matrix transposing", IEEE Trans. Computers 21, 1972.)
    """
    rows = list(rows)
    for step in (8, 4, 2, 1):
        lower = [lane if not lane & step else ROWS + lane - step for lane in range(ROWS)]
        upper = [lane + step if not lane & step else ROWS + lane for lane in range(ROWS)]
        for n in range(ROWS):
            if not n & step:
                a, b = rows[n], rows[n + step]
                rows[n], rows[n + step] = (
                    f.builder.shuffle_vector(a, b, ir.Constant(_PAIRS, mask)) for mask in (lower, upper)
                )
    return rows
