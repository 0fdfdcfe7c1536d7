"""Machine code of kernels, kept in a folder while the test suite runs: what one process compiled, the others load.

Some thirty processes run the tests, one for each rank of each run, and most of their kernels are alike. Generating
code from LLVM's intermediate language is about half of what a kernel costs; the other half, writing that language, is
done by every process, and the first to come to a kernel compiles it as a user's process does.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from llvmlite import binding


def share(folder: Path) -> None:
    """Let every engine that this process makes look for its machine code in `folder`, and leave it there."""
    make = binding.create_mcjit_compiler

    def sharing(module: binding.ModuleRef, machine: Any) -> binding.ExecutionEngine:
        engine = make(module, machine)
        file = folder / hashlib.sha256(str(module).encode()).hexdigest()

        def look(_: binding.ModuleRef) -> bytes | None:
            return file.read_bytes() if file.exists() else None

        def keep(_: binding.ModuleRef, code: bytes) -> None:
            written = file.with_suffix(f".{os.getpid()}")
            written.write_bytes(code)
            written.replace(file)  # another process reads a whole file or none

        engine.set_object_cache(keep, look)
        return engine

    binding.create_mcjit_compiler = sharing
