"""TIFF: a folder of slices, or a file of many pages, BigTIFF, ImageJ's and OME-TIFF among them."""

from __future__ import annotations

import os
from pathlib import Path

from volseg.volumes.formats.format import Format, Request
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.output import Output
from volseg.volumes.signs import Form
from volseg.volumes.volume import Volume

SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")


def _is_at(path: Path) -> bool:
    """A file by its name, or a folder most of whose entries are such, hidden ones aside."""
    if not path.is_dir():
        return path.name.lower().endswith(SUFFIXES)
    slices = others = 0
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                is_slice = entry.name.lower().endswith(SUFFIXES)
                slices, others = slices + is_slice, others + (not is_slice)
    return slices > others


def _open(path: Path, options: OpenOptions, channel: int | None) -> Volume:
    from volseg.volumes.tiff.reading import open_tiff

    return open_tiff(path, options, channel)


def _channels(path: Path) -> int:
    from volseg.volumes.tiff.reading import count_channels

    return count_channels(path)


def _output(request: Request) -> Output:
    from volseg.volumes.tiff.output import TiffOutput

    return TiffOutput(request.content)


TIFF = Format(
    name="tiff", noun="TIFF file", suffixes=SUFFIXES, is_at=_is_at, forms=(Form.TIFF,), open=_open, channels=_channels,
    own_size=False, output=_output,
    written=(".tif", ".tiff"), takes_channels=False,
)  # fmt: skip
