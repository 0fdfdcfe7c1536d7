"""HDF5: a data set of three axes in a file, named ``FILE.h5:/path/in/file`` where there are several."""

from __future__ import annotations

from pathlib import Path

from volseg.volumes.formats.format import Format
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.signs import Form
from volseg.volumes.volume import Volume

SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")


def split(path: Path) -> tuple[Path, str]:
    """The file of ``FILE.h5:/path/in/file``, and what is named in it; empty where a file is named alone."""
    text = str(path)
    for suffix in SUFFIXES:
        at = text.lower().find(f"{suffix}:")
        if at >= 0 and not path.exists():
            return Path(text[: at + len(suffix)]), text[at + len(suffix) + 1 :]
    return path, ""


def _is_at(path: Path) -> bool:
    file, inside = split(path)
    return file.is_file() and (bool(inside) or file.name.lower().endswith(SUFFIXES))


def _open(path: Path, options: OpenOptions, channel: int | None) -> Volume:
    from volseg.volumes.hdf5.reading import open_hdf5

    return open_hdf5(path, options)


HDF5 = Format(
    name="hdf5", noun="HDF5 file", suffixes=SUFFIXES, is_at=_is_at, forms=(Form.HDF5,), open=_open, own_size=False,
    file_of=lambda path: split(path)[0],
)  # fmt: skip
