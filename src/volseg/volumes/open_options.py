"""What a user may say of a file that is to be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from volseg.geometry import Triple
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.overlap import Overlap


@dataclass(frozen=True)
class OpenOptions:
    """How to choose, mend and understand what is read.

    dicom           which series, and what may be mended
    voxel_size      mm along the file's own D, H, W, of formats that need not say it (TIFF, HDF5, raw); None: as they
                    say
    size_if_unsaid  the same, of a mask whose image says it: taken where nobody else says it
    shape           (D, H, W) voxels of a raw file, which has no header; None: the file is none
    dtype           type of its voxels: uint16, or big-endian >u2
    overlap         which of the segments of a file has a voxel of several, and `remark` is told which do
    """

    dicom: DicomOptions = field(default_factory=DicomOptions)
    voxel_size: tuple[float, float, float] | None = None
    size_if_unsaid: tuple[float, float, float] | None = None
    shape: Triple | None = None
    dtype: str | None = None
    overlap: Overlap = "smallest"
    remark: Callable[[str], None] | None = None
