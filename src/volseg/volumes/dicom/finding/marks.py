"""How a DICOM file is told from others, before anything is parsed."""

from __future__ import annotations

DICOM_MARK = b"DICM"
DICOM_MARK_AT = 128
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"  # the class of a DICOMDIR


def looks_like_dicom(start: bytes) -> bool:
    """Whether a file's first 132 bytes are those of a DICOM file.

    Old files lack the preamble and begin at once with group 2 or 8, as few other files do; with group 8 in big-endian
    order, and the representation of its first element, fewer still.
    """
    mark = start[DICOM_MARK_AT : DICOM_MARK_AT + len(DICOM_MARK)]
    big_endian = start[:2] == b"\x00\x08" and start[4:6] in (b"UL", b"CS", b"UI", b"DA")
    return mark == DICOM_MARK or start[:2] in (b"\x02\x00", b"\x08\x00") or big_endian
