"""What the channels of a MONAI bundle's image and output are called, from its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from volseg.volumes.regions import Region, value_names

_NESTED = ("whole", "core", "enhanc")
"""Words of the regions of a brain tumour (BraTS), each of which lies in the one before it."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What a network sees and says.

    channels  names of the image's
    labels    of masks, by name, background first
    regions   where the channels of the output overlap
    order     the output's channels in the order of labels or regions
    notes     what is to be said of that, in sentences
    """

    channels: tuple[str, ...]
    labels: dict[str, int]
    regions: tuple[Region, ...] = ()
    order: tuple[int, ...]
    notes: tuple[str, ...] = ()


def classes_of(metadata: Mapping[str, Any], channels: int, outputs: int, overlapping: bool) -> Classes:
    """Names from `metadata`, or where it has none, class_1, class_2, ...

    channels, outputs  numbers of the image's channels and of the logits'
    overlapping        whether a voxel may lie in several classes
    """
    image, pred = format_of(metadata, "inputs", "image"), format_of(metadata, "outputs", "pred")
    seen = _names(image, channels, "channel_")
    if channels == 1 and str(image.get("modality", "")).strip().upper() == "CT":
        seen = ["CT"]
    named = _names(pred, outputs, "class_")
    if not overlapping:
        labels = {name: number for number, name in enumerate(named)}
        return Classes(channels=tuple(seen), labels=labels, order=tuple(range(outputs)))
    order = sorted(range(outputs), key=lambda number: _depth(named[number]))
    nested = sorted(_depth(name) for name in named) == list(range(len(_NESTED)))
    if nested:
        regions = [
            Region(named[channel], tuple(range(place, outputs + 1)), place) for place, channel in enumerate(order, 1)
        ]
        note = f"its channels overlap: a mask holds of {', '.join(region.name for region in regions)} the last"
    else:
        order = list(range(outputs))
        regions = [Region(name, (number,), number) for number, name in enumerate(named, 1)]
        note = "its channels overlap: where they do, a mask holds the last; --save-probabilities has them all"
    return Classes(
        channels=tuple(seen), labels=value_names(regions), regions=tuple(regions), order=tuple(order), notes=(note,)
    )


def _depth(name: str) -> int:
    """Which of the nested regions a name stands for; one more than there are for none."""
    return next((n for n, word in enumerate(_NESTED) if word in name.lower()), len(_NESTED))


def format_of(metadata: Mapping[str, Any], side: str, name: str) -> Mapping[str, Any]:
    """What the metadata says of one input or output; that of this name, or the first."""
    value: Any = metadata
    for key in ("network_data_format", side):
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not value:
        return {}
    chosen = value.get(name, next(iter(value.values())))
    return chosen if isinstance(chosen, Mapping) else {}


def _names(of: Mapping[str, Any], count: int, otherwise: str) -> Sequence[str]:
    """Names of channels, each once; with a number where there is none."""
    defined = of.get("channel_def")
    defined = defined if isinstance(defined, Mapping) else {}
    names: list[str] = []
    for number in range(count):
        first = "background" if otherwise == "class_" and number == 0 else f"{otherwise}{number}"
        name = str(defined.get(str(number), first)).strip() or first
        names.append(name if name not in names else f"{name} {number}")
    return names
