"""Reading NIfTI, a box at a time.

How voxels come out of the file, compressed or not, is told in `stored`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from volseg.volumes.audit import Audit
from volseg.volumes.checks import exact_dtype
from volseg.volumes.nifti.header import NiftiHeader, read_header
from volseg.volumes.stored import Stored, open_stored
from volseg.volumes.volume import Volume

FLOAT32_BITS = 24  # of precision


def open_nifti(path: Path, channel: int | None = None) -> Volume:
    """The NIfTI-1 or NIfTI-2 volume at `path` (for a pair, either of its files).

    channel  which volume of a 4-D image, counted from 0; None: the file must hold one

    Integers stay what they are, and scaled ones stay integers where slope and intercept are whole numbers. All else
    is read as float32: of float64 its first 24 bits. Where the grid comes from is told in `nifti_header`, and what is
    doubtful about it in ``audit.warnings``. Trailing axes of length 1 are dropped.

    Raises VolumeError where the file is no NIfTI (Analyze 7.5 included), is too short for what its header promises
    (found before any voxel is read, or memory taken), has not the axes asked for, holds colours or complex numbers,
    or has no usable affine.
    """
    header = read_header(path, channel)
    dtype = _dtype(header)
    stored = Stored(
        data=header.data, shape=header.space.shape, offset=header.offset, end=header.end, raw=header.raw, dtype=dtype,
        slope=header.slope, intercept=header.intercept, packed=header.packed,
    )  # fmt: skip
    audit = Audit(
        used=(header.path.name,), inputs=header.files, warnings=(*header.warnings, *_precision(header, dtype)),
        facts=(*header.facts, ("read as", dtype.name)),
    )  # fmt: skip
    return open_stored(stored, path, header.space, "NIfTI", audit, header.forms)


def _dtype(header: NiftiHeader) -> np.dtype[Any]:
    """What is read: the stored integers where nothing scales them, wider ones where that is exact, else float32."""
    if header.raw.kind == "f":
        return np.dtype(np.float32)
    if header.slope == 1 and header.intercept == 0:
        return header.raw.newbyteorder("=")
    limits = np.iinfo(header.raw)
    return exact_dtype((int(limits.min), int(limits.max)), header.slope, header.intercept)


def _precision(header: NiftiHeader, dtype: np.dtype[Any]) -> list[str]:
    """A warning where integers of more digits than float32 holds are read as float32."""
    if header.raw.kind == "f" or dtype.kind != "f" or header.raw.itemsize * 8 <= FLOAT32_BITS:
        return []
    return [f"{header.raw.name} voxels are scaled by fractions and read as float32, which holds {FLOAT32_BITS} bits"]
