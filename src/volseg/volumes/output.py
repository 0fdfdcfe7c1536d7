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
from volseg.volumes.nifti.forms import Forms
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
    forms     how the scan's NIfTI header says where its voxels lie; None where the scan has none, or another grid
    """

    space: Space
    dtype: np.dtype[Any]
    channels: int | None = None
    names: tuple[str, ...] = ()
    labels: LabelTable | None = None
    fixes: tuple[str, ...] = ()
    forms: Forms | None = None


def units_of(boxes: Sequence[Box], channels: int | None) -> list[Unit]:
    """The boxes of one channel after the other, or of a volume without channels."""
    names: list[int | None] = [None] if channels is None else list(range(channels))
    return [Unit(channel, box) for channel in names for box in boxes]


def shrinks_to(content: Content) -> int:
    """To which part of its size, 1 in so many, a compressed volume shrinks at best: labels, HU, probabilities."""
    return 200 if content.labels is not None else 10 if content.dtype.kind == "f" else 5


class Output(ABC):
    """One file format, as `write_volume` drives it. `units` are in the order of the file."""

    units: Sequence[Unit]

    @property
    @abstractmethod
    def least_bytes(self) -> int:
        """Of the disk, that it will need at least: exact where nothing is compressed, else what such data shrink to."""

    def rehearse(self) -> tuple[str, ...]:
        """On the root rank, before the voxels are computed: try all that can refuse them later.

        out  what the user should know of the file, one line each

        Raises VolumeError as writing would.
        """
        return ()

    @abstractmethod
    def create(self, temporary: Path) -> None:
        """On the root rank: make the temporary file or folder, and what describes the volume."""

    @abstractmethod
    def open(self, temporary: Path) -> None:
        """On every rank, after `create`."""

    @abstractmethod
    def encode(self, unit: Unit, voxels: np.ndarray) -> Any:
        """A sized piece of the file for one unit."""

    def note(self, piece: Any) -> Any:
        """What all ranks must learn of this rank's piece, sent along with its size; None: nothing."""
        return None

    def hear(self, notes: Sequence[Any]) -> None:  # noqa: B027
        """The notes on a round's pieces, in the order of the units. On every rank, before `store`."""

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
