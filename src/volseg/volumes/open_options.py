"""What a user may say of a file that is to be read."""

from __future__ import annotations

from dataclasses import dataclass, field

from volseg.geometry import Triple
from volseg.volumes.dicom.options import DicomOptions


@dataclass(frozen=True)
class OpenOptions:
    """How to choose, mend and understand what is read.

    dicom           which series, and what may be mended
    voxel_size      mm along the file's own D, H, W, of formats that need not say it (TIFF, HDF5, raw); None: as they
                    say
    size_if_unsaid  the same, of a mask whose image says it: taken where nobody else says it
    shape           (D, H, W) voxels of a raw file, which has no header; None: the file is none
    dtype           type of its voxels: uint16, or big-endian >u2
    """

    dicom: DicomOptions = field(default_factory=DicomOptions)
    voxel_size: tuple[float, float, float] | None = None
    size_if_unsaid: tuple[float, float, float] | None = None
    shape: Triple | None = None
    dtype: str | None = None
