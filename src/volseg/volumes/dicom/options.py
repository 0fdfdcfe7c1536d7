"""What a user may ask for when a DICOM series is read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DicomOptions:
    """How to choose and mend a series. Nothing is mended unless asked.

    series         which one: its number in the table of candidates ("2.1": a part of a series that is several volumes),
                   its SeriesInstanceUID, or an ending of that
    fix_tilt       shear the slices of a tilted gantry back
    resample_gaps  interpolate missing or unevenly spaced slices onto an even grid
    """

    series: str | None = None
    fix_tilt: bool = False
    resample_gaps: bool = False
