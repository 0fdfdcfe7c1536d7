"""Raw voxels without any header, little-endian unless said: what they are must be told with --shape and --dtype."""

from __future__ import annotations

from pathlib import Path

from volseg.volumes.formats.format import Format, named
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.volume import Volume

SUFFIXES = (".raw", ".vol", ".bin")


def _open(path: Path, options: OpenOptions, channel: int | None) -> Volume:
    from volseg.volumes.raw import open_raw

    return open_raw(path, options)


RAW = Format(
    name="raw", noun="raw file", suffixes=SUFFIXES, is_at=named(SUFFIXES), forms=(), open=_open, own_size=False
)  # fmt: skip
