"""Machine code of a module of kernels, made by LLVM for this processor, and how it is written to a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from llvmlite import binding

from volseg.nn.kernels.jit.language import Int, Module, Pointer, Vector

_MAGIC = b"volseg kernels 1\n"
_NUMBERS: dict[str, type] = {kind.__name__: kind for kind in (Int, Pointer, Vector)}
_DIGEST = hashlib.sha256().digest_size

_made = 0


@dataclass(frozen=True)
class MachineCode:
    """What a module of kernels became.

    lanes     floats of a vector
    entries   for each function that Python calls the types of its named parameters (`language.Module.entries`)
    compiled  a relocatable object file of this system, such as ELF
    """

    lanes: int
    entries: Mapping[str, Mapping[str, type]]
    compiled: bytes

    def to_bytes(self, key: str) -> bytes:
        """The content of a file that holds this code: a checksum of the rest, a line of JSON, the object file.

        key  what the code is known by; the file repeats it
        """
        entries = {
            name: {parameter: _name_of(kind) for parameter, kind in parameters.items()}
            for name, parameters in self.entries.items()
        }
        head = json.dumps({"key": key, "lanes": self.lanes, "entries": entries})
        rest = head.encode() + b"\n" + self.compiled
        return _MAGIC + hashlib.sha256(rest).digest() + rest

    @staticmethod
    def from_bytes(content: bytes, key: str) -> MachineCode | None:
        """The code that `to_bytes` wrote with the same key; None where this is anything else, or damaged."""
        begin = len(_MAGIC) + _DIGEST
        rest = content[begin:]
        if content[:begin] != _MAGIC + hashlib.sha256(rest).digest():
            return None
        line, _, compiled = rest.partition(b"\n")
        head = json.loads(line)
        if head["key"] != key:
            return None
        entries = {
            name: {parameter: _type_of(kind) for parameter, kind in parameters.items()}
            for name, parameters in head["entries"].items()
        }
        return MachineCode(head["lanes"], entries, compiled)


def _name_of(kind: type) -> str:
    """The name of a parameter's type; of a structure with its module."""
    return kind.__name__ if kind in _NUMBERS.values() else f"{kind.__module__}:{kind.__qualname__}"


def _type_of(name: str) -> type:
    """The type that `_name_of` named."""
    if name in _NUMBERS:
        return _NUMBERS[name]
    module, _, structure = name.partition(":")
    kind: type = getattr(import_module(module), structure)
    return kind


@cache
def _initialize() -> None:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()


def _target_machine() -> Any:
    """A description of this processor; an engine takes it over, so each needs its own."""
    _initialize()
    target = binding.Target.from_default_triple()
    features = binding.get_host_cpu_features().flatten()
    return target.create_target_machine(cpu=binding.get_host_cpu_name(), features=features, opt=3)


def compiled(module: Module) -> MachineCode:
    """The machine code of a module that is written down."""
    global _made
    _made += 1
    parsed = binding.parse_assembly(str(module.module))
    parsed.verify()
    # No passes over the whole module: the kernels are vectorised and unrolled by hand, and code generation alone made
    # them as fast, in half the time.
    return MachineCode(module.lanes, module.entries, _target_machine().emit_object(parsed))


def compiled_modules() -> int:
    """How many modules this process has compiled."""
    return _made


def engine_of(code: MachineCode) -> Any:
    """An engine of LLVM that has loaded the code and gives its functions' addresses; the code lives as long."""
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _target_machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(code.compiled))
    engine.finalize_object()
    return engine
