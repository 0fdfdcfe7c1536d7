"""Cases of a set whose intensities are not of the scale of the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from volseg.distributed.communicator import Communicator
from volseg.volumes.dataset.case import Dataset, Fault
from volseg.volumes.intensity import is_ct
from volseg.volumes.portrait import Portrait, difference, typical
from volseg.volumes.tally import Packed, Tally

RESTORE = (
    "restore its Hounsfield units (value x slope + intercept), or convert its DICOM series again with `volseg ingest`"
)


def portraits_of(
    parts: Iterable[tuple[int, Sequence[Packed]]], whole: bool, communicator: Communicator
) -> dict[int, tuple[Portrait, ...]]:
    """What the channels of each case look like, by its number. Collective.

    parts  of this rank: the number of a case, and the tallies of its channels
    whole  whether each is a whole case, so that only figures need to travel
    """
    if whole:
        own = {number: _portraits([tallies]) for number, tallies in parts if tallies}
        return {number: seen for some in communicator.gather_all(own) for number, seen in some.items()}
    gathered: dict[int, list[Sequence[Packed]]] = {}
    for some in communicator.gather_all([part for part in parts if part[1]]):
        for number, tallies in some:
            gathered.setdefault(number, []).append(tallies)
    return {number: _portraits(tallies) for number, tallies in gathered.items()}


def _portraits(parts: Sequence[Sequence[Packed]]) -> tuple[Portrait, ...]:
    found = []
    for channel in zip(*parts, strict=True):
        tally = Tally()
        for packed in channel:
            tally.add_packed(packed)
        if tally.total:
            found.append(Portrait.of(tally))
    return tuple(found)


def typical_images(dataset: Dataset, portraits: Mapping[int, tuple[Portrait, ...]]) -> tuple[Portrait, ...]:
    """By channel, what most of these cases look like; empty without any."""
    channels = len(dataset.channel_names)
    whole = [some for some in portraits.values() if len(some) == channels]
    return tuple(typical(some) for some in zip(*whole, strict=True))


def unlike_cases(dataset: Dataset, portraits: Mapping[int, tuple[Portrait, ...]]) -> dict[int, Fault]:
    """A warning for each case with CT that is not of the scale of most others, by the case's number."""
    usual = typical_images(dataset, portraits)
    found: dict[int, Fault] = {}
    for number, some in portraits.items():
        case = dataset.cases[number]
        for image, name, own, others in zip(case.images, dataset.channel_names, some, usual, strict=False):
            reason = difference(own, others) if is_ct(name) else None
            if reason is not None:
                message = f"{image}: its values {reason} ({own.text}; most cases: {others.text}); {RESTORE}"
                found.setdefault(number, Fault(case.name, "intensities", message, serious=False))
    return found
