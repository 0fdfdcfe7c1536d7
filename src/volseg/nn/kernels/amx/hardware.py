"""Whether this process may use AMX tiles, and whether they compute what they should."""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache

import numpy as np
import torch
from torch import Tensor

from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once, processor_has, widest_vector
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer
from volseg.nn.kernels.jit.tiles import INNER, ROWS, Tiles, configuration

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
"""The system call of Linux on x86-64 by which a process asks for the tiles' memory, once for all of its threads."""

_FEATURES = ("amx-tile", "amx-bf16", "avx512bf16")
"""LLVM's names: tiles, their products, and rounding by one instruction."""


def available() -> bool:
    """Whether the kernels here run: `refusal` says why not."""
    return refusal() is None


@cache
def refusal() -> str | None:
    """Why the kernels here do not run on this machine, as the end of a sentence; None where they do.

    The processor must have the instructions, the system must allow them to this process, and a product must be right.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "bfloat16 tiles (AMX) are used on Linux on x86-64 alone"
    if not (all(map(processor_has, _FEATURES)) and widest_vector() == ROWS):
        return "this processor has no bfloat16 tiles (amx_tile, amx_bf16 and avx512_bf16 in /proc/cpuinfo)"
    if ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) != 0:
        return "the system refuses this process the processor's bfloat16 tiles (Linux 5.16 or newer allows them)"
    if not _computes():
        return "the processor's bfloat16 tiles do not compute what they should"
    return None


@cache
def tile_configuration(columns: int) -> Tensor:
    """What `Tiles.configure` reads, for sums of so many columns; kept, as kernels have its address.

    Raises AssertionError where the tiles are not available: a kernel would end the process.
    """
    why = refusal()
    if why is not None:
        raise AssertionError(why)
    return torch.tensor(configuration(columns))


@compiled_once
def _product_library() -> Library:
    module = Module(ROWS)

    @module.entry
    def product(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        tiles: Pointer, left: Pointer, right: Pointer, out: Pointer,
    ) -> None:  # fmt: skip
        """out [16, 16] += left [16, 32] times right [16, 16, 2]."""
        tile = Tiles(f)
        tile.configure(tiles)
        tile.load(0, out, 64)
        tile.load(4, left, 64)
        tile.load(6, right, 64)
        tile.add_product(0, 4, 6)
        tile.store(0, out, 64)
        tile.release()

    return Library(module)


def product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Add left [16, 32] times right [32, 16], both bfloat16, to `out` [16, 16] float32, by one product of tiles."""
    paired = right.unflatten(0, (-1, 2)).transpose(1, 2).contiguous()
    job = _product_library()["product"].bind(
        tiles=torch.tensor(configuration(ROWS)), left=left.contiguous(), right=paired, out=out
    )
    workers.run(job, 1)


def _computes() -> bool:
    """Whether a product of whole numbers, exact in float32, is what numpy says."""
    numbers = np.random.default_rng(0)
    left, right, before = (
        numbers.integers(-100, 100, shape).astype(np.float32) for shape in ((ROWS, INNER), (INNER, ROWS), (ROWS, ROWS))
    )
    out = torch.from_numpy(before.copy())
    product(torch.from_numpy(left).bfloat16(), torch.from_numpy(right).bfloat16(), out)
    return bool(np.array_equal(out.numpy(), before + left @ right))
