"""What the functions of the API say of a file that is to be read, as one record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volseg.geometry import Triple

if TYPE_CHECKING:
    from volseg.volumes.open_options import OpenOptions

Sides = tuple[float, float, float]


def open_options(
    series: str | None, fix_tilt: bool, resample_gaps: bool, voxel_size: Sides | str | None,
    shape: Triple | str | None, dtype: str | None,
) -> OpenOptions:  # fmt: skip
    """The record of these options, texts as the command line takes them. Raises ConfigError for a text that is none."""
    from volseg.sizes import parse_shape, parse_spacing
    from volseg.volumes.dicom.options import DicomOptions
    from volseg.volumes.open_options import OpenOptions

    return OpenOptions(
        dicom=DicomOptions(series, fix_tilt, resample_gaps),
        voxel_size=parse_spacing(voxel_size, "--voxel-size") if isinstance(voxel_size, str) else voxel_size,
        shape=parse_shape(shape) if isinstance(shape, str) else shape,
        dtype=dtype,
    )
