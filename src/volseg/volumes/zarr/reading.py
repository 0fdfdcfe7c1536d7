"""Reading zarr (v2 and v3): OME-Zarr 0.4 and 0.5, and plain 3-D arrays."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError, first_line
from volseg.geometry import Box, format_triple
from volseg.volumes.audit import Audit
from volseg.volumes.checks import check_affine
from volseg.volumes.volume import Space, Volume

MILLIMETRES = {"nanometer": 1e-6, "micrometer": 1e-3, "millimeter": 1.0, "centimeter": 10.0, "meter": 1000.0}
NO_SCALE = "nothing says how large its voxels are; taken to be 1 mm"
MOST_CHUNKS = 1 << 22  # 4096 x 4096 x 4096 voxels in chunks of 32 x 32 x 16; each chunk read costs some 0.1 ms


def open_zarr(path: Path) -> Volume:
    """The volume in the zarr folder `path`: full resolution of an OME-Zarr, or a plain array at spacing 1 mm.

    Where volseg wrote it, its own affine is used; otherwise scale and translation, taken as RAS+. Axes of length 1
    before z, y, x are dropped.

    Raises VolumeError where the folder is no zarr store or incomplete, is not 3-D, or has no real voxels.
    """
    import zarr

    try:
        node: Any = zarr.open(str(path), mode="r")
        array, attributes = _full_resolution(node, path)
        kind, ndim = array.dtype.kind, array.ndim
    except VolumeError:
        raise
    except Exception as error:  # zarr reports damaged metadata by many types
        raise VolumeError(f"{path}: not a readable zarr store ({first_line(error)})") from error
    if kind not in "biuf":
        raise VolumeError(f"{path}: voxels are {array.dtype}; give an array of integers or real numbers")
    if ndim < 3 or any(n != 1 for n in array.shape[:-3]):
        sides = format_triple(array.shape)
        raise VolumeError(f"{path}: an array of {sides}; volseg reads one volume of axes z, y, x: give one channel")
    _require_few_chunks(array, path)
    d, h, w = (int(n) for n in array.shape[-3:])
    if min(d, h, w) < 1:
        raise VolumeError(f"{path}: an empty array, {format_triple((d, h, w))}; is its metadata damaged?")
    try:
        affine, warnings = _affine(attributes, ndim, path)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise VolumeError(f"{path}: its OME-Zarr metadata is malformed ({what}); write the store again") from error
    check_affine(affine, path)
    complete = bool(attributes.get("volseg", {}).get("every_shard_is_stored", False))
    return _ZarrVolume(path, Space((d, h, w), affine), array, complete, Audit(warnings=tuple(warnings)))


class _ZarrVolume(Volume):
    format = "zarr"

    def __init__(self, path: Path, space: Space, array: Any, complete: bool, audit: Audit) -> None:
        self.path, self.space, self.audit, self._array = path, space, audit, array
        self.format = "OME-Zarr" if complete else "zarr"
        self._stored = np.dtype(array.dtype)
        kind = self._stored.kind
        self.dtype = np.dtype({"f": np.float32, "b": np.uint8}.get(kind, self._stored.newbyteorder("=")))
        if complete:
            self._require_shards()

    def read(self, box: Box) -> np.ndarray:
        try:
            values = self._array[(*(0,) * (self._array.ndim - 3), *box.slices)]
        except Exception as error:  # a codec's or the store's, of any type
            raise VolumeError(f"{self.path}: damaged at {box} ({first_line(error)}); copy it again") from error
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, dtype=self.dtype)

    def _require_shards(self) -> None:
        sides = self._array.shards or self._array.chunks
        expected = int(np.prod([-(-n // side) for n, side in zip(self._array.shape, sides, strict=True)]))
        folder = self.path / self._array.path / "c"
        found = sum(1 for file in folder.rglob("*") if file.is_file())
        if found < expected:
            raise VolumeError(f"{self.path}: incomplete: {found} of its {expected} shards are there; copy it again")


def _require_few_chunks(array: Any, path: Path) -> None:
    """Chunks that are not stored are legal (background), so a damaged shape promises any number of them."""
    count = prod(-(-int(n) // max(1, int(side))) for n, side in zip(array.shape, array.chunks, strict=True))
    if count > MOST_CHUNKS:
        sides = f"{format_triple(array.shape)} in chunks of {format_triple(array.chunks)}"
        raise VolumeError(f"{path}: {count} chunks ({sides}), limit {MOST_CHUNKS}; is its metadata damaged?")


def _full_resolution(node: Any, path: Path) -> tuple[Any, dict[str, Any]]:
    """The array of the first (finest) level, and the attributes that describe it."""
    attributes: dict[str, Any] = dict(node.attrs)
    if hasattr(node, "shape"):
        return node, attributes
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        raise VolumeError(f"{path}: a zarr group without OME-Zarr metadata; give the array inside it")
    return node[multiscales[0]["datasets"][0]["path"]], attributes


def _affine(attributes: dict[str, Any], ndim: int, path: Path) -> tuple[np.ndarray, list[str]]:
    """The affine, and warnings of what it is taken from in want of better."""
    if "volseg" in attributes:
        try:
            return np.asarray(attributes["volseg"]["affine"], dtype=np.float64).reshape(4, 4), []
        except (KeyError, TypeError, ValueError) as error:
            raise VolumeError(
                f"{path}: its attribute volseg holds no affine of 4 x 4 numbers; remove the attribute"
            ) from error
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        return np.eye(4), [NO_SCALE]
    multiscale = multiscales[0]
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale.get("axes", ())]
    if axes and [axis["name"] for axis in axes][-3:] != ["z", "y", "x"]:
        raise VolumeError(f"{path}: axes {', '.join(a['name'] for a in axes)}; volseg reads axes that end in z, y, x")
    scale, translation = np.ones(ndim), np.zeros(ndim)
    steps = [*multiscale["datasets"][0].get("coordinateTransformations", [])]
    steps += multiscale.get("coordinateTransformations", [])
    for step in steps:
        if step["type"] == "scale":
            factor = np.asarray(step["scale"], dtype=np.float64)
            scale, translation = scale * factor, translation * factor
        elif step["type"] == "translation":
            translation = translation + np.asarray(step["translation"], dtype=np.float64)
        elif step["type"] != "identity":
            raise VolumeError(f"{path}: a coordinate transformation of type {step['type']}; volseg reads scales only")
    units = np.array([_millimetres(axis, path) for axis in axes[-3:]] or [1.0] * 3)
    affine = np.eye(4)
    affine[[0, 1, 2], [0, 1, 2]] = (scale[-3:] * units)[::-1]
    affine[:3, 3] = (translation[-3:] * units)[::-1]
    return affine, _doubts(axes[-3:], scale[-3:], [step["type"] for step in steps])


def _doubts(axes: list[dict[str, str]], scale: np.ndarray, steps: list[str]) -> list[str]:
    doubts = [] if "scale" in steps else [NO_SCALE]
    if "scale" in steps and not (axes and all(axis.get("unit") for axis in axes)):
        doubts.append("its axes have no unit of length; taken to be in millimetres")
    if (scale < 0).any():
        doubts.append(f"a negative scale ({format_triple(tuple(f'{n:.4g}' for n in scale))}): the axis runs backwards")
    return doubts


def _millimetres(axis: dict[str, str], path: Path) -> float:
    unit = axis.get("unit") or "millimeter"
    if unit not in MILLIMETRES:
        raise VolumeError(f"{path}: axis {axis['name']} is in {unit}; volseg reads {', '.join(MILLIMETRES)}")
    return MILLIMETRES[unit]
