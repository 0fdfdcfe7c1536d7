"""What a data set looks like: shapes, spacings, voxels of each class, and intensities of the foreground.

What CT is normalised with is made from this, so it is computed once, kept with a run, and used again when the run goes
on. Everything in it is made from counts, extremes and headers, so it has the same bits on any number of ranks.
The idea and most names are those of nnU-Net's dataset_fingerprint.json.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.errors import CheckpointError
from volseg.files import write_text
from volseg.geometry import Triple
from volseg.text import read_text
from volseg.volumes.intensity import ChannelScheme, Intensities, is_ct
from volseg.volumes.portrait import Portrait

FINGERPRINT = "fingerprint.json"
SCHEMA = 1


@dataclass(frozen=True)
class CaseFingerprint:
    """One case.

    shape    (D, H, W) voxels, canonical order
    spacing  their sides in mm
    voxels   of each class, background first
    digest   of the voxels of its image channels (BLAKE2b, 128 bits); copies of an image have the same, of any format
    ignored  voxels that nobody has labelled (nnU-Net's ``ignore``)
    """

    name: str
    shape: Triple
    spacing: tuple[float, float, float]
    voxels: tuple[int, ...]
    digest: str
    ignored: int = 0


@dataclass(frozen=True)
class Fingerprint:
    """All cases of a data set, and by channel the intensities of their foreground (None where there is none).

    images  by channel: what whole images look like, most of them; empty in a fingerprint of an earlier version
    """

    labels: dict[str, int]
    channel_names: tuple[str, ...]
    cases: tuple[CaseFingerprint, ...]
    intensities: tuple[Intensities | None, ...]
    images: tuple[Portrait, ...] = ()

    @property
    def voxels(self) -> tuple[int, ...]:
        """Of each class in all cases together."""
        return tuple(sum(case.voxels[value] for case in self.cases) for value in range(len(self.labels)))

    def schemes(self) -> tuple[ChannelScheme, ...]:
        """How each channel is to be normalised."""
        images = self.images or (None,) * len(self.channel_names)
        return tuple(
            ChannelScheme(name, found.normalization, image) if is_ct(name) and found else ChannelScheme(name, None)
            for name, found, image in zip(self.channel_names, self.intensities, images, strict=True)
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "schema": SCHEMA,
            "labels": self.labels,
            "channel_names": list(self.channel_names),
            "foreground_intensities": [None if found is None else vars(found) for found in self.intensities],
            "image_intensities": [image.as_json() for image in self.images],
            "voxels": list(self.voxels),
            "cases": [dataclasses.asdict(case) for case in self.cases],
        }


def write_fingerprint(folder: Path, fingerprint: Fingerprint) -> None:
    """Write `FINGERPRINT` into a run folder, whole or not at all. Raises as `write_text` does."""
    write_text(folder / FINGERPRINT, json.dumps(fingerprint.as_json(), indent=1) + "\n")


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """The fingerprint in a run folder; None where there is none. Raises CheckpointError where it is damaged."""
    path = folder / FINGERPRINT
    if not path.is_file():
        return None
    try:
        values = json.loads(read_text(path))
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']}, this volseg reads {SCHEMA}")
        cases = []
        for case in values["cases"]:
            (d, h, w), (z, y, x) = case["shape"], case["spacing"]
            spacing = float(z), float(y), float(x)
            voxels = tuple(int(count) for count in case["voxels"])
            shape, ignored = (int(d), int(h), int(w)), int(case.get("ignored", 0))
            cases.append(
                CaseFingerprint(
                    name=str(case["name"]),
                    shape=shape,
                    spacing=spacing,
                    voxels=voxels,
                    digest=case["digest"],
                    ignored=ignored,
                )
            )
        found = [None if one is None else Intensities(**one) for one in values["foreground_intensities"]]
        labels = {str(name): int(value) for name, value in values["labels"].items()}
        images = tuple(image for value in values.get("image_intensities", ()) if (image := Portrait.from_json(value)))
        return Fingerprint(labels, tuple(values["channel_names"]), tuple(cases), tuple(found), images)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove it, and it is made again") from None
