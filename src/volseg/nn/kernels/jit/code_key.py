"""What machine code is known by: all that it depends on, so that a look-up need not write the kernel down again.

A kernel follows from the function that builds it, that function's arguments, the sources of the modules that it calls,
LLVM, and the processor. Writing a kernel down in LLVM's language takes a fifth of the time that it costs, so the
key is made of these and not of what is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
from llvmlite import binding

import volseg

SOURCES = (
    "*.py",
    "networks/description.py",
    "nn/anywhere.py",
    "nn/elementwise.py",
    "nn/kernels/**/*.py",
    "partition/*.py",
)
"""Files of volseg that say what a kernel is: all that builders of kernels import, and some that lie beside."""


def key_of(build: Callable[..., Any], arguments: Sequence[Any]) -> str:
    """A text that differs wherever ``build(*arguments)`` may compile to other machine code.

    build      a function of volseg at the top of its module
    arguments  whole numbers, texts, truth values, None, members of enumerations, tuples, and dataclasses of such

    Raises AssertionError where an argument is anything else, since it may be written alike and mean another kernel.
    """
    call = f"{build.__module__}.{build.__qualname__}{_written(tuple(arguments))}"
    return "\n".join([call, source_digest(), *processor()])


def file_name(key: str) -> str:
    """The name of the file for a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _written(value: Any) -> str:
    """An argument as text, the same in every process."""
    if value is None or isinstance(value, str | int | Enum):
        return f"{value!r}"
    if isinstance(value, tuple):
        return f"({','.join(map(_written, value))})"
    if is_dataclass(value):
        numbers = (f"{field.name}={_written(getattr(value, field.name))}" for field in fields(value))
        return f"{type(value).__qualname__}({','.join(numbers)})"
    raise AssertionError(f"a kernel's argument is a {type(value).__name__}, which a key has no words for: {value!r}")


@cache
def processor() -> tuple[str, ...]:
    """The compiler, the system, the processor's name and what it can do, each as text."""
    version = ".".join(map(str, binding.llvm_version_info))
    features = binding.get_host_cpu_features().flatten()
    compiler = f"llvmlite {llvmlite.__version__}, LLVM {version}"
    return compiler, binding.get_default_triple(), binding.get_host_cpu_name(), features


@cache
def source_digest() -> str:
    """The `digest_of` the volseg that runs."""
    return digest_of(Path(volseg.__file__).parent)


def digest_of(root: Path) -> str:
    """A hash of all `SOURCES` of the package at `root`, their names included."""
    digest = hashlib.sha256()
    for file in source_files(root):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def source_files(root: Path) -> Iterator[Path]:
    """The files of `SOURCES` in the package at `root`, always in the same order."""
    for pattern in SOURCES:
        yield from sorted(root.glob(pattern))
