"""What a MetaImage header says: where the voxels lie in the file and in the patient.

The format: https://itk.org/Wiki/ITK/MetaIO/Documentation. Each row of TransformMatrix is the direction of one axis of
the image, in ITK's world (LPS).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Triple, format_triple
from volseg.volumes.formats.metaimage import METAIMAGE
from volseg.volumes.header_text import BadHeader, data_file, header_lines, numbers, unreadable, whole_numbers
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.placing import lps_affine, voxel_size

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
SYNONYMS = {
    "rotation": "transformmatrix", "orientation": "transformmatrix", "position": "offset", "origin": "offset",
    "binarydatabyteordermsb": "elementbyteordermsb",
}  # fmt: skip
LAST = "elementdatafile"


@dataclass(frozen=True, kw_only=True)
class MetaHeader:
    """A header, understood.

    data      the file of the voxels, `offset` bytes into which they begin (packed ones: whose packed bytes begin
              after `start`)
    shape     (D, H, W)
    channels  volumes in the file; `beside`: in each voxel beside each other, else one after the other
    """

    data: Path
    shape: Triple
    affine: np.ndarray
    raw: np.dtype[Any]
    channels: int
    beside: bool
    packed: bool
    start: int
    offset: int
    warnings: tuple[str, ...]


def read_header(path: Path, options: OpenOptions) -> MetaHeader:
    """The header of the MetaImage at `path`, before the voxels or in a file of its own.

    Raises VolumeError where there is none, or it describes no volume of numbers in space that volseg reads.
    """
    try:
        fields, size = _parse(path)
        return _understood(path, fields, size, options)
    except BadHeader as error:
        raise unreadable(path, METAIMAGE, error) from error


def _parse(path: Path) -> tuple[dict[str, str], int]:
    """The fields by their names in lower case, without blanks, and the bytes that they take."""
    lines, size = header_lines(path, LAST.encode())
    fields: dict[str, str] = {}
    for line in lines:
        name, mark, text = line.partition("=")
        plain = name.strip().lower()
        if not mark and line:
            raise BadHeader(f"a line is {line[:60]!r}, no field")
        fields[SYNONYMS.get(plain, plain)] = text.strip()
    if not fields.get(LAST):
        raise BadHeader("it has no field ElementDataFile")
    return fields, size


def _understood(path: Path, fields: dict[str, str], size: int, options: OpenOptions) -> MetaHeader:
    kind = fields.get("objecttype", "Image")
    if kind.lower() != "image":
        raise VolumeError(f"{path}: a MetaImage file of a {kind[:40]}, no image; give an image")
    (dimension,) = whole_numbers(fields.get("ndims", ""), 1, "NDims")
    if not 1 <= dimension <= 10:
        raise BadHeader(f"NDims is {dimension}")
    sides = whole_numbers(fields.get("dimsize", ""), dimension, "DimSize")
    text = format_triple(tuple(sides))
    if min(sides) < 1:
        raise VolumeError(f"{path}: an empty image ({text})")
    if dimension not in (3, 4):
        raise VolumeError(f"{path}: a {dimension}-D image ({text}); volseg reads 3-D volumes")
    (beside,) = whole_numbers(fields.get("elementnumberofchannels", "1"), 1, "ElementNumberOfChannels")
    behind = sides[3] if dimension == 4 else 1
    if beside < 1 or (beside > 1 and behind > 1):
        raise VolumeError(f"{path}: {beside} channels of an image of {text}; volseg reads channels in one place alone")
    raw = _type(path, fields)
    affine, warnings = _affine(path, fields, dimension, options)
    packed = _is_true(fields, "compresseddata")
    local = fields[LAST].upper() == "LOCAL"
    data, start = (path, size) if local else (data_file(path, fields[LAST], "ElementDataFile"), 0)
    (skip,) = whole_numbers(fields.get("headersize", "0"), 1, "HeaderSize")
    if skip < -1 or (skip and (packed or local)):
        raise VolumeError(f"{path}: HeaderSize {skip} is not read here; write the image again without it")
    if skip == -1:
        skip = max(0, data.stat().st_size - beside * int(np.prod(sides, dtype=object)) * raw.itemsize)
    i, j, k = sides[:3]
    return MetaHeader(
        data=data, shape=(k, j, i), affine=affine, raw=raw, channels=beside * behind, beside=beside > 1, packed=packed,
        start=start if packed else 0, offset=0 if packed else start + skip, warnings=tuple(warnings),
    )  # fmt: skip


def _type(path: Path, fields: dict[str, str]) -> np.dtype[Any]:
    kind = TYPES.get(fields.get("elementtype", "").upper())
    if kind is None:
        what = fields.get("elementtype") or "of no type"
        raise VolumeError(f"{path}: voxels are {what[:40]}; give an image of integers or real numbers")
    if not _is_true(fields, "binarydata", True):
        raise VolumeError(f"{path}: its voxels are written as text; write it again with BinaryData = True")
    return np.dtype(f"{'>' if _is_true(fields, 'elementbyteordermsb') else '<'}{kind}")


def _is_true(fields: dict[str, str], name: str, default: bool = False) -> bool:
    text = fields.get(name)
    return default if text is None else text[:1].lower() in ("t", "1", "y")


def _affine(path: Path, fields: dict[str, str], dimension: int, options: OpenOptions) -> tuple[np.ndarray, list[str]]:
    warnings = []
    matrix = None
    if "transformmatrix" in fields:
        rows = np.array(numbers(fields["transformmatrix"], dimension**2, "TransformMatrix")).reshape(dimension, -1)
        matrix = rows[:3, :3].T
    else:
        warnings.append(
            "no TransformMatrix, so where left is is not known; taken to run to left, posterior, superior, as ITK does"
        )
    origin = numbers(fields["offset"], dimension, "Offset")[:3] if "offset" in fields else [0.0, 0.0, 0.0]
    stated = None
    for name in ("elementspacing", "elementsize"):
        if stated is None and name in fields:
            i, j, k = numbers(fields[name], dimension, name)[:3]
            stated = k, j, i
    size, more = voxel_size(path, stated, options)
    return lps_affine(path, size, matrix, origin), warnings + more
