"""Reading raw voxels, which a user describes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import format_triple
from volseg.volumes.audit import Audit
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.placing import lps_affine, voxel_size
from volseg.volumes.stored import open_stored, stored_as
from volseg.volumes.volume import Space, Volume


def open_raw(path: Path, options: OpenOptions) -> Volume:
    """The voxels in the file at `path`, W the fastest, as `options` describe them.

    Raises VolumeError where they are not described whole, or the file has not exactly their size.
    """
    raw = raw_type(path, options.dtype)
    if options.shape is None or raw is None:
        lacking = "--shape D x H x W" if options.shape is None else "--dtype, such as uint16"
        raise VolumeError(f"{path}: raw voxels say nothing of themselves; give {lacking}: --shape 512x512x512 --dtype "
                          "uint16 --voxel-size 0.05")  # fmt: skip
    size, warnings = voxel_size(path, None, options)
    expected, there = math.prod(options.shape) * raw.itemsize, path.stat().st_size
    if there != expected:
        raise VolumeError(
            f"{path}: {there} bytes, but {format_triple(options.shape)} voxels of {raw.name} are {expected}; correct "
            "--shape or --dtype"
        )
    stored = stored_as(data=path, shape=options.shape, offset=0, raw=raw)
    order = {">": ", big-endian", "<": ", little-endian"}.get(raw.str[0], "")
    audit = Audit(
        used=(path.name,), inputs=(path,), warnings=tuple(warnings), facts=(("stored as", f"{raw.name}{order}"),)
    )  # fmt: skip
    return open_stored(stored, path, Space(options.shape, lps_affine(path, size)), "raw", audit)


def raw_type(path: Path, text: str | None) -> np.dtype[np.generic] | None:
    """The type that a user names, little-endian unless said. Raises VolumeError where it is none of numbers."""
    if text is None:
        return None
    try:
        raw = np.dtype(text)
    except (TypeError, ValueError, SyntaxError):
        raw = np.dtype("O")
    if raw.kind not in "iuf" or raw.itemsize > 8 or raw.shape:
        raise VolumeError(f"{path}: --dtype {text}: no type of numbers; give such as uint8, int16, >u2 or float32")
    return raw if raw.str[0] == ">" else raw.newbyteorder("<")
