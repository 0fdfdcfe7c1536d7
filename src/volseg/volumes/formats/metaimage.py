"""MetaImage, of ITK: ``.mha``, and ``.mhd`` with its file of voxels."""

from __future__ import annotations

from pathlib import Path

from volseg.volumes.formats.format import Format, Request, named
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.output import Output
from volseg.volumes.signs import Form
from volseg.volumes.volume import Volume

SUFFIXES = (".mha", ".mhd")


def _open(path: Path, options: OpenOptions, channel: int | None) -> Volume:
    from volseg.volumes.metaimage.reading import open_metaimage

    return open_metaimage(path, options, channel)


def _channels(path: Path) -> int:
    from volseg.volumes.metaimage.reading import count_channels

    return count_channels(path)


def _output(request: Request) -> Output:
    from volseg.volumes.metaimage.output import MetaOutput

    return MetaOutput(request.content)


METAIMAGE = Format(
    name="metaimage", noun="MetaImage", suffixes=SUFFIXES, is_at=named(SUFFIXES), forms=(Form.METAIMAGE,), open=_open,
    channels=_channels, listed=SUFFIXES, own_size=False, output=_output,
    written=(".mha",),
)  # fmt: skip
