"""From a module of kernels to functions that Python can call."""

from __future__ import annotations

import ctypes
import struct
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from llvmlite import binding
from torch import Tensor

from volseg.nn.kernels.jit.code_folder import CodeFolder, chosen_folder
from volseg.nn.kernels.jit.code_key import file_name, key_of
from volseg.nn.kernels.jit.language import Module, Vector
from volseg.nn.kernels.jit.machine_code import MachineCode, compiled, engine_of
from volseg.nn.kernels.jit.structures import disassemble, numbers_of

_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


@cache
def _features() -> dict[str, bool]:
    return dict(binding.get_host_cpu_features())


def processor_has(feature: str) -> bool:
    """Whether this processor, as the system lets programs use it, has a feature that LLVM calls so."""
    return _features().get(feature, False)


@cache
def widest_vector() -> int:
    """How many floats this processor's vectors hold: 16, 8, or 0 where it has no fused multiply-add.

    Also 0 where the system does not let a program run code that it has written itself.
    """
    try:
        binding.check_jit_execution()
    except OSError:
        return 0
    features = _features()
    if features.get("avx512f") and features.get("avx512vl") and features.get("avx512dq"):
        return 16
    if (features.get("avx2") and features.get("fma")) or features.get("neon") or _is_arm64():
        return 8
    return 0


def _is_arm64() -> bool:
    import platform

    return platform.machine().lower() in ("arm64", "aarch64")


class Library:
    """A compiled module; its machine code lives as long as this object."""

    def __init__(self, kernels: Module | MachineCode) -> None:
        self.code = kernels if isinstance(kernels, MachineCode) else compiled(kernels)
        self._engine = engine_of(self.code)
        self.lanes = self.code.lanes
        self._entries = {
            name: Entry(self, name, self._engine.get_function_address(name), parameters)
            for name, parameters in self.code.entries.items()
        }

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]


_compiling = 0.0


def compiled_once(build: Callable[..., Library]) -> Callable[..., Library]:
    """A function that builds a library, built once for each of its arguments; `compile_seconds` counts how long.

    What an earlier process built is loaded from the folder of `code_folder.py`; `code_key.py` says what is the same.
    """

    @cache
    def built(*arguments: Any) -> Library:
        global _compiling
        begin = time.perf_counter()
        library = _loaded_or_built(build, arguments)
        _compiling += time.perf_counter() - begin
        return library

    return built


def _loaded_or_built(build: Callable[..., Library], arguments: tuple[Any, ...]) -> Library:
    path = chosen_folder()
    if path is None:
        return build(*arguments)
    folder, key = CodeFolder(path), key_of(build, arguments)
    code = _kept(folder, key)
    if code is not None:
        return Library(code)
    library = build(*arguments)
    if _kept(folder, key) is None:  # of many ranks that start together most come too late, and have no need to write
        folder.write(file_name(key), library.code.to_bytes(key))
    return library


def _kept(folder: CodeFolder, key: str) -> MachineCode | None:
    content = folder.read(file_name(key))
    return None if content is None else MachineCode.from_bytes(content, key)


def compile_seconds() -> float:
    """Seconds that this process has spent on compiling kernels, or on loading what was compiled."""
    return _compiling


class Job:
    """An entry with all that it needs but the range of work items: ``job(first, last, scratch)``. Releases the GIL."""

    def __init__(self, entry: Entry, record: np.ndarray, held: list[Any]) -> None:
        self._call, self._record, self._held = entry.call, record, held
        self._address = record.ctypes.data

    def __call__(self, first: int, last: int, scratch: int = 0) -> None:
        self._call(self._address, first, last, scratch)


class Entry:
    """A function of a `Library`."""

    def __init__(self, library: Library, name: str, address: int, parameters: Mapping[str, type]) -> None:
        self.name, self.parameters = name, parameters
        self._library = library
        kinds = [number for kind in parameters.values() for number in numbers_of(kind)]
        self._vectors = [place for place, kind in enumerate(kinds) if kind is Vector]
        self.call: Callable[..., None] = _CALL(address)

    def bind(self, **values: Any) -> Job:
        """The function with its named parameters.

        values  numbers, CPU tensors (float32, float64, bfloat16, int64), addresses, None for none; structures as
                dictionaries from the names of their fields or as objects that have them, None for one whose numbers
                are all zero
        """
        if values.keys() != self.parameters.keys():
            raise AssertionError(f"{self.name}: {sorted(values.keys() ^ self.parameters.keys())}")
        numbers: list[Any] = []
        for name, kind in self.parameters.items():
            numbers += disassemble(kind, values[name], name)
        for place in self._vectors:
            numbers[place] = _bits(numbers[place] or 0.0)
        held = [number for number in numbers if isinstance(number, Tensor)]
        words = [number if type(number) is int else _word(number) for number in numbers]
        return Job(self, np.array(words, dtype=np.int64), held)


def _word(number: Any) -> int:
    return address(number) if isinstance(number, Tensor) else int(number or 0)


@lru_cache(maxsize=64)
def _bits(value: float) -> int:
    """A float32 as the whole number with the same bits."""
    return int.from_bytes(struct.pack("<f", value), sys.byteorder, signed=True)


def address(tensor: Tensor) -> int:
    """Where a CPU tensor's first value lies."""
    if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.int64):
        raise AssertionError(f"no memory for a kernel: {tensor.dtype} on {tensor.device}")
    return tensor.data_ptr()
