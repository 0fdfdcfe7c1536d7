"""Formats of one file that is a header and then the voxels, plane by plane: all ranks write at their own places."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.files import flush_to_disk
from volseg.geometry import Box, Triple
from volseg.volumes.output import Content, Unit, units_of
from volseg.volumes.shared_file import SharedFile

UNIT_BYTES = 1 << 20


class PlanesOutput(SharedFile):
    """A header, and then little-endian voxels, channel by channel, planes rising."""

    def __init__(self, content: Content, header: bytes | memoryview) -> None:
        """header  all bytes before the voxels."""
        self.dtype = content.dtype.newbyteorder("<")
        self.units = plane_units(content.space.shape, content.dtype, content.channels)
        self.content, self.header = content, header
        super().__init__(len(header))

    @property
    def least_bytes(self) -> int:
        return len(self.header) + self.voxel_bytes

    @property
    def voxel_bytes(self) -> int:
        """Bytes of all voxels."""
        content = self.content
        return math.prod(content.space.shape) * (content.channels or 1) * content.dtype.itemsize

    def create(self, temporary: Path) -> None:
        with temporary.open("xb") as file:
            file.write(self.header)

    def encode(self, unit: Unit, voxels: np.ndarray) -> bytes | memoryview:
        raw = voxels.astype(self.dtype, order="C", casting="same_kind", copy=False)
        return raw.data.cast("B")

    def publish(self, temporary: Path, path: Path) -> None:
        os.replace(temporary, path)
        flush_to_disk(path.parent)


def plane_units(shape: Triple, dtype: np.dtype[Any], channels: int | None) -> list[Unit]:
    """Runs of whole planes of about `UNIT_BYTES`: channel by channel, planes rising."""
    d, h, w = shape
    run = max(1, UNIT_BYTES // max(1, h * w * dtype.itemsize))
    boxes = [Box((start, 0, 0), (min(d, start + run), h, w)) for start in range(0, d, run)]
    return units_of(boxes, channels)


def type_name(names: dict[str, str], dtype: np.dtype[Any], noun: str) -> str:
    """What a format calls a type, by numpy's kind and bytes ("u2"). Raises VolumeError where it has none such."""
    if dtype.str[1:] not in names:
        raise VolumeError(f"a {noun} holds no {dtype} voxels; write float32 or an integer type")
    return names[dtype.str[1:]]
