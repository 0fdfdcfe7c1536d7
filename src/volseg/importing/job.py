"""What `volseg import` is asked for, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from volseg.models.stored import ModelCard

Kept = Literal["final", "best"]


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """What to import.

    sources        a folder, a zip, or a file of another tool; several, to be joined into one model
    run            the run folder to make
    configuration  of an nnU-Net result that holds several, such as 3d_fullres; None: that, or the only one
    folds          numbers of folds with commas, such as 0,2, or "all" for the fold of that name; None: all numbered
                   ones, or where there are none, that one
    checkpoint     whether the last weights or the best are taken
    overwrite      replace an earlier import
    """

    sources: tuple[Path, ...]
    run: Path
    configuration: str | None = None
    folds: str | None = None
    checkpoint: Kept = "final"
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was imported.

    card   of the weights that `segment` reads
    facts  plain values: where the model comes from, its network, how it reads scans
    notes  what is done otherwise here than by the model's own tool, in sentences
    """

    card: ModelCard
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()
