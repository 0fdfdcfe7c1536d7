"""OME-Zarr stores with metadata and chunks damaged."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from damage.flips import Random, damage_bytes

NUMBERS = (0, -1, 1, 2, 7, 255, 256, 32767, 65535, 10**5, 2**31 - 1, -(2**31), 10**9, 1e30, -1e30, 1e-30, 0.5)
TEXTS = (
    "",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "1e400",
    "1e30",
    "x",
    "1\\2",
    "\\",
    "1.5",
    "-1",
    "99999999999",
    "..",
    "\x00",
    "é",
)


@cache
def zarr_store(version: int) -> tuple[tuple[str, bytes], ...]:
    """Every file of a small OME-Zarr store: (name, bytes)."""
    with tempfile.TemporaryDirectory() as name:
        group = zarr.open_group(name, mode="w", zarr_format=version)
        shape, chunk = (8, 10, 12), (4, 5, 6)
        array = group.create_array(
            "0", shape=shape, chunks=chunk, shards=shape if version == 3 else None, dtype="int16"
        )
        array[:] = np.arange(960).reshape(shape)
        axes = [{"name": n, "type": "space", "unit": "millimeter"} for n in "zyx"]
        steps = [{"type": "scale", "scale": [2.0, 0.7, 0.7]}, {"type": "translation", "translation": [1, 2, 3]}]
        scales = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}]
        group.attrs.update(
            {"ome": {"version": "0.5", "multiscales": scales}} if version == 3 else {"multiscales": scales}
        )
        if version == 3:
            group.attrs["volseg"] = {"affine": np.diag([0.7, 0.7, 2, 1]).tolist(), "every_shard_is_stored": True}
        files = sorted(file for file in Path(name).rglob("*") if file.is_file())
        return tuple((str(file.relative_to(name)), file.read_bytes()) for file in files)


def zarr_metadata(rng: Random, folder: Path) -> Path:
    """A store with its JSON changed, a file damaged or lost."""
    path = folder / "scan.zarr"
    files = dict(zarr_store(int(rng.choice([2, 3]))))
    what = rng.random()
    metadata = [name for name in files if name.endswith(("zarr.json", ".zarray", ".zattrs", ".zgroup"))]
    name = str(rng.choice(metadata if what < 0.8 else list(files)))
    if what < 0.6:
        tree = json.loads(files[name])
        for _ in range(int(rng.integers(1, 3))):
            _damage_json(rng, tree)
        files[name] = json.dumps(tree).encode()
    elif what < 0.95:
        files[name] = damage_bytes(rng, files[name])
    else:
        del files[name]
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def _damage_json(rng: Random, tree: Any) -> None:
    node = tree
    while True:
        keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(node[key], (dict, list)) and len(node[key]) and rng.random() < 0.8:
            node = node[key]
            continue
        break
    pool = (
        *NUMBERS,
        *TEXTS,
        None,
        True,
        [],
        {},
        [[]],
        [1e9] * 3,
        float("nan"),
        float("inf"),
        10**30,
        "../../..",
        "/etc",
    )
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = pool[int(rng.integers(len(pool)))]
