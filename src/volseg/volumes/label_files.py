"""The names and colours of labels that a mask file carries, whatever its format."""

from __future__ import annotations

from pathlib import Path

from volseg.errors import VolumeError
from volseg.volumes.contents import kind_of
from volseg.volumes.formats.registry import file_of, format_at
from volseg.volumes.label_table import LabelTable
from volseg.volumes.mask_folder import is_mask_folder, table_of_folder


def label_table_of(path: str | Path) -> LabelTable | None:
    """The names and colours that the mask file at `path` carries, None where it carries none or cannot say.

    NIfTI, OME-Zarr, NRRD, and a folder of one mask a structure carry them; only headers are read. Raises VolumeError
    where the file cannot be read at all.
    """
    path = Path(path)
    try:
        if is_mask_folder(path):
            return table_of_folder(path)
        file_of(path).stat()  # an error where there is nothing
        format = format_at(path)
        if format is None:
            kind = kind_of(path)
            format = None if kind is None else kind.read_as
        return None if format is None or format.label_table is None else format.label_table(path)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror or error})") from error
