"""volseg: 3D U-Nets on whole volumes, split over MPI ranks."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "all_ranks", "calibrate", "check", "evaluate", "export", "generate", "import_model", "info", "ingest",
    "plan_partition", "run_study", "segment", "train", "verify_partition",
]  # fmt: skip
"""What `volseg.api` has; for editors and type checkers they stand in __init__.pyi, so that nothing is imported here."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("volseg.api"), name)
    raise AttributeError(f"module 'volseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
