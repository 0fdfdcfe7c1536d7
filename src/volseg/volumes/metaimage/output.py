"""Writing MetaImage, not packed, from many ranks."""

from __future__ import annotations

import json

import numpy as np

from volseg.volumes.output import Content
from volseg.volumes.placing import as_lps, words
from volseg.volumes.planes_output import PlanesOutput, type_name

TYPES = {
    "i1": "MET_CHAR", "u1": "MET_UCHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT", "u4": "MET_UINT",
    "i8": "MET_LONG_LONG", "u8": "MET_ULONG_LONG", "f4": "MET_FLOAT", "f8": "MET_DOUBLE",
}  # fmt: skip


class MetaOutput(PlanesOutput):
    """A ``.mha``; channels are its fourth axis. The names of labels are not kept."""

    def __init__(self, content: Content) -> None:
        super().__init__(content, header_bytes(content))

    def rehearse(self) -> tuple[str, ...]:
        return names_are_lost(self.content, ".mha")


def names_are_lost(content: Content, ending: str) -> tuple[str, ...]:
    """What is to be said of a mask of named labels in a format that keeps no names."""
    if content.labels is None or not content.labels.names:
        return ()
    return (f"{ending} keeps no names of labels; .seg.nrrd, .nii.gz and .zarr do",)


def header_bytes(content: Content) -> bytes:
    """All that comes before the voxels. Raises VolumeError where MetaImage has no such type."""
    vectors, origin = as_lps(content.space.affine)
    lengths = np.sqrt((vectors**2).sum(axis=0))
    matrix = (vectors / lengths).T  # each row is the direction of an axis
    sides = list(content.space.shape[::-1])
    if content.channels is not None:
        sides, lengths, origin = [*sides, content.channels], np.append(lengths, 1), np.append(origin, 0)
        matrix = np.block([[matrix, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])
    facts = {name: list(texts) for name, texts in (("channels", content.names), ("fixes", content.fixes)) if texts}
    fields = {
        "ObjectType": "Image", "NDims": len(sides), "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": words(matrix), "Offset": words(origin),
        "CenterOfRotation": words(np.zeros(len(sides))), "ElementSpacing": words(lengths),
        "DimSize": " ".join(map(str, sides)), **({"Comment": json.dumps(facts)} if facts else {}),
        "ElementType": type_name(TYPES, content.dtype, "MetaImage"), "ElementDataFile": "LOCAL",
    }  # fmt: skip
    return "".join(f"{name} = {text}\n" for name, text in fields.items()).encode()
