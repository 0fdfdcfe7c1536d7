"""Where a NIfTI header says that its voxels lie: a file has up to three answers, and each reader believes its own.

nibabel and volseg take the sform, ITK the qform where the sform is not orthonormal, and older programs the voxel sizes
alone. A mask that says the same as its scan in all of them lies where the scan lies whoever reads the two; one that is
told anew, from the answer that volseg believes, does not. https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from volseg.volumes.volume import Space

FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
FAR_TOLERANCE = 0.5  # voxels by which a qform may miss the sform at the volume's far corner
SHEAR_TOLERANCE = 0.01  # cosine of the angle between two axes


@dataclass(frozen=True)
class Forms:
    """What a header says of place, field by field, as it is stored.

    version  1 or 2, of NIfTI
    pixdim   qfac, and the sides of a voxel along i, j, k
    fields   the others (`FIELDS`)
    """

    version: int
    pixdim: tuple[float, ...]
    fields: Mapping[str, Any]


def forms_of(header: Any, version: int) -> Forms:
    """The forms of one of nibabel's headers."""
    pixdim = tuple(float(side) for side in header["pixdim"][:4])
    return Forms(version, pixdim, {name: np.array(header[name]) for name in FIELDS})


def set_forms(header: Any, forms: Forms | None, space: Space) -> None:
    """Give nibabel's `header` these forms, or where there are none those of `space`: a qform and an sform that agree.

    A sheared grid, which no quaternion can say, has the nearest one if that is near, else none.
    """
    if forms is not None:
        header["pixdim"][:4] = forms.pixdim
        for name, value in forms.fields.items():
            header[name] = value
        return
    affine = np.asarray(space.affine, dtype=np.float64)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner", strip_shears=True)
    apart = space.voxels_apart(Space(space.shape, np.asarray(header.get_qform(), dtype=np.float64)))
    axes = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    sheared = np.abs(axes.T @ axes - np.eye(3)).max()
    if not (apart <= FAR_TOLERANCE and sheared <= SHEAR_TOLERANCE):
        header["qform_code"] = 0
