"""Objects that do harm where somebody unpickles them."""

from __future__ import annotations

import os
from pathlib import Path


class Runs:
    """Unpickled, it runs a command that leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.mark}'",)
