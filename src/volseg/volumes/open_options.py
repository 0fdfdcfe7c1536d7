"""What a user may say of a file that is to be read."""

from __future__ import annotations

from dataclasses import dataclass, field

from volseg.geometry import Triple
from volseg.volumes.dicom.options import DicomOptions


@dataclass(frozen=True)
class OpenOptions:
    """How to choose, mend and understand what is read.

    dicom       which series, and what may be mended
    voxel_size  mm along the file's own D, H, W, of formats that need not say it (TIFF, HDF5, raw); None: as they say
    shape       (D, H, W) voxels of a raw file, which has no header; None: the file is none
    dtype       type of its voxels: "uint16", or with their byte order ">u2"; little-endian without
    skip        bytes before its first voxel
    """

    dicom: DicomOptions = field(default_factory=DicomOptions)
    voxel_size: tuple[float, float, float] | None = None
    shape: Triple | None = None
    dtype: str | None = None
    skip: int = 0
