"""Reading NRRD, a box at a time: ``.nrrd``, ``.nhdr`` with a file of voxels, ``.seg.nrrd`` of 3D Slicer."""

from __future__ import annotations

import re
from pathlib import Path

from volseg.errors import VolumeError
from volseg.volumes.audit import Audit
from volseg.volumes.header_text import pick_channel
from volseg.volumes.label_table import Colour, LabelTable, table_of
from volseg.volumes.nrrd.header import NrrdHeader, read_header, read_keys
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.stored import open_stored, stored_as
from volseg.volumes.volume import Space, Volume

SEGMENT = re.compile(r"Segment(\d+)_LabelValue")


def open_nrrd(path: Path, options: OpenOptions, channel: int | None = None) -> Volume:
    """The NRRD volume at `path`.

    channel  of a file of several, counted from 0; None: the file must hold one

    Integers stay what they are; all else is read as float32. Raises VolumeError where the file is no NRRD, is too short
    for what its header promises, or holds no volume of numbers in space.
    """
    header = read_header(path, options)
    _refuse_layers(header)
    part = pick_channel(path, header.shape, header.channels, channel)
    stored = stored_as(
        data=header.data, shape=header.shape, offset=header.offset, raw=header.raw, channels=header.channels, part=part,
        beside=header.beside, packed=header.packed, start=header.start,
    )  # fmt: skip
    audit = Audit(
        used=(path.name,), inputs=tuple(dict.fromkeys((path, header.data))), warnings=header.warnings,
        facts=(*header.facts, ("read as", stored.dtype.name)),
    )  # fmt: skip
    return open_stored(stored, path, Space(header.shape, header.affine), "NRRD", audit)


def count_channels(path: Path) -> int:
    """How many channels the file holds. Raises VolumeError where it is no NRRD."""
    return read_header(path, OpenOptions(voxel_size=(1.0, 1.0, 1.0))).channels


def table_of_nrrd(path: Path) -> LabelTable | None:
    """Names and colours of the segments of a ``.seg.nrrd``, None where the header names none."""
    keys = read_keys(path)
    rows: list[tuple[int, str, Colour | None]] = []
    for key, value in keys.items():
        match = SEGMENT.fullmatch(key)
        name = keys.get(f"Segment{match[1]}_Name", "").strip() if match else ""
        if match and name and value.isdecimal() and len(value) < 10:
            rows.append((int(value), name, _colour(keys.get(f"Segment{match[1]}_Color", ""))))
    return table_of(sorted(rows, key=lambda row: row[0])) if rows else None


def _refuse_layers(header: NrrdHeader) -> None:
    segments = [key for key in header.keys if SEGMENT.fullmatch(key)]
    if header.channels > 1 and segments:
        raise VolumeError(
            f"{header.path}: {len(segments)} segments that overlap, in {header.channels} layers; volseg reads one "
            "layer: export them as a labelmap (3D Slicer: Segmentations, Export to labelmap)"
        )


def _colour(text: str) -> Colour | None:
    try:
        red, green, blue = (round(255 * min(max(float(word), 0.0), 1.0)) for word in text.split())
    except ValueError:  # not three numbers; NaN cannot be rounded
        return None
    return red, green, blue
