"""NIfTI-1 and NIfTI-2: ``.nii``, ``.nii.gz`` and pairs of ``.hdr`` and ``.img``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from volseg.volumes.formats.format import Format, Request, named
from volseg.volumes.label_table import LabelTable
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.output import Output
from volseg.volumes.signs import Form
from volseg.volumes.volume import Volume

SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img", ".hdr.gz", ".img.gz")


def _open(path: Path, options: OpenOptions, channel: int | None) -> Volume:
    from volseg.volumes.nifti.reading import open_nifti

    return open_nifti(path, channel)


def _channels(path: Path) -> int:
    from volseg.volumes.nifti.header import read_header

    return read_header(path, 0).channels


def _label_table(path: Path) -> LabelTable | None:
    from volseg.volumes.nifti.label_names import table_of_nifti

    return table_of_nifti(path)


def _output(request: Request) -> Output:
    from volseg.volumes.nifti.output import NiftiOutput

    content, source = request.content, request.source
    if source is not None and source.forms is not None and source.space.matches(content.space):
        content = replace(content, forms=source.forms)
    return NiftiOutput(content, compress=request.suffix == ".nii.gz")


NIFTI = Format(
    name="nifti", noun="NIfTI file", suffixes=SUFFIXES, is_at=named(SUFFIXES), forms=(Form.NIFTI,), open=_open,
    channels=_channels, label_table=_label_table, listed=(".nii.gz", ".nii"), written=(".nii.gz", ".nii"),
    output=_output,
)  # fmt: skip
