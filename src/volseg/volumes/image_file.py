"""One channel of a scan on disk: a file of its own, or a part of a 4-D one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from volseg.volumes.formats.registry import format_at
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Volume


@dataclass(frozen=True)
class ImageFile:
    """Where one image channel lies.

    path     a file, or a folder (.zarr, DICOM)
    channel  which volume of a file of several channels (4-D NIfTI), counted from 0; None: the file holds one
    """

    path: Path
    channel: int | None = None

    def open(self, options: OpenOptions = OpenOptions()) -> Volume:  # noqa: B008  (frozen)
        """Only headers are read. Raises as `open_volume` does."""
        return open_volume(self.path, options, self.channel)

    def __str__(self) -> str:
        return str(self.path) if self.channel is None else f"{self.path}, channel {self.channel}"


def channels_of_file(path: Path, channels: int) -> tuple[ImageFile, ...]:
    """The `channels` image channels in one file, which is 4-D where there are several."""
    return (ImageFile(path),) if channels == 1 else tuple(ImageFile(path, channel) for channel in range(channels))


def count_channels(path: Path) -> int:
    """How many channels a file holds: the fourth axis of a 4-D NIfTI file, else 1. Raises VolumeError."""
    format = format_at(path)
    return 1 if format is None or format.channels is None else format.channels(path)
