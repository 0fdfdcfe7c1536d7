"""Reading NRRD, a box at a time: ``.nrrd``, ``.nhdr`` with a file of voxels, ``.seg.nrrd`` of 3D Slicer."""

from __future__ import annotations

from pathlib import Path

from volseg.errors import VolumeError
from volseg.volumes.audit import Audit
from volseg.volumes.header_text import pick_channel
from volseg.volumes.label_table import LabelTable
from volseg.volumes.nrrd.header import NrrdHeader, read_header, read_keys
from volseg.volumes.nrrd.segments import LayeredSegments, segments_in, table_of_segments
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.stored import open_stored, stored_as
from volseg.volumes.volume import Space, Volume


def open_nrrd(path: Path, options: OpenOptions, channel: int | None = None) -> Volume:
    """The NRRD volume at `path`.

    channel  of a file of several, counted from 0; None: the file must hold one, or layers of segments, which become
             one mask by the rule of `options`

    Integers stay what they are; all else is read as float32. Raises VolumeError where the file is no NRRD, is too short
    for what its header promises, or holds no volume of numbers in space.
    """
    header = read_header(path, options)
    segments = segments_in(header.keys)
    if channel is None and header.channels > 1 and segments:
        layers = {segment.layer for segment in segments}
        if max(layers) >= header.channels:
            raise VolumeError(f"{path}: a segment in layer {max(layers)}, but it has {header.channels} layers")
        return LayeredSegments(path, lambda layer: _channel(path, header, layer), segments, options, _audit(header))
    return _channel(path, header, pick_channel(path, header.shape, header.channels, channel))


def _channel(path: Path, header: NrrdHeader, part: int) -> Volume:
    stored = stored_as(
        data=header.data, shape=header.shape, offset=header.offset, raw=header.raw, channels=header.channels, part=part,
        beside=header.beside, packed=header.packed, start=header.start,
    )  # fmt: skip
    return open_stored(stored, path, Space(header.shape, header.affine), "NRRD", _audit(header))


def _audit(header: NrrdHeader) -> Audit:
    inputs = tuple(dict.fromkeys((header.path, header.data)))
    return Audit(used=(header.path.name,), inputs=inputs, warnings=header.warnings, facts=header.facts)


def count_channels(path: Path) -> int:
    """How many channels the file holds. Raises VolumeError where it is no NRRD."""
    return read_header(path, OpenOptions(voxel_size=(1.0, 1.0, 1.0))).channels


def table_of_nrrd(path: Path) -> LabelTable | None:
    """Names and colours of the segments of a ``.seg.nrrd``, None where the header names none."""
    return table_of_segments(read_keys(path))
