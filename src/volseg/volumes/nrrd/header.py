"""What a NRRD header says: where the voxels lie in the file and in the patient, and which segments they are.

The format: https://teem.sourceforge.net/nrrd/format.html. Segments are 3D Slicer's fields of a ``.seg.nrrd``:
https://slicer.readthedocs.io/en/latest/user_guide/modules/segmentations.html#segmentation-file-format-seg-nrrd
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Triple, format_triple
from volseg.volumes.formats.nrrd import NRRD
from volseg.volumes.header_text import BadHeader, data_file, header_lines, numbers, unreadable, whole_numbers
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.placing import MILLIMETRES, Size, lps_affine, voxel_size

TYPES = {
    "int8": "i1", "int8_t": "i1", "signed char": "i1", "uint8": "u1", "uint8_t": "u1", "uchar": "u1",
    "unsigned char": "u1", "short": "i2", "short int": "i2", "signed short": "i2", "signed short int": "i2",
    "int16": "i2", "int16_t": "i2", "ushort": "u2", "unsigned short": "u2", "unsigned short int": "u2", "uint16": "u2",
    "uint16_t": "u2", "int": "i4", "signed int": "i4", "int32": "i4", "int32_t": "i4", "uint": "u4",
    "unsigned int": "u4", "uint32": "u4", "uint32_t": "u4", "longlong": "i8", "long long": "i8", "long long int": "i8",
    "signed long long": "i8", "signed long long int": "i8", "int64": "i8", "int64_t": "i8", "ulonglong": "u8",
    "unsigned long long": "u8", "unsigned long long int": "u8", "uint64": "u8", "uint64_t": "u8", "float": "f4",
    "double": "f8",
}  # fmt: skip
TO_LPS = {"lps": (1, 1, 1), "las": (1, -1, 1), "ras": (-1, -1, 1)}
"""What turns the axes of a space into left, posterior, superior."""
SPACES = {
    "left-posterior-superior": "lps", "left-anterior-superior": "las", "right-anterior-superior": "ras",
}  # fmt: skip
GZIP, RAW = ("gzip", "gz"), ("raw",)
SPATIAL = ("domain", "space")
_VECTOR = re.compile(r"\([^()]*\)|none", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class NrrdHeader:
    """A header, understood.

    data      the file of the voxels, `offset` bytes into which they begin (packed ones: `offset` bytes into what the
              bytes from `start` on hold)
    shape     (D, H, W)
    channels  volumes in the file; `beside`: in each voxel beside each other, else one after the other
    keys      its key/value pairs, among them 3D Slicer's segments
    """

    path: Path
    data: Path
    shape: Triple
    affine: np.ndarray
    raw: np.dtype[Any]
    channels: int
    beside: bool
    packed: bool
    start: int
    offset: int
    keys: dict[str, str]
    warnings: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def read_header(path: Path, options: OpenOptions) -> NrrdHeader:
    """The header of the NRRD file at `path`, attached to the voxels or in a file of its own.

    Raises VolumeError where there is none, or it describes no volume of numbers in space that volseg reads.
    """
    try:
        fields, keys, size = _parse(path)
        return _understood(path, fields, keys, size, options)
    except BadHeader as error:
        raise unreadable(path, NRRD, error) from error


def read_keys(path: Path) -> dict[str, str]:
    """The key/value pairs of a header. Raises VolumeError where it is none."""
    try:
        return _parse(path)[1]
    except BadHeader as error:
        raise unreadable(path, NRRD, error) from error


def _parse(path: Path) -> tuple[dict[str, str], dict[str, str], int]:
    """The fields, the key/value pairs, and the bytes that they take."""
    lines, size = header_lines(path, b"")
    if not lines or not re.fullmatch(r"NRRD000\d", lines[0]):
        raise BadHeader("it does not begin with NRRD and a version")
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    for line in lines[1:]:
        if line.startswith("#"):
            continue
        mark = re.search(r":=|: ", line + " ")
        if mark is None:
            raise BadHeader(f"a line is {line[:60]!r}, no field")
        name, text = line[: mark.start()], line[mark.end() :].strip()
        if mark[0] == ":=":
            keys[name] = text
        else:
            plain = name.lower().replace(" ", "")
            if plain in fields:
                raise BadHeader(f"{name} is given twice")
            fields[plain] = text
    return fields, keys, size


def _understood(
    path: Path, fields: dict[str, str], keys: dict[str, str], size: int, options: OpenOptions
) -> NrrdHeader:
    for name in ("type", "dimension", "sizes", "encoding"):
        if not fields.get(name):
            raise BadHeader(f"it has no field {name}")
    (dimension,) = whole_numbers(fields["dimension"], 1, "dimension")
    if not 1 <= dimension <= 16:
        raise BadHeader(f"dimension is {dimension}")
    sizes = whole_numbers(fields["sizes"], dimension, "sizes")
    if min(sizes) < 1:
        raise VolumeError(f"{path}: an empty image ({format_triple(tuple(sizes))})")
    raw, encoding = _type(path, fields), fields["encoding"].lower()
    if encoding not in (*GZIP, *RAW):
        raise VolumeError(f"{path}: encoding {encoding}; volseg reads raw and gzip: write it again, for instance with "
                          "3D Slicer")  # fmt: skip
    directions = _directions(fields, dimension)
    spatial = _spatial(path, fields, directions, sizes)
    channels, beside = _channels(path, sizes, spatial)
    i, j, k = (sizes[axis] for axis in spatial)
    affine, warnings = _affine(path, fields, directions, spatial, options)
    data, start = (path, size)
    if "datafile" in fields:
        data, start = data_file(path, fields["datafile"], "data file"), 0
    packed = encoding in GZIP
    skip = _skipped(path, fields, packed)
    if skip < 0:  # counted from the end
        start, skip = 0, max(0, data.stat().st_size - math.prod(sizes) * raw.itemsize)
    return NrrdHeader(
        path=path, data=data, shape=(k, j, i), affine=affine, raw=raw, channels=channels, beside=beside, packed=packed,
        start=start if packed else 0, offset=skip if packed else start + skip, keys=keys, warnings=tuple(warnings),
        facts=(("stored as", f"{raw.name}, {encoding}"), ("space", fields.get("space") or "none named")),
    )  # fmt: skip


def _type(path: Path, fields: dict[str, str]) -> np.dtype[Any]:
    kind = TYPES.get(fields["type"].lower())
    if kind is None:
        raise VolumeError(f"{path}: voxels are {fields['type'][:40]}; give an image of integers or real numbers")
    order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower())
    if order is None and kind[1] != "1":
        raise BadHeader("it does not say the byte order (endian)")
    return np.dtype(f"{order or '<'}{kind}")


def _directions(fields: dict[str, str], dimension: int) -> list[np.ndarray | None] | None:
    """The vector of each axis, None of one that does not lie in space; None where there are none."""
    text = fields.get("spacedirections")
    if text is None:
        return None
    vectors = [
        None if "none" in word.lower() else np.array(numbers(word.strip("()").replace(",", " "), 3, "space directions"))
        for word in _VECTOR.findall(text)
    ]
    if len(vectors) != dimension:
        raise BadHeader(f"space directions has {len(vectors)} vectors for {dimension} axes")
    return vectors


def _spatial(
    path: Path, fields: dict[str, str], directions: list[np.ndarray | None] | None, sizes: list[int]
) -> list[int]:  # fmt: skip
    """The three axes that lie in space, in the order of the file."""
    dimension = len(sizes)
    axes = list(range(dimension))
    kinds = fields.get("kinds", "").lower().split()
    if directions is not None:
        axes = [axis for axis in axes if directions[axis] is not None]
    elif dimension > 3 and len(kinds) == dimension:
        axes = [axis for axis in axes if kinds[axis] in SPATIAL]
    if len(axes) != 3:
        raise VolumeError(
            f"{path}: {len(axes)} axes in space of an image of {format_triple(tuple(sizes))}; volseg reads 3-D volumes"
        )
    return axes


def _channels(path: Path, sizes: list[int], spatial: list[int]) -> tuple[int, bool]:
    """How many channels there are, and whether they lie beside each other in every voxel."""
    others = [axis for axis, size in enumerate(sizes) if axis not in spatial and size > 1]
    before = [axis for axis in others if axis < spatial[0]]
    behind = [axis for axis in others if axis > spatial[2]]
    if len(before) + len(behind) < len(others) or (before and behind):
        raise VolumeError(
            f"{path}: axes of {format_triple(tuple(sizes))} in an order that is not read: channels must come first or "
            "last; write it again, for instance with 3D Slicer"
        )
    return math.prod(sizes[axis] for axis in others), bool(before)


def _affine(
    path: Path, fields: dict[str, str], directions: list[np.ndarray | None] | None, spatial: list[int],
    options: OpenOptions,
) -> tuple[np.ndarray, list[str]]:  # fmt: skip
    name = fields.get("space", "").lower()
    signs = TO_LPS.get(SPACES.get(name, name))
    warnings = []
    if signs is None:
        said = f"its space is {name[:40]}" if name else "it names no space"
        warnings.append(f"{said}, which does not tell the patient's sides; taken to be left, posterior, superior, as "
                        "ITK does: check left and right")  # fmt: skip
    world = np.array(signs or (1, 1, 1), dtype=np.float64) * _units(fields.get("spaceunits", ""), warnings)
    place = fields.get("spaceorigin", "(0,0,0)").strip("()").replace(",", " ")
    origin = np.array(numbers(place, 3, "space origin"))
    matrix, stated = None, _spacings(fields, spatial, warnings)
    if directions is not None:
        matrix = world[:, None] * np.column_stack([vector for vector in directions if vector is not None])
        i, j, k = (float(side) for side in np.sqrt((matrix**2).sum(axis=0)))
        stated = (k, j, i)
    size, more = voxel_size(path, stated, options)
    return lps_affine(path, size, matrix, world * origin), warnings + more


def _spacings(fields: dict[str, str], spatial: list[int], warnings: list[str]) -> Size | None:
    words = fields.get("spacings", "").split()
    if not words:
        return None
    if len(words) <= max(spatial):
        raise BadHeader(f"spacings is {fields['spacings'][:60]!r}; there are more axes")
    i, j, k = numbers(" ".join(words[axis] for axis in spatial), 3, "spacings")
    units = re.findall(r'"([^"]*)"', fields.get("units", ""))
    units = [units[axis] for axis in spatial] if len(units) > max(spatial) else []
    x, y, z = _units(" ".join(f'"{unit}"' for unit in units), warnings)
    return abs(k) * z, abs(j) * y, abs(i) * x


def _units(text: str, warnings: list[str]) -> np.ndarray:
    """Millimetres in the unit of each axis of space."""
    units = [unit.strip().lower() for unit in re.findall(r'"([^"]*)"', text)][:3]
    strange = sorted({unit for unit in units if unit and unit not in MILLIMETRES})
    if strange:
        warnings.append(f"lengths in {', '.join(strange)[:40]}, which is no unit that volseg knows; taken to be mm")
    factors = [MILLIMETRES.get(unit, 1.0) for unit in units] or [1.0]
    return np.array(factors if len(factors) == 3 else factors[:1] * 3)


def _skipped(path: Path, fields: dict[str, str], packed: bool) -> int:
    """Bytes before the voxels, in the file or in its packed contents; -1 where they are the last bytes of the file."""
    (lines,) = whole_numbers(fields.get("lineskip", "0"), 1, "line skip")
    (skip,) = whole_numbers(fields.get("byteskip", "0"), 1, "byte skip")
    if lines != 0 or skip < (0 if packed else -1):
        raise VolumeError(
            f"{path}: skips lines ({lines}) or bytes ({skip}) before its voxels in a way that is not read; write it "
            "again without that, for instance with 3D Slicer"
        )
    return skip
