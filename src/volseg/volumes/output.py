"""What a file format must offer so that many ranks can write one volume of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.geometry import Box
from volseg.volumes.label_table import LabelTable
from volseg.volumes.volume import Space


@dataclass(frozen=True)
class Unit:
    """What one rank hands over at a time: a box of one channel, or of a volume without channels."""

    channel: int | None
    box: Box


@dataclass(frozen=True)
class Content:
    """What a file is to hold, whatever its format.

    channels  K of them; None: a volume without channels
    names     of the channels
    labels    says that this is a mask: names and colours
    fixes     what was mended in the data on the way here (`Audit.fixes`)
    """

    space: Space
    dtype: np.dtype[Any]
    channels: int | None = None
    names: tuple[str, ...] = ()
    labels: LabelTable | None = None
    fixes: tuple[str, ...] = ()


def units_of(boxes: Sequence[Box], channels: int | None) -> list[Unit]:
    """The boxes of one channel after the other, or of a volume without channels."""
    names: list[int | None] = [None] if channels is None else list(range(channels))
    return [Unit(channel, box) for channel in names for box in boxes]


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
