"""Every way of damaging a file: from a random generator and an empty folder to the path that a reader is given.

The sources are the small real files of pydicom's and nibabel's wheels, changed as little as is needed to be read as CT.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from damage.archives import archive, dicomdir
from damage.dicom import dicom_bytes, dicom_lengths, dicom_values
from damage.flips import Random
from damage.labels import labels_bytes, labels_values
from damage.nifti import gzip_stream, nifti_bytes, nifti_values
from damage.text_headers import text_header
from damage.tiff import tiff_bytes
from damage.zarr_stores import zarr_metadata

FAMILIES: dict[str, Callable[[Random, Path], Path]] = {
    "dicom_bytes": dicom_bytes,
    "dicom_lengths": dicom_lengths,
    "dicom_values": dicom_values,
    "dicomdir": dicomdir,
    "archive": archive,
    "nifti_bytes": nifti_bytes,
    "nifti_values": nifti_values,
    "gzip_stream": gzip_stream,
    "zarr_metadata": zarr_metadata,
    "text_header": text_header,
    "tiff_bytes": tiff_bytes,
}
LABELS: dict[str, Callable[[Random, Path], Path]] = {  # to be read as the labels of an undamaged series
    "labels_bytes": labels_bytes,
    "labels_values": labels_values,
}
