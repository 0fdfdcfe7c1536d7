"""What the tags of a TIFF file say of the size and place of its voxels: volseg's own, ImageJ's, OME's.

ImageJ keeps pixels a unit in the resolution tags, and in ImageDescription the unit and the distance of the slices;
OME-TIFF keeps XML there (https://ome-model.readthedocs.io). Other resolutions, of dots an inch, are seldom true and
say nothing of the third axis, so they are not believed.
"""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import numpy as np

from volseg.volumes.placing import MILLIMETRES, Size

AFFINE = "volseg_affine="
MOST_XML_BYTES = 16 << 20


def stated_size(file: Any) -> Size | None:
    """The sides of a voxel in mm along D, H, W that tifffile's `file` says; None where it does not say all three."""
    try:
        if file.is_ome:
            return _of_ome(file.ome_metadata)
        if file.is_imagej:
            return _of_imagej(file)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, ElementTree.ParseError):
        return None  # tags of any content
    return None


def stated_affine(file: Any) -> np.ndarray | None:
    """The affine that volseg wrote, whole; None where it wrote none."""
    description = str(getattr(file.pages[0], "description", "") or "")
    for line in description.splitlines():
        if line.startswith(AFFINE):
            try:
                return np.array(json.loads(line.removeprefix(AFFINE)), dtype=np.float64).reshape(4, 4)
            except (ValueError, TypeError, RecursionError):
                return None
    return None


def _of_ome(text: str | None) -> Size | None:
    if not text or len(text) > MOST_XML_BYTES or "<!DOCTYPE" in text or "<!ENTITY" in text:
        return None
    for element in ElementTree.fromstring(text).iter():
        if element.tag.rpartition("}")[2] == "Pixels":
            sides = [
                float(element.attrib[f"PhysicalSize{axis}"])
                * MILLIMETRES[element.attrib.get(f"PhysicalSize{axis}Unit", "µm").lower()]
                for axis in "ZYX"
            ]
            return sides[0], sides[1], sides[2]
    return None


def _of_imagej(file: Any) -> Size | None:
    metadata = file.imagej_metadata or {}
    unit = MILLIMETRES.get(str(metadata.get("unit", "")).strip().replace("\\u00B5", "µ").lower())
    spacing = metadata.get("spacing")
    if unit is None or spacing is None:
        return None
    y, x = (file.pages[0].tags[name].value for name in ("YResolution", "XResolution"))
    return abs(float(spacing)) * unit, unit * y[1] / y[0], unit * x[1] / x[0]
