"""Two images at one position: a copy is left out, anything else is an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.audit import Dropped
from volseg.volumes.dicom.finding.keys import unlike
from volseg.volumes.dicom.geometry import Placement, same_places
from volseg.volumes.dicom.image import Image
from volseg.volumes.dicom.pixels.hounsfield import hounsfield, hounsfield_dtype
from volseg.volumes.dicom.pixels.stack import open_pixels


def without_copies(path: Path, placement: Placement) -> tuple[Placement, list[Dropped]]:
    """The slices without exact copies (same position, same values in HU), and the copies with the reason.

    Of copies the first by name stays. Only images at one position are decoded, two at a time.

    Raises VolumeError, naming both, where two images at one position have different pixels; and where only copies of
    one slice are left.
    """
    pairs = same_places(placement)
    if not pairs:
        return placement, []
    groups: list[list[int]] = []
    for first, second in pairs:
        if groups and groups[-1][-1] == first:
            groups[-1].append(second)
        else:
            groups.append([first, second])
    dropped, gone = [], set()
    for group in groups:
        kept, *others = sorted(group, key=lambda n: placement.images[n].name)
        for other in others:
            if not same_pixels(placement.images[kept], placement.images[other]):
                telling = unlike(placement.images[kept], placement.images[other])
                raise VolumeError(
                    f"{path}: {placement.name(kept)} and {placement.images[other].short_name} lie at one position and "
                    f"differ in their pixels ({len(groups)} such positions): several phases or reconstructions in one "
                    f"series{f' ({telling})' if telling else ''}; give a folder with one of them"
                )
            reason = f"exact copy of {placement.images[kept].short_name}"
            dropped.append(Dropped(placement.images[other].name, reason))
            gone.add(other)
    stays = [n for n in range(len(placement.images)) if n not in gone]
    if len(stays) == 1:
        raise VolumeError(f"{path}: its {len(placement.images)} images are copies of one slice; a volume needs two")
    images = tuple(placement.images[n] for n in stays)
    return replace(placement, images=images, positions=placement.positions[stays]), dropped


def same_pixels(one: Image, other: Image) -> bool:
    """Whether two images have the same values in HU. Raises VolumeError where one cannot be decoded."""
    with open_pixels(one) as first, open_pixels(other) as second:
        a = hounsfield(one, first, hounsfield_dtype(one))
        b = hounsfield(other, second, hounsfield_dtype(other))
    return bool(np.array_equal(a, b))
