"""How far two places may lie apart and still be one: fractions of a voxel, never millimetres.

Voxels of CT are from half a micrometre to some millimetres long, so that no length is small for all of them: a
hundredth of a millimetre is nothing in a patient, and a whole voxel of a tooth. What has to pass is rounding: six
decimals in DICOM, 24 bits in NIfTI, which places a voxel of 9 micrometres half a metre from the origin to 0.3 % of it.
"""

SAME_GRID = 0.02
"""Voxels, along each axis, that a voxel of one grid may lie off its twin, anywhere in the volume."""

SAME_PLACE = 0.01
"""Pixel sides (of the shorter one) that two slices of one position may lie apart."""

SAME_HEIGHT = 0.01
"""Slices that planes at one height may differ in."""

OFF_SLICE = 0.25
"""Slices that one may lie off its place on an even grid where positions are rounded, and a frame of labels off it."""

OFF_GRID = 0.1
"""Voxels that a frame of labels may lie off the slice it belongs to, and two descriptions of one grid may differ."""
