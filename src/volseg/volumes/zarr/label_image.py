"""Label images in OME-Zarr 0.5: their names and colours, and their place inside the store of the image they belong to.

``scan.zarr/labels/NAME`` is a label image of ``scan.zarr``, listed in ``scan.zarr/labels/zarr.json``.
Specification: https://ngff.openmicroscopy.org/0.5/#labels-md
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from volseg.errors import VolumeError
from volseg.files import flush_to_disk
from volseg.geometry import format_triple
from volseg.volumes.label_table import Colour, LabelTable, table_of
from volseg.volumes.volume import Space

VERSION = "0.5"
LABELS = "labels"
METADATA = "zarr.json"


def image_label(labels: LabelTable, *, in_store: bool) -> dict[str, Any]:
    """The `image-label` object: colours (background transparent), names, and inside a store the image they are of."""
    rows = sorted((value, name) for name, value in labels.names.items())
    content: dict[str, Any] = {"version": VERSION}
    if rows:
        content["colors"] = [
            {"label-value": value, "rgba": [*labels.colour(value), 0 if value == 0 else 255]} for value, _ in rows
        ]
        content["properties"] = [{"label-value": value, "name": name} for value, name in rows]
    return content | ({"source": {"image": "../../"}} if in_store else {})


def table_of_store(path: Path) -> LabelTable | None:
    """The label table of the OME-Zarr (0.4 or 0.5) at `path`, None where it has none or none that can be used."""
    try:
        attributes: Any = (
            json.loads((path / ".zattrs").read_text(encoding="utf-8")) if (path / ".zattrs").is_file() else {}
        )
        if (path / METADATA).is_file():
            attributes = json.loads((path / METADATA).read_text(encoding="utf-8")).get("attributes", {})
        entry = attributes.get("ome", attributes).get("image-label")
        colours = {int(row["label-value"]): _colour(row.get("rgba")) for row in entry.get("colors", ())}
        names = {int(row["label-value"]): _name(row) for row in entry.get("properties", ())}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):  # others write these; names are no must
        return None
    rows = [(value, name, colours.get(value)) for value, name in sorted(names.items()) if name]
    return table_of(rows) if rows else None


def store_of(path: Path) -> Path | None:
    """The store of which `path` is to be a label image (``STORE/labels/NAME``), None where it is anything else."""
    store = path.parent.parent
    if path.parent.name != LABELS or path.name.startswith(".") or path.name in ("", METADATA):
        return None
    return store if (store / METADATA).is_file() or store.suffix.lower() == ".zarr" else None


def label_images(store: Path) -> list[str]:
    """Names of the folders in ``STORE/labels`` that are zarr."""
    return sorted(file.parent.name for name in (METADATA, ".zgroup") for file in (store / LABELS).glob(f"[!.]*/{name}"))


def foreign_entries(store: Path) -> list[str]:
    """Names of what lies in a store and belongs to no zarr array or group: it is not to be removed with the store."""
    metadata = (METADATA, ".zgroup", ".zarray", ".zattrs", ".zmetadata")
    names = []
    for path in store.iterdir():
        chunks = re.fullmatch(r"c|\d+(\.\d+)*", path.name) is not None
        node = path.name == LABELS or any((path / name).is_file() for name in metadata)
        unfinished = path.name.startswith(".") and path.name.endswith((".part", ".former"))
        if not (path.name in metadata or chunks or (path.is_dir() and node) or unfinished):
            names.append(path.name)
    return sorted(names)


def check_store(store: Path, path: Path) -> None:
    """Raise VolumeError unless `store` is an OME-Zarr 0.5 image that can take a label image of one level at `path`."""
    content = _metadata(store, path)
    ome = content.get("attributes", {}).get("ome", {})
    if not isinstance(ome, dict) or ome.get("version") != VERSION or not ome.get("multiscales"):
        raise VolumeError(f"{path}: {store} is no OME-Zarr 0.5 image; run volseg ingest {store} -o NEW.zarr first")
    levels = len(ome["multiscales"][0].get("datasets", ()))
    if levels != 1:
        raise VolumeError(
            f"{path}: {store} has {levels} levels of resolution, and OME-Zarr 0.5 wants as many of its labels; volseg "
            "writes 1: give a .zarr of its own"
        )
    if content.get("consolidated_metadata"):
        raise VolumeError(f"{path}: {store} has consolidated metadata, which a new label would not be in; give a .zarr")
    if (store / LABELS).is_dir():
        _listed(_metadata(store / LABELS, path) if (store / LABELS / METADATA).exists() else {}, path)


def check_grid(store: Path, path: Path, space: Space) -> None:
    """Raise VolumeError unless labels on `space` lie on the grid of the image in `store`."""
    from volseg.volumes.zarr.reading import open_zarr

    image = open_zarr(store).space
    if not image.matches(space):
        sizes = f"{format_triple(space.shape)} voxels; the image has {format_triple(image.shape)}"
        raise VolumeError(f"{path}: not on the grid of the image in {store} ({sizes}); give a .zarr of its own")


def list_label(folder: Path, name: str) -> None:
    """Add `name` to the labels in `folder` (``STORE/labels``), whole or not at all, beside others that do the same."""
    with _alone_in(folder):
        target = folder / METADATA
        content: dict[str, Any] = {"zarr_format": 3, "node_type": "group"}
        if target.exists():
            content = _metadata(folder, target)
        names = _listed(content, target)
        if name in names:
            return
        attributes = content.setdefault("attributes", {})
        attributes["ome"] = {**attributes.get("ome", {}), "version": VERSION, "labels": [*names, name]}
        temporary = folder / f".{METADATA}.{secrets.token_hex(4)}.part"
        try:
            temporary.write_text(json.dumps(content, indent=2) + "\n")
            flush_to_disk(temporary)
            os.replace(temporary, target)
            flush_to_disk(folder)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Among volseg's own writers, on file systems that lock; elsewhere two that end in one instant may lose a name."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _metadata(group: Path, path: Path) -> dict[str, Any]:
    try:
        content = json.loads((group / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VolumeError(
            f"{path}: {group / METADATA} cannot be read ({error}); {group} must be OME-Zarr 0.5"
        ) from error
    if not isinstance(content, dict):
        raise VolumeError(f"{path}: {group / METADATA} holds no zarr metadata; {group} must be OME-Zarr 0.5")
    return content


def _listed(content: dict[str, Any], path: Path) -> list[str]:
    try:
        return [str(name) for name in content.get("attributes", {}).get("ome", {}).get("labels", [])]
    except (AttributeError, TypeError):
        raise VolumeError(f"{path}: the labels' {METADATA} is damaged: no list of names; mend or remove it") from None


def _colour(rgba: Any) -> Colour | None:
    if not isinstance(rgba, list) or len(rgba) < 3 or not all(isinstance(part, int) for part in rgba):
        return None
    red, green, blue = (min(max(int(part), 0), 255) for part in rgba[:3])
    return red, green, blue


def _name(row: dict[str, Any]) -> str:
    """The specification names no key for the name; these are in use."""
    name = next((row[key] for key in ("name", "label", "label-name", "class") if isinstance(row.get(key), str)), "")
    return str(name)
