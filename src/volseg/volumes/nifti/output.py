"""Writing NIfTI from many ranks: each writes its planes at their own place in the one file.

A ``.nii.gz`` is a chain of gzip members, which every gzip reader takes for one stream: the header, then one member for
each unit. Ranks compress at once and learn from each other's sizes where to write.
"""

from __future__ import annotations

import io
import json
import zlib

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.nifti.forms import set_forms
from volseg.volumes.nifti.label_names import CARET, caret_extension
from volseg.volumes.nifti.library import nibabel
from volseg.volumes.output import Content, Unit, shrinks_to
from volseg.volumes.planes_output import PlanesOutput
from volseg.volumes.volume import Space

COMPRESSION_LEVEL = 4
LONGEST_NIFTI1_SIDE = 32767


class NiftiOutput(PlanesOutput):
    """A single-file NIfTI-1, little-endian; NIfTI-2 where a side is too long for that, or where the scan is one."""

    def __init__(self, content: Content, *, compress: bool) -> None:
        self._compress = compress
        super().__init__(content, self._piece(header_bytes(content)))

    @property
    def least_bytes(self) -> int:
        return len(self.header) + (
            self.voxel_bytes // shrinks_to(self.content) if self._compress else self.voxel_bytes
        )  # fmt: skip

    def rehearse(self) -> tuple[str, ...]:
        longest = max(self.content.space.shape)
        if longest <= LONGEST_NIFTI1_SIDE:
            return ()
        return (
            f"written as NIfTI-2, for NIfTI-1 ends at {LONGEST_NIFTI1_SIDE} voxels an axis and this has {longest}; "
            "ITK, Slicer and nnU-Net's SimpleITK reader open no NIfTI-2: give a .zarr for other tools",
        )

    def encode(self, unit: Unit, voxels: np.ndarray) -> bytes | memoryview:
        return self._piece(super().encode(unit, voxels))

    def _piece(self, raw: bytes | memoryview) -> bytes | memoryview:
        if not self._compress:
            return raw
        packer = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)  # no name, time 0: same bytes
        return packer.compress(raw) + packer.flush()


def header_bytes(content: Content) -> bytes:
    """All that comes before the voxels. Where they lie is said as the scan says it (`forms`).

    Channel names and what was mended go into a comment extension, as JSON; label names and colours into Workbench's
    (`label_names`), and the intent code says that the values are labels.
    """
    nib = nibabel()
    from nibabel.spatialimages import HeaderDataError

    space, channels, labels, forms = content.space, content.channels, content.labels, content.forms
    sides = space.shape[::-1] if channels is None else (*space.shape[::-1], channels)
    version = forms.version if forms is not None else 1 if _fits_float32(space) else 2
    kind = nib.Nifti1Header if version == 1 and max(sides) <= LONGEST_NIFTI1_SIDE else nib.Nifti2Header
    header = kind(endianness="<")
    try:
        header.set_data_dtype(content.dtype)
    except HeaderDataError:
        raise VolumeError(f"NIfTI holds no {content.dtype} voxels; write float32 or an integer type") from None
    header.set_data_shape(sides)
    set_forms(header, forms, space)
    header.set_slope_inter(1, 0)
    header["descrip"] = b"volseg"
    facts = {name: list(lines) for name, lines in (("channels", content.names), ("fixes", content.fixes)) if lines}
    if facts:
        comment = json.dumps(facts).encode()
        header.extensions.append(nib.nifti1.Nifti1Extension("comment", comment))
    if labels is not None:
        header.set_intent("label")
        if labels.names:
            header.extensions.append(nib.nifti1.Nifti1Extension(CARET, caret_extension(labels)))
    file = io.BytesIO()
    header.write_to(file)
    return file.getvalue().ljust(int(header.get_data_offset()), b"\0")


def _fits_float32(space: Space) -> bool:
    """Whether the 24 bits of NIfTI-1's affine say where the voxels are: not tiny ones far from the origin."""
    return space.matches(Space(space.shape, np.asarray(space.affine, dtype=np.float32).astype(np.float64)))
