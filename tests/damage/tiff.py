"""TIFF files with bytes and tags damaged."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np

from damage.flips import Random, damage_bytes

VOXELS = np.arange(3 * 20 * 24, dtype="u2").reshape(3, 20, 24)
SIZE = {"axes": "ZYX", "spacing": 2.0, "unit": "mm"}


@cache
def tiffs() -> tuple[bytes, ...]:
    """Small files: of ImageJ, in tiles, in packed strips, BigTIFF, OME-TIFF."""
    import tifffile

    ome = {"axes": "ZYX", "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0, "PhysicalSizeZ": 1.0}
    options = (
        {"imagej": True, "metadata": SIZE, "resolution": (10, 10)},
        {"imagej": True, "metadata": SIZE, "resolution": (10, 10), "rowsperstrip": 7, "compression": "zlib"},
        {"ome": True, "metadata": ome, "tile": (16, 16), "compression": "zlib", "predictor": True},
        {"ome": True, "metadata": ome, "bigtiff": True, "byteorder": ">"},
    )
    files = []
    for option in options:
        file = io.BytesIO()
        tifffile.imwrite(file, VOXELS, **option)
        files.append(file.getvalue())
    return tuple(files)


def tiff_bytes(rng: Random, folder: Path) -> Path:
    """A TIFF file, or a folder of three, damaged anywhere."""
    files = tiffs()
    data = files[int(rng.integers(len(files)))]
    if rng.random() < 0.8:
        path = folder / "scan.tif"
        path.write_bytes(damage_bytes(rng, data))
        return path
    import tifffile

    (folder / "slices").mkdir()
    for number, page in enumerate(VOXELS):
        file = io.BytesIO()
        tifffile.imwrite(file, page, imagej=True, metadata={"spacing": 2.0, "unit": "mm"}, resolution=(10, 10))
        content = file.getvalue()
        (folder / "slices" / f"{number}.tif").write_bytes(damage_bytes(rng, content) if number == 1 else content)
    return folder / "slices"
