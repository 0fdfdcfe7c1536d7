"""Segments of 3D Slicer in a ``.seg.nrrd``, in one layer or, where they overlap, in several.

https://slicer.readthedocs.io/en/latest/user_guide/modules/segmentations.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.audit import Audit
from volseg.volumes.label_table import Colour, LabelTable, table_of
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.overlap import overlap_warning
from volseg.volumes.volume import Volume

LABEL_VALUE = re.compile(r"Segment(\d{1,5})_LabelValue")
LARGEST = 2**15 - 1


@dataclass(frozen=True)
class Segment:
    """One segment.

    value   that it has among all, where layers are one mask
    stored  its value in its layer
    """

    name: str
    colour: Colour | None
    layer: int
    stored: int
    value: int


def segments_in(keys: Mapping[str, str]) -> list[Segment]:
    """The segments that a header's key/value pairs name, by their numbers there.

    Their values are those of the file, or 1, 2, ... where two layers use one value.
    """
    numbers = sorted(int(match[1]) for match in map(LABEL_VALUE.fullmatch, keys) if match)
    rows = []
    for number in numbers:
        stored, layer = keys[f"Segment{number}_LabelValue"], keys.get(f"Segment{number}_Layer", "0")
        if stored.isdecimal() and layer.isdecimal() and len(stored) < 6 and len(layer) < 6 and int(stored) <= LARGEST:
            rows.append((number, int(layer), int(stored)))
    distinct = len({stored for _, _, stored in rows}) == len(rows)
    return [
        Segment(
            keys.get(f"Segment{number}_Name", "").strip(), _colour(keys.get(f"Segment{number}_Color", "")), layer,
            stored, stored if distinct else place,
        )
        for place, (number, layer, stored) in enumerate(rows, 1)
    ]  # fmt: skip


def table_of_segments(keys: Mapping[str, str]) -> LabelTable | None:
    """Names and colours of the segments; None where the header names none."""
    rows = [(segment.value, segment.name, segment.colour) for segment in segments_in(keys) if segment.name]
    return table_of(sorted(rows, key=lambda row: row[0])) if rows else None


class LayeredSegments(Volume):
    """The layers of a file as one mask; a voxel of several segments goes to one of them by the rule."""

    format = "NRRD, segments in layers"

    def __init__(
        self, path: Path, open_layer: Callable[[int], Volume], segments: Sequence[Segment], options: OpenOptions,
        audit: Audit,
    ) -> None:  # fmt: skip
        """open_layer  the volume of one layer. Raises VolumeError where a segment lies in a layer that is not there."""
        used = sorted({segment.layer for segment in segments})
        self._fresh, self._layers = open_layer, {layer: open_layer(layer) for layer in used}
        first = self._layers[used[0]]
        self.path, self.space, self.audit = path, first.space, audit
        largest = max(segment.value for segment in segments)
        self.whole_slices, self.dtype = first.whole_slices, np.dtype(np.uint8 if largest <= 255 else np.uint16)
        self._segments, self._options = list(segments), options
        self._sizes: dict[int, int] = {}
        if first.dtype.kind not in "iu":
            raise VolumeError(f"{path}: segments of {first.dtype}; labels are whole numbers")

    def read(self, box: Box) -> np.ndarray:
        out = np.zeros(box.shape, self.dtype)
        for layer, volume in self._layers.items():
            values = self._renumbered(layer, volume.read(box))
            both = (values != 0) & (out != 0)
            pairs = np.unique(np.stack([values[both], out[both]]), axis=1).T.tolist()
            for value, other in pairs:
                if not self._is_over(value, other):
                    values[(values == value) & (out == other)] = 0
            np.copyto(out, values, where=values != 0)
        return out

    def close(self) -> None:
        for volume in self._layers.values():
            volume.close()

    def _renumbered(self, layer: int, values: np.ndarray) -> np.ndarray:
        out = np.zeros(values.shape, self.dtype)
        for segment in self._segments:
            if segment.layer == layer:
                out[values == segment.stored] = segment.value
        return out

    def _is_over(self, value: int, other: int) -> bool:
        """Whether segment `value` has the voxels that it shares with the segment `other` of an earlier layer."""
        order = [segment.value for segment in self._segments]
        overlap = self._options.overlap
        over = (
            self._size(value) <= self._size(other) if overlap == "smallest" else order.index(value) > order.index(other)
        )
        names = {segment.value: segment.name or f"segment {segment.value}" for segment in self._segments}
        pair = (names[value], names[other]) if over else (names[other], names[value])
        for line in overlap_warning(self.path, [pair], overlap, "segments"):
            if self._options.remark is not None:
                self._options.remark(line)
        return over

    def _size(self, value: int) -> int:
        """The voxels of a segment; all are counted at once, beside what is being read."""
        if not self._sizes:
            self._sizes = {segment.value: 0 for segment in self._segments}
            for layer in self._layers:
                volume = self._fresh(layer)
                for _, values in volume.slabs():
                    for segment in self._segments:
                        if segment.layer == layer:
                            self._sizes[segment.value] += int((values == segment.stored).sum())
                volume.close()
        return self._sizes[value]


def _colour(text: str) -> Colour | None:
    try:
        red, green, blue = (round(255 * min(max(float(word), 0.0), 1.0)) for word in text.split())
    except ValueError:  # not three numbers; NaN cannot be rounded
        return None
    return red, green, blue
