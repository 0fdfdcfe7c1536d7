"""The decoded slices of a series, read one at a time; the last few are remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from volseg.volumes.dicom.image import Entry, Image
from volseg.volumes.dicom.pixels.hounsfield import hounsfield, hounsfield_dtype
from volseg.volumes.dicom.pixels.stream import PixelStream

SLICES_REMEMBERED = 4
"""Enough for an interpolation between two slices that steps back by one; at 512 x 512 they take 2 MB."""


class SliceStack:
    """Slices in order, in HU.

    images  one a slice
    dtype   int16 where that is exact for every slice, else float32

    One file is kept open, that of the slice read last: an enhanced file is opened once for all its frames.
    """

    def __init__(self, images: tuple[Image, ...]) -> None:
        self.images = images
        self.dtype: np.dtype[Any] = max((hounsfield_dtype(image) for image in images), key=lambda t: t.itemsize)
        self._remembered: OrderedDict[int, np.ndarray] = OrderedDict()
        self._entry: Entry | None = None
        self._stream: PixelStream | None = None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        """Slice `index` [rows, columns]; not to be written to. Raises VolumeError (see `pixels.hounsfield`)."""
        if index not in self._remembered:
            image = self.images[index]
            plane = hounsfield(image, self._stream_of(image), self.dtype)
            plane.flags.writeable = False
            self._remembered[index] = plane
            while len(self._remembered) > SLICES_REMEMBERED:
                self._remembered.popitem(last=False)
        self._remembered.move_to_end(index)
        return self._remembered[index]

    def _stream_of(self, image: Image) -> PixelStream:
        if self._stream is None or self._entry is not image.entry:
            self.close()
            self._stream = PixelStream(image.entry, image.transfer_syntax)
            self._entry = image.entry
        return self._stream

    def close(self) -> None:
        """Close the file that is open."""
        if self._stream is not None:
            self._stream.close()
        self._stream = self._entry = None


@contextmanager
def open_pixels(image: Image) -> Iterator[PixelStream]:
    """An image's pixel data, its file open within the block only."""
    stream = PixelStream(image.entry, image.transfer_syntax)
    try:
        yield stream
    finally:
        stream.close()
