"""Reading MetaImage, a box at a time: ``.mha``, and ``.mhd`` with a file of voxels."""

from __future__ import annotations

from pathlib import Path

from volseg.volumes.audit import Audit
from volseg.volumes.header_text import pick_channel
from volseg.volumes.metaimage.header import read_header
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.stored import open_stored, stored_as
from volseg.volumes.volume import Space, Volume


def open_metaimage(path: Path, options: OpenOptions, channel: int | None = None) -> Volume:
    """The MetaImage volume at `path`.

    channel  of a file of several, counted from 0; None: the file must hold one

    Integers stay what they are; all else is read as float32. Raises VolumeError where the file is no MetaImage, is too
    short for what its header promises, or holds no volume of numbers in space.
    """
    header = read_header(path, options)
    part = pick_channel(path, header.shape, header.channels, channel)
    stored = stored_as(
        data=header.data, shape=header.shape, offset=header.offset, raw=header.raw, channels=header.channels, part=part,
        beside=header.beside, packed=header.packed, start=header.start,
    )  # fmt: skip
    audit = Audit(
        used=(path.name,), inputs=tuple(dict.fromkeys((path, header.data))), warnings=header.warnings,
        facts=(("stored as", header.raw.name), ("read as", stored.dtype.name)),
    )  # fmt: skip
    return open_stored(stored, path, Space(header.shape, header.affine), "MetaImage", audit)


def count_channels(path: Path) -> int:
    """How many channels the file holds. Raises VolumeError where it is no MetaImage."""
    return read_header(path, OpenOptions(voxel_size=(1.0, 1.0, 1.0))).channels
