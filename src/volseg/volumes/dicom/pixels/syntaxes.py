"""Transfer syntaxes that are not read here: what they are, and what makes files of them that are."""

from __future__ import annotations

AGAIN = "have the series exported again, uncompressed (Explicit VR Little Endian)"
CONVERT = 'gdcmconv --raw FILE FILE makes it uncompressed; for a folder: for f in *; do gdcmconv --raw "$f" "$f"; done'
KINDS = (  # (UIDs or their beginnings, what it is, what to do)
    (
        ("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112"),
        "JPEG XL, which no converter of DICOM that is common reads yet",
        AGAIN,
    ),
    (("1.2.840.113619.5.2",), "GE's private implicit big endian", CONVERT),
    (
        ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.204", "1.2.840.10008.1.2.4.205"),
        "pixels that stay on a server (JPIP)",
        "fetch the series from the archive with its pixels",
    ),
    (("1.2.840.10008.1.2.4.10", "1.2.840.10008.1.2.7"), "video, not CT", AGAIN),
)


def known_kind(syntax: str) -> str | None:
    """What a transfer syntax is, and what to do, for a message; None of one that is not among `KINDS`."""
    return next((f"{what}; {remedy}" for beginnings, what, remedy in KINDS if syntax.startswith(beginnings)), None)


def what_it_is(syntax: str) -> str:
    """What a transfer syntax without decoder is, and the way to one that is read, for a message."""
    kind = known_kind(syntax)
    if kind is not None:
        return kind
    return CONVERT if syntax.startswith("1.2.840.10008.1.2.4.") else AGAIN
