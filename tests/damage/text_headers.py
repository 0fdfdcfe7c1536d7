"""NRRD and MetaImage files with bytes and header fields damaged."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from damage.flips import Random, damage_bytes

VOXELS = np.arange(4 * 5 * 6, dtype="<i2").tobytes()
NRRD = {
    "type": "short", "dimension": "3", "sizes": "6 5 4", "encoding": "raw", "endian": "little",
    "kinds": "domain domain domain",
    "space": "left-posterior-superior", "space directions": "(1,0,0) (0,1,0) (0,0,2)", "space origin": "(1,2,3)",
    "byte skip": "0", "spacings": "1 1 1", "space units": '"mm" "mm" "mm"',
}  # fmt: skip
META = {
    "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0", "ElementSpacing": "1 1 2", "DimSize": "6 5 4",
    "ElementNumberOfChannels": "1", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
}  # fmt: skip
ABSURD = (
    "", "0", "-1", "1", "2", "3", "4", "99999999999999999999", "nan", "inf", "1e308", "6 5", "6 5 4 1", "1 6 5 4",
    "2147483647 2147483647 2147483647", "none", "none none none", "(nan,0,0) (0,1,0) (0,0,1)",
    "(0,0,0) (0,0,0) (0,0,0)",
    "gzip", "bzip2", "double", "MET_DOUBLE", "block", "big", "True", "False", "/dev/zero", "../x", "LIST", "%d",
    "\x1b[2J",
    "list domain domain", "1e-320 1 1", '"lightyears"', "0 0 0 0 0 0 0 0 0",
)  # fmt: skip


def text_header(rng: Random, folder: Path) -> Path:
    """A header with one to three values that are absurd or belong to another field, or bytes damaged anywhere."""
    nrrd = rng.random() < 0.5
    fields = dict(NRRD if nrrd else META)
    packed = rng.random() < 0.4
    fields["encoding" if nrrd else "CompressedData"] = (
        ("gzip" if nrrd else "True") if packed else ("raw" if nrrd else "False")
    )
    if rng.random() < 0.7:
        for name in rng.choice(list(fields), int(rng.integers(1, 4)), replace=False):
            fields[str(name)] = str(rng.choice([*ABSURD, *fields.values()]))
    between = ": " if nrrd else " = "
    lines = [f"{name}{between}{text}" for name, text in fields.items() if text]
    head = "\n".join([*(["NRRD0005"] if nrrd else []), *lines, *(["", ""] if nrrd else [""])]).encode()
    data = head + (zlib.compress(VOXELS) if packed else VOXELS)
    path = folder / ("scan.nrrd" if nrrd else "scan.mha")
    path.write_bytes(damage_bytes(rng, data) if rng.random() < 0.4 else data)
    return path
