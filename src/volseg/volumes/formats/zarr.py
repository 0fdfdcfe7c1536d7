"""Zarr: OME-Zarr and plain arrays, folders; a mask also as a label of a store (``SCAN.zarr/labels/NAME``)."""

from __future__ import annotations

from pathlib import Path

from volseg.volumes.formats.format import Format, Request
from volseg.volumes.label_table import LabelTable
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.output import Output
from volseg.volumes.volume import Volume

SUFFIX = ".zarr"


def is_zarr_store(path: Path) -> bool:
    """Whether a folder holds zarr metadata, or has nothing but the name."""
    if not path.is_dir():
        return False
    metadata = any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))
    return metadata or (path.suffix.lower() == SUFFIX and not any(path.iterdir()))


def _is_at(path: Path) -> bool:
    return path.is_dir() and (path.suffix.lower() == SUFFIX or is_zarr_store(path))


def _open(path: Path, options: OpenOptions, channel: int | None) -> Volume:
    from volseg.volumes.zarr.reading import open_zarr

    return open_zarr(path)


def _label_table(path: Path) -> LabelTable | None:
    from volseg.volumes.zarr.label_image import table_of_store

    return table_of_store(path)


def _output(request: Request) -> Output:
    from volseg.volumes.zarr.output import ZarrOutput

    return ZarrOutput(request.content, in_store=request.suffix == "")


ZARR = Format(
    name="zarr", noun="zarr store", suffixes=(SUFFIX,), is_at=_is_at, forms=(), open=_open, label_table=_label_table,
    listed=(SUFFIX,), written=(SUFFIX,), output=_output,
)  # fmt: skip
