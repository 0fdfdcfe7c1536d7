"""What a file format must offer so that many ranks can write one volume of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.geometry import Box


@dataclass(frozen=True)
class Unit:
    """What one rank hands over at a time: a box of one channel, or of a volume without channels."""

    channel: int | None
    box: Box


class Output(ABC):
    """One file format, as `write_volume` drives it. `units` are in the order of the file."""

    units: Sequence[Unit]

    @abstractmethod
    def create(self, temporary: Path) -> None:
        """On the root rank: make the temporary file or folder, and what describes the volume."""

    @abstractmethod
    def open(self, temporary: Path) -> None:
        """On every rank, after `create`."""

    @abstractmethod
    def encode(self, unit: Unit, voxels: np.ndarray) -> Any:
        """A sized piece of the file for one unit."""

    @abstractmethod
    def store(self, unit: Unit | None, piece: Any, before: int, total: int) -> None:
        """Put this rank's piece in its place. Local.

        In this round the ranks below this one hold pieces of `before` in all, and all ranks together of `total`.
        """

    @abstractmethod
    def finish(self) -> None:
        """On every rank: flush what was stored to disk."""

    @abstractmethod
    def publish(self, temporary: Path, path: Path) -> None:
        """On the root rank, after all have finished: give it its name."""

    def abandon(self) -> None:  # noqa: B027
        """Let go of open files after a failure."""
