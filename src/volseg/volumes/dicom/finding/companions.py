"""What lies beside a volume and might belong to it: images of its study that were left out, files that are damaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from volseg.volumes.audit import Dropped, count_reasons
from volseg.volumes.dicom.finding.candidates import Candidate, some_names
from volseg.volumes.dicom.finding.directory import MISSING
from volseg.volumes.dicom.finding.foreign import NOT_DICOM, Foreign
from volseg.volumes.dicom.finding.headers import Damaged
from volseg.volumes.dicom.finding.lookalikes import Names
from volseg.volumes.dicom.finding.screening import Place, place_of, same_kind
from volseg.volumes.dicom.finding.stacks import Stacks
from volseg.volumes.dicom.image import Image

UNREADABLE = "not DICOM: damaged, or of something else"


@dataclass(frozen=True)
class Aside:
    """An image that was left out, and why.

    always  whether it is worth a word wherever it lies, as one that was made of the series' own slices
    """

    image: Image
    reason: str
    always: bool = False


def aside_warnings(candidate: Candidate, asides: Iterable[Aside]) -> Iterator[str]:
    """Of images left out, those that may be slices of the candidate: of its series and kind, or on its grid."""
    first = candidate.images[0]
    place = place_of(first)
    assert isinstance(place, Place)
    likely, elsewhere = list[Aside](), list[Aside]()
    for aside in asides:
        own = _uid(aside.image, "SeriesInstanceUID") == _uid(first, "SeriesInstanceUID")
        if own and aside.always:
            likely.append(aside)
        elif (own or _same_study(aside.image, first)) and _alike(aside.image, first, place):
            (likely if own else elsewhere).append(aside)
    likely += _going_on(candidate, elsewhere)
    dropped = [Dropped(aside.image.name, aside.reason) for aside in likely]
    for reason, count, names in count_reasons(dropped):
        what = "1 image, perhaps a slice of it, was" if count == 1 else f"{count} images, perhaps slices of it, were"
        yield f"{what} left out: {reason} ({some_names(names)})"


def lost_slices(
    candidates: Sequence[Candidate], dropped: Iterable[Dropped], readable: Iterable[str]
) -> tuple[dict[int, list[Dropped]], list[Dropped]]:
    """Files that could not be read: those that look like slices of a candidate, by its index, and those that may be.

    dropped   everything left out
    readable  names of the files that are DICOM
    """
    faults: dict[int, list[Dropped]] = {}
    doubtful: list[Dropped] = []
    unreadable = [
        item for item in dropped if isinstance(item, Foreign) or (isinstance(item, Damaged) and item.series_uid is None)
    ]
    if not unreadable:
        return faults, doubtful
    owners: dict[str, int | None] = dict.fromkeys(readable)
    for index, candidate in enumerate(candidates):
        owners |= {image.entry.name: index for image in candidate.images}
    names = Names(owners)
    for item in unreadable:
        likeness = names.likeness(item.name)
        for owner in likeness.owners:
            faults.setdefault(owner, []).append(Dropped(item.name, why_unreadable(item)))
        if not likeness.owners and (isinstance(item, Damaged) or likeness.possible):
            doubtful.append(item)
    return faults, doubtful


def why_unreadable(item: Dropped) -> str:
    """The most telling reason that there is."""
    if isinstance(item, Foreign) and item.what:
        return item.what
    return UNREADABLE if item.reason == NOT_DICOM else item.reason


def lost_warnings(dropped: Iterable[Dropped], doubtful: Sequence[Dropped], series_uid: str) -> Iterator[str]:
    """Of files that may be slices of the series, or of another one that was meant."""
    if doubtful:
        names = some_names(item.name for item in doubtful)
        reason = why_unreadable(doubtful[0])
        what = "1 damaged file, perhaps a slice of it, was"
        if len(doubtful) > 1:
            what = f"{len(doubtful)} damaged files, perhaps slices of it, were"
        yield f"{what} left out: {names} ({reason})"
    others = [item for item in dropped if isinstance(item, Damaged) and item.series_uid not in (None, series_uid)]
    if others:
        names = some_names(item.name for item in others)
        yield f"{len(others)} damaged images of other series were left out: {names}: {others[0].reason}"
    missing = [item.name for item in dropped if item.reason == MISSING]
    if missing:
        yield f"{len(missing)} files of the DICOMDIR are missing, perhaps slices of it: {some_names(missing)}"


def _same_study(one: Image, other: Image) -> bool:
    return all(_uid(one, keyword) == _uid(other, keyword) for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"))


def _uid(image: Image, keyword: str) -> str:
    return str(image.get(keyword, ""))


def _alike(image: Image, first: Image, place: Place) -> bool:
    size = [image.get(side) for side in ("Rows", "Columns")]
    if size != [first.get(side) for side in ("Rows", "Columns")]:
        return False
    other = place_of(image)
    return isinstance(other, Place) and same_kind(place, other)


def _going_on(candidate: Candidate, asides: list[Aside]) -> list[Aside]:
    """Those whose slices fill a gap of the candidate, or lie one step beyond its ends."""
    if not asides:
        return []
    images = [*candidate.images, *(aside.image for aside in asides)]
    stacks = Stacks(images, candidate.orientation, candidate.pixel_spacing)
    own = list(range(candidate.slices))
    if not stacks.lattice(own):
        return []
    step = float(np.min(stacks.gaps(own)))
    low, high = (float(end(stacks.heights[own])) for end in (np.min, np.max))
    return [
        aside
        for number, aside in enumerate(asides, candidate.slices)
        if low - 1.5 * step < stacks.heights[number] < high + 1.5 * step and stacks.lattice([*own, number])
    ]
