"""DICOM: a folder, a zip, a DICOMDIR or a multi-frame file in; a mask goes out as a segmentation object."""

from __future__ import annotations

from pathlib import Path

from volseg.volumes.formats.format import Format, Request
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.output import Output
from volseg.volumes.signs import Form
from volseg.volumes.volume import Volume

SEGMENTATION_SUFFIX = ".dcm"


def _open(path: Path, options: OpenOptions, channel: int | None) -> Volume:
    from volseg.volumes.dicom.volume import open_dicom

    return open_dicom(path, options.dicom)


def _output(request: Request) -> Output:
    from volseg.volumes.dicom.seg.output import SegOutput

    return SegOutput(request.path, request.content, request.source)


DICOM = Format(
    name="dicom", noun="DICOM", suffixes=(SEGMENTATION_SUFFIX, ".zip"), is_at=Path.is_dir,
    forms=(Form.DICOM, Form.ZIP), open=_open, masks_only=(SEGMENTATION_SUFFIX,), output=_output, takes_channels=False,
)  # fmt: skip
