"""Which segments of a SEG overlap, and which of them is to have a voxel of several.

Every frame of a slice with several segments is looked at once when the file is opened, as packed bits, so that a
warning, or a refusal, comes before the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from volseg.volumes.dicom.labels.segment_frames import SegmentFrames
from volseg.volumes.overlap import Overlap, painting_order

Placed = tuple[int, int, int, int]
"""A frame laid into a slice: its number, the label that it shows, and row and column of its first pixel."""


def overlapping(
    source: SegmentFrames, placed: Mapping[int, Sequence[Placed]], shape: tuple[int, int]
) -> set[tuple[int, int]]:
    """Pairs of labels, the lower first, with a voxel in common. `shape`: (rows, columns) of a slice."""
    pairs: set[tuple[int, int]] = set()
    for frames in placed.values():
        if len({label for _, label, _, _ in frames}) < 2:
            continue
        bits = [_bits(source, frame, frames, shape) for frame in frames]
        union = np.zeros_like(bits[0])
        for number, (_, label, _, _) in enumerate(frames):
            if (bits[number] & union).any():
                for before in range(number):
                    other = frames[before][1]
                    pair = (min(label, other), max(label, other))
                    if other != label and pair not in pairs and (bits[number] & bits[before]).any():
                        pairs.add(pair)
            union |= bits[number]
    return pairs


def ordered(
    source: SegmentFrames, placed: dict[int, list[Placed]], pairs: set[tuple[int, int]], overlap: Overlap
) -> list[int]:  # fmt: skip
    """The labels of overlapping segments in the order in which they are painted. Sorts the frames of each slice so."""
    labels = sorted({label for pair in pairs for label in pair})
    sizes = dict.fromkeys(labels, 0)
    if overlap == "smallest":
        for number, label, _, _ in (frame for frames in placed.values() for frame in frames):
            if label in sizes:
                sizes[label] += int(np.bitwise_count(source.marked(number)).sum())
    order = painting_order(labels, sizes, overlap)
    for frames in placed.values():
        frames.sort(key=lambda frame: order.index(frame[1]) if frame[1] in sizes else -1)
    return order


def _bits(source: SegmentFrames, frame: Placed, frames: Sequence[Placed], shape: tuple[int, int]) -> np.ndarray:
    """The marked pixels of a frame, packed: of its own window where all frames of the slice share it, else of all."""
    number, _, row, column = frame
    if all(other[2:] == (row, column) for other in frames):
        return source.marked(number)
    plane = np.zeros(shape, bool)
    window = plane[row : row + source.rows, column : column + source.columns]
    pixels = np.unpackbits(source.marked(number), bitorder="little")[: window.size]
    window[...] = pixels.reshape(window.shape)
    return np.packbits(plane, bitorder="little")
