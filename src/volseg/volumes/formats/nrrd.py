"""NRRD: ``.nrrd``, ``.nhdr`` with its file of voxels, and the segmentations of 3D Slicer, ``.seg.nrrd``."""

from __future__ import annotations

from pathlib import Path

from volseg.volumes.formats.format import Format, Request, named
from volseg.volumes.label_table import LabelTable
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.output import Output
from volseg.volumes.signs import Form
from volseg.volumes.volume import Volume

SUFFIXES = (".nrrd", ".nhdr")


def _open(path: Path, options: OpenOptions, channel: int | None) -> Volume:
    from volseg.volumes.nrrd.reading import open_nrrd

    return open_nrrd(path, options, channel)


def _channels(path: Path) -> int:
    from volseg.volumes.nrrd.reading import count_channels

    return count_channels(path)


def _label_table(path: Path) -> LabelTable | None:
    from volseg.volumes.nrrd.reading import table_of_nrrd

    return table_of_nrrd(path)


def _output(request: Request) -> Output:
    from volseg.volumes.nrrd.output import NrrdOutput

    return NrrdOutput(request.content)


NRRD = Format(
    name="nrrd", noun="NRRD file", suffixes=SUFFIXES, is_at=named(SUFFIXES), forms=(Form.NRRD,), open=_open,
    channels=_channels, label_table=_label_table, listed=SUFFIXES, own_size=False, output=_output,
    written=(".nrrd",), masks_only=(".seg.nrrd",),
)  # fmt: skip
