"""How a DICOM file is told from others, before anything is parsed."""

from __future__ import annotations

DICOM_MARK = b"DICM"
DICOM_MARK_AT = 128
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"  # the class of a DICOMDIR


def looks_like_dicom(start: bytes) -> bool:
    """Whether a file's first 132 bytes are those of a DICOM file.

    Old files lack the preamble and begin at once with group 2 or 8, as few other files do.
    """
    mark = start[DICOM_MARK_AT : DICOM_MARK_AT + len(DICOM_MARK)]
    return mark == DICOM_MARK or start[:2] in (b"\x02\x00", b"\x08\x00")
