"""All formats, and the lists that follow from them. A new format is a record in a file of its own, and a line here."""

from __future__ import annotations

from pathlib import Path

from volseg.volumes.formats.dicom import DICOM
from volseg.volumes.formats.format import Format
from volseg.volumes.formats.hdf5 import HDF5
from volseg.volumes.formats.metaimage import METAIMAGE
from volseg.volumes.formats.nifti import NIFTI
from volseg.volumes.formats.nrrd import NRRD
from volseg.volumes.formats.raw import RAW
from volseg.volumes.formats.tiff import TIFF
from volseg.volumes.formats.zarr import ZARR
from volseg.volumes.signs import Form

FORMATS = (NIFTI, ZARR, NRRD, METAIMAGE, TIFF, HDF5, RAW, DICOM)
"""The first that a path is at counts; of a folder without marks of another, that is DICOM."""

LISTED = tuple(suffix for format in FORMATS for suffix in format.listed)
"""Endings of what is taken from a folder of volumes, of masks, or of a data set."""

WRITTEN = tuple(suffix for format in FORMATS for suffix in format.written)
"""Endings that a volume can be written with."""

MASKS = (*WRITTEN, *(suffix for format in FORMATS for suffix in format.masks_only))
"""Endings that a mask can be written with."""

SUFFIXES = tuple(suffix for format in FORMATS for suffix in format.suffixes)
"""Endings of all that is read."""

_WRITERS = {suffix: format for format in FORMATS for suffix in (*format.written, *format.masks_only)} | {"": ZARR}


def format_at(path: Path) -> Format | None:
    """The format of what lies at `path`, by its name and by what kind of thing it is; None where these do not tell."""
    return next((format for format in FORMATS if format.is_at(path)), None)


def file_of(path: Path) -> Path:
    """The file or folder on disk of a path, which of HDF5 goes on inside the file."""
    format = format_at(path)
    return path if format is None else format.file_of(path)


def format_of_form(form: Form) -> Format | None:
    """The format whose files begin so; None where volseg reads no such files."""
    return next((format for format in FORMATS if form in format.forms), None)


def writer_of(suffix: str) -> Format:
    """The format that writes names with this ending, of `MASKS`; none stands for a label in a zarr store."""
    return _WRITERS[suffix]
