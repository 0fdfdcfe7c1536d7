"""What `volseg export` is asked for, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from volseg.geometry import Triple

Tool = Literal["nnunet", "torch"]


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What to export.

    run        a run folder, trained or imported
    tool       who is to open it
    output     the folder to make
    window     voxels of the windows that nnU-Net is to run it on; None: those that it was trained on, else what fits
    overwrite  replace an earlier export
    """

    run: Path
    tool: Tool
    output: Path
    window: Triple | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was exported.

    files  names in the folder, sorted
    notes  what the other tool does otherwise, in sentences
    """

    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
