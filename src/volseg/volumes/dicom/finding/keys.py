"""The elements that tell the volumes of one series apart, and how their values are compared and shown."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Any

from volseg.volumes.dicom.finding.lookalikes import natural_order
from volseg.volumes.dicom.finding.screening import shown
from volseg.volumes.dicom.image import Image, printable, without_folders

UID_SHOWN = 6
ABSENT = "(absent)"
VALUES_LISTED = 4
SAID_AT_MOST = 3


@dataclass(frozen=True)
class Key:
    """One element, or several together.

    name        for messages: DICOM's own
    ordered     whether values have an order in which passes follow each other
    remarkable  whether slices with several values that make one volume are worth a warning
    private     whether values say who the patient is: they are not shown
    index       which of the values of one element; None: all of them
    """

    name: str
    keywords: tuple[str, ...]
    ordered: bool = False
    remarkable: bool = False
    private: bool = False
    index: int | None = None

    def value(self, image: Image) -> Hashable:
        """What is compared; None where the image has no such element."""
        if self.name == FILES:
            return natural_order(image.entry.name), image.frame or 0
        if self.name == FOLDER:
            return image.entry.name.replace("\\", "/").rpartition("/")[0]
        values = self._texts(image)
        if all(value is None for value in values):
            return None
        if not self.ordered:
            return tuple(value and value.casefold() for value in values)
        number = _number(values[0] or "")
        return (0, number, "") if number is not None else (1, 0.0, values[0] or "")

    def values(self, images: Sequence[Image]) -> list[Hashable]:
        """`value` of each image; of elements that are the same in all of them, converted once."""
        if self.keywords and images:
            first = [images[0].header.get(keyword) for keyword in self.keywords]
            if all([image.header.get(keyword) for keyword in self.keywords] == first for image in images):
                return [self.value(images[0])] * len(images)
        return [self.value(image) for image in images]

    def shown(self, image: Image) -> str:
        """Its value for a message."""
        if self.name == FILES:
            return without_folders(image.entry.name)
        if self.name == FOLDER:
            return shown(without_folders(str(self.value(image))))
        return ", ".join(ABSENT if value is None else _short(self.name, value) for value in self._texts(image))

    def shown_of(self, images: Sequence[Image]) -> str:
        """The value of all, or their range."""
        ends = sorted(images, key=self.place) if self.ordered else images
        first, last = self.shown(ends[0]), self.shown(ends[-1])
        return first if first == last else f"{first} to {last}"

    def place(self, image: Image) -> tuple[bool, Any]:
        """What images are sorted by; those without a value come last."""
        value = self.value(image)
        return value is None, () if value is None else value

    def _texts(self, image: Image) -> tuple[str | None, ...]:
        if self.index is None:
            return tuple(_plain(image.get(keyword)) for keyword in self.keywords)
        values = _list(image.get(self.keywords[0]))
        return (_plain(values[self.index]) if self.index < len(values) else None,)


def _key(keyword: str, *, ordered: bool = False, remarkable: bool = False) -> Key:
    return Key(keyword, (keyword,), ordered=ordered, remarkable=remarkable)


ACQUISITION_DATE = "AcquisitionDate"
FILES, FOLDER = "files", "folder"

IDENTITY = (
    Key("PatientID", ("PatientID",), private=True),
    Key("PatientName", ("PatientName",), private=True),
    *(
        Key(name, (name,), private=True)
        for name in ("PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight", "AccessionNumber")
    ),
    _key("StudyInstanceUID"),
    _key("StudyDate"),
    _key(ACQUISITION_DATE),
    _key("FrameOfReferenceUID"),
)
"""Never merged. A frame of reference is where positions are counted from."""

SERIES = (_key("SeriesNumber"), _key("SeriesDescription"))
SCANNER = tuple(
    _key(name)
    for name in (
        "SeriesDate", "StationName", "DeviceSerialNumber", "Manufacturer", "ManufacturerModelName", "InstitutionName",
    )
)  # fmt: skip
"""Never merged either in images without SeriesInstanceUID: one series has one scanner."""

TIMES = (
    _key("AcquisitionDateTime", ordered=True),
    _key("AcquisitionTime", ordered=True),
    _key("SeriesTime", ordered=True),
    _key("ContentTime", ordered=True),
)
ACQUISITION = (
    _key("AcquisitionNumber", ordered=True),
    _key("TemporalPositionIdentifier", ordered=True, remarkable=True),
    _key("TemporalPositionIndex", ordered=True, remarkable=True),
    _key("TemporalPositionTimeOffset", ordered=True),
    _key("NominalPercentageOfCardiacPhase", ordered=True, remarkable=True),
    _key("NominalCardiacTriggerDelayTime", ordered=True),
    _key("TriggerTime", ordered=True),
    _key("CardiacCyclePosition", remarkable=True),
    _key("RespiratoryCyclePosition", remarkable=True),
    _key("NominalPercentageOfRespiratoryPhase", ordered=True, remarkable=True),
    _key("StackID", remarkable=True),
    _key("KVP", remarkable=True),
    _key("MonoenergeticEnergyEquivalent", remarkable=True),
    _key("ConvolutionKernel", remarkable=True),
    _key("ContrastBolusAgent"),
    *TIMES,
)
"""What differs between passes, phases and reconstructions of one examination."""

OTHERS = (
    _key("ImageType"),
    _key("SliceThickness"),
    _key("ReconstructionDiameter"),
    _key("FilterType"),
    _key("ProtocolName"),
    _key("ImageComments"),
    _key("ScanOptions"),
    _key("EchoNumbers"),
    _key("StationName"),
    _key("ContentDate", ordered=True),
    Key(FOLDER, ()),
)
"""Asked only where the whole is no regular stack."""

IN_ORDER = (_key("InstanceNumber", ordered=True), Key(FILES, (), ordered=True))
"""Passes that follow each other in number; asked last."""


def dimension_keys(images: Sequence[Image]) -> list[Key]:
    """A key for each dimension of multi-frame images that list them."""
    counts = {len(_list(image.get("DimensionIndexValues"))) for image in images}
    return [
        Key(f"DimensionIndexValues {number + 1}", ("DimensionIndexValues",), index=number)
        for number in range(max(counts, default=0))
    ]


def night_between(key: Key, images: Iterable[Image]) -> bool:
    """Whether the values of a key are the dates of two days that follow each other: a scan at midnight."""
    if key.name != ACQUISITION_DATE:
        return False
    try:
        days = [date.fromisoformat(str(image.get(ACQUISITION_DATE))) for image in images if image.get(ACQUISITION_DATE)]
    except ValueError:
        return False
    return bool(days) and (max(days) - min(days)).days <= 1


def interleaved(images: Sequence[Image]) -> str | None:
    """By which element slices (in order along their normal) are of several acquisitions in turn, in words, or None."""
    for key in ACQUISITION:
        if not (key.remarkable or key.name == "AcquisitionNumber"):
            continue
        values = [key.value(image) for image in images]
        runs, classes = 1 + sum(one != other for one, other in pairwise(values)), len(set(values))
        if 1 < classes <= len(values) // 2 and runs > classes:
            return f"{key.name} {listed_values(values)}"
    return None


def unlike(first: Image, second: Image) -> str:
    """In what two images differ, in words; "" where nothing tells."""
    keys = [key for key in (*IDENTITY, *SERIES, *ACQUISITION, *OTHERS) if key.value(first) != key.value(second)]
    return ", ".join(
        key.name if key.private else f"{key.name} {key.shown(first)} | {key.shown(second)}"
        for key in keys[:SAID_AT_MOST]
    )


def listed_values(values: Iterable[Hashable]) -> str:
    """A few values of one key, for a message."""
    texts = [_value_text(value) for value in dict.fromkeys(values)]
    more = f" and {len(texts) - VALUES_LISTED} more" if len(texts) > VALUES_LISTED else ""
    return ", ".join(texts[:VALUES_LISTED]) + more


def _value_text(value: Hashable) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, tuple) and len(value) == 3:  # of an ordered key
        return shown(f"{value[1]:.15g}" if value[0] == 0 else value[2])
    parts = value if isinstance(value, tuple) else (value,)
    return shown(", ".join(ABSENT if part is None else str(part) for part in parts))


def _plain(value: Any) -> str | None:
    """A value as one text, alike however it was padded."""
    texts = [str(part).strip() for part in _list(value)]
    return "\\".join(texts).rstrip("^ ") or None


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]


def _short(name: str, value: str) -> str:
    return f"...{printable(value[-UID_SHOWN:])}" if name.endswith("UID") and len(value) > UID_SHOWN else shown(value)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < 1e18 else None  # nor NaN
