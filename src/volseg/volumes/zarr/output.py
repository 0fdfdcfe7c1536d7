"""Writing OME-Zarr 0.5 from many ranks: each shard is written once, whole, by the one rank that owns it.

zarr loses data where two writers share a shard (zarr-python #3683), so a shard is the unit of work.
"""

from __future__ import annotations

import json
import math
import shutil
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from volseg.files import flush_to_disk
from volseg.geometry import Box, Triple
from volseg.volumes.output import Content, Output, Unit, shrinks_to, units_of
from volseg.volumes.zarr.label_image import METADATA, image_label, list_label

CHUNK = 32
SMALL_SHARD, LARGE_SHARD = 64, 128
MANY_VOXELS = 512**3
LEVEL = "0"


class ZarrOutput(Output):
    """A group with one multiscale of one level; axes z, y, x, with c first where there are channels.

    in_store  it goes to ``STORE/labels/NAME``, and is listed there
    """

    def __init__(self, content: Content, *, in_store: bool = False) -> None:
        self._content, self._in_store = content, in_store
        self._side = shard_side(content.space.shape)
        self.units = shard_units(content.space.shape, content.channels)
        self._temporary = Path()
        self._array: Any = None
        self._written: list[Path] = []

    @property
    def least_bytes(self) -> int:
        content = self._content
        voxels = math.prod(content.space.shape) * (content.channels or 1)
        return voxels * content.dtype.itemsize // shrinks_to(content)

    def create(self, temporary: Path) -> None:
        import zarr
        from zarr.codecs import ZstdCodec

        temporary.mkdir()
        lead, names = ((), ()) if self._content.channels is None else ((self._content.channels,), ("c",))
        ones = (1,) * len(lead)
        zarr.create_array(
            store=str(temporary),
            name=LEVEL,
            shape=lead + self._content.space.shape,
            chunks=ones + (CHUNK,) * 3,
            shards=ones + (self._side,) * 3,
            dtype=self._content.dtype,
            compressors=ZstdCodec(level=3),
            fill_value=0,
            dimension_names=(*names, "z", "y", "x"),
        )

    def open(self, temporary: Path) -> None:
        import zarr

        self._temporary = temporary
        # Empty shards are written too: a shard that is not there is then a loss, and never read as air.
        with zarr.config.set({"array.write_empty_chunks": True}):
            self._array = zarr.open_array(str(temporary), path=LEVEL, mode="r+")

    def encode(self, unit: Unit, voxels: np.ndarray) -> np.ndarray:
        return voxels.astype(self._content.dtype, casting="same_kind", copy=False)

    def store(self, unit: Unit | None, piece: np.ndarray, before: int, total: int) -> None:
        if unit is None:
            return
        lead: tuple[int, ...] = () if unit.channel is None else (unit.channel,)
        self._array[(*lead, *unit.box.slices)] = piece
        shard = (*lead, *(start // self._side for start in unit.box.start))
        self._written.append(self._temporary.joinpath(LEVEL, "c", *(str(n) for n in shard)))

    def finish(self) -> None:
        for shard in self._written:
            flush_to_disk(shard)

    def publish(self, temporary: Path, path: Path) -> None:
        # The group's metadata comes last: without it the folder is no OME-Zarr.
        metadata = {"zarr_format": 3, "node_type": "group", "attributes": self._attributes(path.name)}
        (temporary / "zarr.json").write_text(json.dumps(metadata, indent=2) + "\n")
        for written in (temporary / LEVEL / "zarr.json", temporary / "zarr.json", temporary):
            flush_to_disk(written)
        former = temporary.with_suffix(".former")
        first = self._in_store and not path.parent.exists()
        try:
            if first:
                path.parent.mkdir()
            if path.exists():
                path.rename(former)
            temporary.rename(path)
            flush_to_disk(path.parent)
            if self._in_store:  # the list comes last: it never names a label that is not there
                list_label(path.parent, path.name)
        except BaseException:
            _take_back(temporary, path, former)
            if first:
                with suppress(OSError):
                    (path.parent / METADATA).unlink(missing_ok=True)
                    path.parent.rmdir()
            raise
        shutil.rmtree(former, ignore_errors=True)

    def _attributes(self, name: str) -> dict[str, Any]:
        d, h, w = (float(side) for side in self._content.space.spacing)
        x, y, z = (float(side) for side in self._content.space.affine[:3, 3])
        channel: list[dict[str, str]] = []
        scale, translation = [d, h, w], [z, y, x]
        if self._content.channels is not None:
            channel, scale, translation = [{"name": "c", "type": "channel"}], [1.0, *scale], [0.0, *translation]
        space = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"]
        transformations = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": translation},
        ]
        multiscale = {
            "name": name.removesuffix(".zarr"),
            "axes": channel + space,
            "datasets": [{"path": LEVEL, "coordinateTransformations": transformations}],
        }
        # OME-Zarr 0.5 knows no rotation and no patient, so the affine is kept whole beside it.
        own: dict[str, Any] = {
            "affine": np.asarray(self._content.space.affine, dtype=np.float64).tolist(),
            "affine_maps": "(x, y, z, 1) voxel indices to RAS+ millimetres",
            "every_shard_is_stored": True,
        }
        if self._content.names:
            own["channels"] = list(self._content.names)
        if self._content.fixes:
            own["fixes"] = list(self._content.fixes)
        ome: dict[str, Any] = {"version": "0.5", "multiscales": [multiscale]}
        if self._content.labels is not None:
            ome["image-label"] = image_label(self._content.labels, in_store=self._in_store)
        return {"ome": ome, "volseg": own}


def _take_back(temporary: Path, path: Path, former: Path) -> None:
    """Leave things as they were before `publish`; what is left at `temporary` is removed by the caller."""
    with suppress(OSError):
        if not temporary.exists():
            path.rename(temporary)
        if former.exists():
            former.rename(path)


def shard_side(shape: Triple) -> int:
    """Voxels along each side of a shard: small enough to share out, large enough not to make too many files."""
    d, h, w = shape
    return SMALL_SHARD if d * h * w <= MANY_VOXELS else LARGE_SHARD


def shard_units(shape: Triple, channels: int | None) -> list[Unit]:
    """One unit for each shard, cut off at the volume's end; channel by channel, then in array order."""
    side = shard_side(shape)
    whole = Box.whole(shape)
    boxes = [
        Box((d, h, w), (d + side, h + side, w + side)).intersect(whole)
        for d, h, w in product(*(range(0, n, side) for n in shape))
    ]
    return units_of(boxes, channels)
