"""Several scans in one series: passes, phases, reconstructions, other patients; told apart where that makes volumes.

Anonymisers, archives and scanners put into one series what is not one volume. What says so are elements that have one
value in each of its volumes: the patient's and the study's (`IDENTITY`, never merged), the acquisition's and its time's
(`ACQUISITION`), and lesser ones (`OTHERS`). But a series that is one volume may have another acquisition number or time
in each of its slices, or in each stretch of them (step and shoot). So an element divides a series only where its values
lie in each other's range along the normal, and where what it divides it into are regular stacks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import isqrt

from volseg.errors import VolumeError
from volseg.volumes.audit import Dropped
from volseg.volumes.dicom.copies import same_pixels
from volseg.volumes.dicom.finding.keys import (
    ACQUISITION,
    IDENTITY,
    IN_ORDER,
    OTHERS,
    SCANNER,
    SERIES,
    TIMES,
    Key,
    dimension_keys,
    listed_values,
    night_between,
)
from volseg.volumes.dicom.finding.stacks import Stacks
from volseg.volumes.dicom.image import Image, name_some

FEWEST_SLICES = 3  # of a part that lesser evidence makes
FEWEST_AT_A_TIME = 4  # of a part of what would be one regular stack, told apart by time alone
PAIRS_COMPARED = 3
SAID_AT_MOST = 3
TOLD_BY = 2  # elements that are shown
BLOCKS = ("AcquisitionNumber", "StackID")  # whose stretches may lie apart

Part = list[int]


@dataclass(frozen=True)
class Division:
    """A series taken apart.

    parts     the images of each volume, with what tells it from the others in words ("" where there is but one)
    misfits   images that are of none of them
    warnings  what was merged all the same, and why
    """

    parts: tuple[tuple[tuple[Image, ...], str], ...]
    misfits: tuple[Dropped, ...] = ()
    warnings: tuple[str, ...] = ()


def divide(
    images: Sequence[Image], orientation: Sequence[float], pixel: Sequence[float], *, named: bool = True
) -> Division:
    """The volumes among images of one series, size, orientation and pixel spacing.

    named  whether the series has a UID; without, its number and description stand for one
    """
    series = _Series(images, Stacks(images, orientation, pixel))
    groups, misfits, warnings = series.by_identity(IDENTITY if named else (*IDENTITY, *SERIES, *SCANNER))
    divided = [pair for group in groups for pair in series.by_acquisition(group)]
    parts = [series.with_copies(part) for part, _ in divided]
    keys = [*(key for _, key in divided if key is not None), *IDENTITY, *SERIES, *ACQUISITION, *SCANNER, *OTHERS]
    texts = _differences([[images[n] for n in part] for part in parts], keys)
    warnings += [line for part in parts for line in _merged([images[n] for n in part], series.stacks, part)]
    warnings += [line for part in parts for line in series.doubtful_runs(part)]
    return Division(
        tuple((tuple(images[n] for n in sorted(part)), text) for part, text in zip(parts, texts, strict=True)),
        tuple(misfits),
        tuple(dict.fromkeys(warnings)),
    )


class _Series:
    def __init__(self, images: Sequence[Image], stacks: Stacks) -> None:
        self.images, self.stacks = images, stacks
        self._values: dict[Key, list[Hashable]] = {}
        self._copies: dict[int, list[int]] = {}  # by the first image of a SOPInstanceUID, its others
        known: dict[Hashable, int] = {}
        self.distinct: Part = []
        for number, image in enumerate(images):
            uid = str(image.get("SOPInstanceUID", ""))
            place = (uid, image.frame, round(float(stacks.heights[number]), 4))
            first = known.setdefault(place, number) if uid else number
            if first == number:
                self.distinct.append(number)
            else:
                self._copies.setdefault(first, []).append(number)

    def values(self, key: Key, group: Part) -> list[Hashable]:
        """The values of a key in the images of a group."""
        if key not in self._values:
            self._values[key] = key.values(self.images)
        every = self._values[key]
        return [every[number] for number in group]

    def with_copies(self, part: Part) -> Part:
        """The images of a part, and the copies of them that were left aside."""
        return [number for first in part for number in (first, *self._copies.get(first, ()))]

    def by_identity(self, keys: Iterable[Key]) -> tuple[list[Part], list[Dropped], list[str]]:
        """Patients and studies apart; images that are the only one of theirs; and what could not tell any apart."""
        groups, misfits, warnings = [self.distinct], list[Dropped](), list[str]()
        for key in keys:
            divided: list[Part] = []
            for group in groups:
                classes = self._classes(key, group, missing_is_any=True)
                several = [part for part in classes if len(part) > 1]
                lone = [part[0] for part in classes if len(part) == 1]
                if len(classes) == 1 or night_between(key, (self.images[n] for n in group)):
                    divided.append(group)
                elif 2 * len(lone) >= len(group) or self._jittered(group, several):
                    count = len(classes)
                    warnings.append(f"{key.name} differs from slice to slice ({count} values); it was not heeded")
                    divided.append(group)
                else:
                    divided += several
                    reason = f"another {key.name} than the others, and the only slice of it"
                    misfits += [Dropped(self.images[n].name, reason) for n in lone]
            groups = divided
        return groups, misfits, warnings

    def _jittered(self, group: Part, classes: list[Part]) -> bool:
        """Whether values that an anonymiser drew for each slice go through what is one regular stack."""
        return self.stacks.even(group) and not all(self.stacks.lattice(part) for part in classes)

    def by_acquisition(self, group: Part) -> list[tuple[Part, Key | None]]:
        """The volumes in images of one patient and study, each with the element that divided it off."""
        regular = self.stacks.even(group)
        keys = [*SERIES, *ACQUISITION]
        if not regular:
            keys += [*OTHERS, *dimension_keys([self.images[n] for n in group]), *IN_ORDER]
        most = len(group) // 2
        live = [key for key in keys if len(set(self.values(key, group))) > 1]
        for key in live:
            parts = self._parts(key, group, regular)
            if parts is not None:
                return [(part, inner or key) for whole in parts for part, inner in self.by_acquisition(whole)]
        few = [key for key in live if key.index is None and key.keywords and len(self._classes(key, group)) <= most]
        for first, second in combinations(few, 2):  # phases, each by two kernels
            both = Key(f"{first.name}, {second.name}", (*first.keywords, *second.keywords))
            parts = self._parts(both, group, regular)
            if parts is not None:
                return [(part, first) for part in parts]
        return [(group, None)]

    def doubtful_runs(self, part: Part) -> Iterator[str]:
        """Whether the slices of a regular stack are numbered as two passes would be, one between the other's slices."""
        if not self.stacks.even(part):
            return
        number, files = IN_ORDER
        repeated = len(set(self.values(number, part))) <= len(part) // 2
        key = files if repeated else number
        runs = self.stacks.passes(self._classes(key, part), _most(key, len(part)))
        if runs is None or len(runs) < 2 or min(map(len, runs)) < FEWEST_AT_A_TIME or not self.stacks.overlap(runs):
            return
        if all(self.stacks.even(run) for run in runs):
            listed = " | ".join(f"{key.shown_of([self.images[n] for n in run])}" for run in runs[:SAID_AT_MOST])
            yield f"its slices alternate between runs of {key.name} ({listed}): perhaps {len(runs)} scans in one"

    def _parts(self, key: Key, group: Part, regular: bool) -> list[Part] | None:
        """The volumes that a key divides `group` into; None where it does not divide it into volumes."""
        classes = self._classes(key, group)
        most = len(group) // 2
        if len(classes) < 2 or (len(classes) > most and not key.ordered):
            return None
        if key.ordered:
            parts = self.stacks.passes(classes, _most(key, len(group)))
        else:
            parts = classes if all(self.stacks.lattice(part) for part in classes) else None
        if parts is None or len(parts) < 2 or min(map(len, parts)) < _fewest(key, regular):
            return None
        if not all(self.stacks.lattice(part) for part in parts):
            return None
        even = all(self.stacks.even(part) for part in parts)
        if self.stacks.overlap(parts):
            certain = key in ACQUISITION and key not in TIMES
            if not even and (regular or not (certain or self.stacks.coincide(group))):
                return None
            return None if self._are_copies(parts) else parts
        if regular or not even or min(map(len, parts)) < FEWEST_SLICES:  # two slices are even whatever lies between
            return None
        blocks = (key in SERIES or key.name in BLOCKS) and len(classes) <= most
        return parts if blocks or not self.stacks.straight(group) else None

    def _classes(self, key: Key, group: Part, missing_is_any: bool = False) -> list[Part]:
        """Images by the value of a key, in the order of the values where they have one, else as they come."""
        classes: dict[Hashable, Part] = {}
        for number, value in zip(group, self.values(key, group), strict=True):
            classes.setdefault(value, []).append(number)
        if missing_is_any and None in classes and len(classes) == 2:
            return [group]
        values: Iterable[Hashable] = classes
        if key.ordered:
            values = sorted(classes, key=lambda value: (value is None, () if value is None else value))
        return [classes[value] for value in values]

    def _are_copies(self, parts: list[Part]) -> bool:
        """Whether the parts have the same pixels where they meet, by a few of these places."""
        pairs = list(self._meeting(parts))
        middle = len(pairs) // 2
        some = pairs[max(0, middle - 1) :][:PAIRS_COMPARED]
        try:
            return bool(some) and all(same_pixels(self.images[one], self.images[other]) for one, other in some)
        except VolumeError:  # what cannot be decoded is refused where it is read
            return False

    def _meeting(self, parts: list[Part]) -> Iterator[tuple[int, int]]:
        """Pairs of images of different parts at one height."""
        home = {number: index for index, part in enumerate(parts) for number in part}
        order = [int(n) for n in self.stacks.in_order(list(home))]
        for one, other in pairwise(order):
            near = self.stacks.heights[other] - self.stacks.heights[one] < self.stacks.same_place
            if near and home[one] != home[other]:
                yield one, other


def _most(key: Key, images: int) -> int:
    """How many passes there may be; by time or order alone, four for each slice of one of them."""
    return min(images // 2, 2 * isqrt(images)) if key in TIMES or key in IN_ORDER else images // 2


def _fewest(key: Key, regular: bool) -> int:
    if key in TIMES:
        return FEWEST_AT_A_TIME if regular else FEWEST_SLICES
    return 2 if key in ACQUISITION or key in SERIES else FEWEST_SLICES


def _differences(parts: list[list[Image]], keys: Sequence[Key]) -> list[str]:
    """What tells each part from the others, in words: the elements that have one value, or a range of them, in each."""
    if len(parts) == 1:
        return [""]
    telling = []
    for key in dict.fromkeys(keys):
        values = [set(key.values(part)) for part in parts]
        together = set.union(*values)
        if len(together) > 1 and (sum(map(len, values)) == len(together) or all(len(some) == 1 for some in values)):
            telling.append(key)
    named = [key for key in telling if key.keywords]
    shown = (named or telling)[:TOLD_BY]
    if not shown:
        return [f"files {name_some([part[0]])} to {name_some([part[-1]])}" for part in parts]
    return [
        ", ".join(f"{key.name} {f'#{number}' if key.private else key.shown_of(part)}" for key in shown)
        for number, part in enumerate(parts, 1)
    ]


def _merged(images: list[Image], stacks: Stacks, part: Part) -> Iterator[str]:
    """What goes on from slices to slices of another kind, and is one volume all the same."""
    if stacks.coincide(part):
        return
    for key in ACQUISITION:
        values = dict.fromkeys(key.values(images))
        if key.remarkable and 1 < len(values) <= len(images) // 2:
            yield f"slices of {key.name} {listed_values(values)} follow one another, and were taken as one volume"
