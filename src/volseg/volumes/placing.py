"""Where the voxels of a file lie whose header speaks of sizes, directions and an origin, as ITK's formats do.

ITK's world runs to the patient's left, posterior and superior (LPS), that of volseg's affines to right, anterior and
superior (RAS). A file that names no directions is taken to run along LPS, as ITK takes it, so that a copy of it that
ITK wrote as NIfTI lies at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import format_triple
from volseg.volumes.checks import check_affine
from volseg.volumes.open_options import OpenOptions

MILLIMETRES = {
    "nm": 1e-6, "nanometer": 1e-6, "nanometre": 1e-6, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3,
    "microns": 1e-3, "micrometer": 1e-3, "micrometre": 1e-3, "mm": 1.0, "millimeter": 1.0, "millimetre": 1.0,
    "cm": 10.0, "centimeter": 10.0, "centimetre": 10.0, "m": 1000.0, "meter": 1000.0, "metre": 1000.0, "inch": 25.4,
    "in": 25.4, "å": 1e-7,
}  # fmt: skip
"""A unit of length in mm, by its name in lower case."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_SIZE = 1e-4  # relative; of two statements of one voxel size
Size = tuple[float, float, float]


def voxel_size(path: Path, stated: Size | None, options: OpenOptions) -> tuple[Size, list[str]]:
    """The sides of a voxel in mm along D, H, W, and warnings.

    stated  what the file says of them; None where it says nothing

    Raises VolumeError where nobody says it, or what is said is no size.
    """
    asked = options.voxel_size
    size = asked or stated or options.size_if_unsaid
    if size is None:
        raise VolumeError(
            f"{path}: does not say how large its voxels are; give --voxel-size with the sides in mm, such as 0.05 or "
            "along D x H x W 0.1x0.05x0.05 (where a command has no --voxel-size, ingest it first)"
        )
    if not (np.isfinite(size).all() and min(size) > 0):
        raise VolumeError(f"{path}: voxels of {_mm(size)} mm have no size; give the true sides with --voxel-size")
    if asked is None or stated is None or np.allclose(asked, stated, rtol=SAME_SIZE, atol=0):
        return size, []
    return size, [f"the file says voxels of {_mm(stated)} mm (D x H x W); --voxel-size {_mm(asked)} is taken"]


def lps_affine(
    path: Path, size: Size, directions: np.ndarray | None = None, origin: Sequence[float] = ()
) -> np.ndarray:
    """The affine (4 x 4, to RAS+ mm) of voxels with `size` mm along D, H, W.

    directions  [3, 3], its columns the directions of i, j, k (W, H, D) in LPS, of any length; None: along LPS
    origin      of the first voxel's centre, in LPS; empty: 0, 0, 0

    Raises VolumeError where it maps no grid.
    """
    affine = np.eye(4)
    axes = np.eye(3) if directions is None else np.asarray(directions, dtype=np.float64)
    lengths = np.sqrt((axes**2).sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        affine[:3, :3] = axes / lengths * np.array(size[::-1])
    affine[:3, 3] = origin if len(origin) else 0.0
    affine = LPS_TO_RAS @ affine
    check_affine(affine, path)
    return affine


def _mm(size: Size) -> str:
    return format_triple(tuple(f"{side:.4g}" for side in size))


def as_lps(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An affine (4 x 4, to RAS+ mm) as ITK's formats have it: the vectors of i, j, k in LPS as columns, and the origin.

    The vectors have the lengths of a voxel's sides.
    """
    lps = LPS_TO_RAS @ np.asarray(affine, dtype=np.float64) + 0.0  # no negative zeros
    return lps[:3, :3], lps[:3, 3]


def words(numbers: np.ndarray, between: str = " ") -> str:
    """Numbers as text that is read back as the same float64."""
    return between.join(repr(float(number)).removesuffix(".0") for number in np.ravel(numbers))
