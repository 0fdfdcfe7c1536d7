"""Sort the images of a source into candidate volumes, and say why the rest is left out.

What a candidate needs is here; what makes an image a slice at all is in `screening`, what makes several volumes of one
series in `acquisitions`. Nothing is guessed: where a source holds several volumes the user is asked (`choice`), and
where a slice of the chosen series is damaged or unlike the others, that is an error and not a shorter volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.audit import Dropped
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.finding.acquisitions import divide
from volseg.volumes.dicom.finding.candidates import Candidate, Survey
from volseg.volumes.dicom.finding.choice import ONLY_SLICE
from volseg.volumes.dicom.finding.companions import Aside, aside_warnings, lost_slices, lost_warnings
from volseg.volumes.dicom.finding.foreign import Foreign
from volseg.volumes.dicom.finding.headers import ENHANCED_CT, Damaged, class_name, is_ct, read_image
from volseg.volumes.dicom.finding.screening import (
    SAME_DIRECTION,
    SAME_PIXEL,
    Place,
    image_type,
    is_known_class,
    is_secondary,
    place_of,
    shown,
    why_not_a_slice,
)
from volseg.volumes.dicom.finding.sources import Source
from volseg.volumes.dicom.finding.stacks import Stacks
from volseg.volumes.dicom.image import Image, printable
from volseg.volumes.tolerance import SAME_PLACE

NO_UID = "no SeriesInstanceUID"
NOT_NAMED = "the DICOMDIR does not name it; give the folder in place of the DICOMDIR to have it"
BESIDE_ORIGINALS = "DERIVED\\SECONDARY, beside the originals of its series"


@dataclass(eq=False)
class _Group:
    """Slices of one series, size, orientation and pixel spacing."""

    place: Place
    images: list[Image]


def survey(source: Source) -> Survey:
    """The candidate volumes of a source, numbered in the order of their first images; and all that is in none.

    Slices belong together by SeriesInstanceUID, rows and columns, orientation (to 1e-3) and pixel spacing (to 0.1 %),
    and are then divided where they are several scans (`acquisitions`). A frame of a multi-frame file is an image.
    """
    series: dict[str, list[Image]] = {}
    dropped, asides, readable = list(source.dropped), list[Aside](), list[str]()
    for item in _images(source):
        if isinstance(item, Image | Aside) or not isinstance(item, Damaged | Foreign):
            readable.append(item.image.entry.name if isinstance(item, Aside) else _file_of(item))
        if isinstance(item, Aside):
            asides.append(item)
            dropped.append(Dropped(item.image.name, item.reason))
        elif isinstance(item, Dropped):
            dropped.append(item)
        else:
            series.setdefault(_series_uid(item), []).append(item)
    candidates: list[Candidate] = []
    damaged: dict[str | None, list[Damaged]] = {}
    for lost in dropped:
        if isinstance(lost, Damaged):
            damaged.setdefault(lost.series_uid, []).append(lost)
    for uid, images in series.items():
        some, left, misfits = _sort_series(uid, images, damaged.get(uid, []))
        candidates += some
        asides += left
        dropped += [*(Dropped(aside.image.name, aside.reason) for aside in left), *misfits]
    return _numbered(source, candidates, dropped, asides, readable)


def _series_uid(image: Image) -> str:
    return printable(str(image.get("SeriesInstanceUID", NO_UID)))


def _file_of(item: Image | Dropped) -> str:
    return item.entry.name if isinstance(item, Image) else item.name


def _images(source: Source) -> Iterator[Image | Aside | Dropped]:
    """Every image of a source, those of a multi-frame file one a frame; those that are no slices; and other files."""
    for entry in source:
        item = read_image(entry)
        if not isinstance(item, Image):
            yield item
            continue
        for image in _frames(item):
            reason = why_not_a_slice(image) if isinstance(image, Image) else None
            yield image if reason is None or not isinstance(image, Image) else Aside(image, reason)
    for entry in source.beside:
        item = read_image(entry)
        if isinstance(item, Image):
            yield Aside(item, NOT_NAMED)


def _frames(image: Image) -> Iterator[Image | Aside | Dropped]:
    """The frames of a multi-frame CT image; any other image itself."""
    from volseg.volumes.dicom.frames import expand

    enhanced = str(image.get("SOPClassUID")) in ENHANCED_CT
    if not is_ct(image) or not (enhanced or str(image.get("NumberOfFrames", 1)) != "1"):
        yield image
        return
    try:
        yield from expand(image)
    except VolumeError as error:
        reason = str(error).removeprefix(f"{image.name}: ")
        if enhanced:
            yield Damaged(image.name, reason, _series_uid(image))
        else:
            yield Aside(image, why_not_a_slice(image) or reason, always=True)


def _sort_series(
    uid: str, images: list[Image], damaged: list[Damaged]
) -> tuple[list[Candidate], list[Aside], list[Dropped]]:
    """The candidates of one series, not yet numbered; its images that were left out; and those that do not fit."""
    groups, misfits = _group(images)
    asides: list[Aside] = []
    groups = list(_without_secondary(groups, asides))
    whole = [group for group in groups if _is_stack(group)]
    usual = max(whole, key=lambda group: len(group.images), default=None)
    for group in groups:
        if group in whole:
            continue
        reason = _why_no_stack(group) if usual is None else _difference(group, usual)
        if usual is None:
            asides += [Aside(image, reason) for image in group.images]
        else:
            misfits += [Dropped(image.name, reason) for image in group.images]
    candidates: list[Candidate] = []
    for place, group in enumerate(whole):
        division = divide(group.images, group.place.orientation, group.place.spacing, named=uid != NO_UID)
        misfits += division.misfits
        for number, (part, differs) in enumerate(division.parts, 1):
            candidates.append(
                Candidate(
                    number=place,  # until all are numbered
                    series_uid=uid,
                    images=part,
                    orientation=group.place.orientation,
                    pixel_spacing=(group.place.spacing[0], group.place.spacing[1]),
                    warnings=(*_warnings(part), *division.warnings),
                    part=number if len(division.parts) > 1 else None,
                    differs=differs,
                )
            )
    faults = (*misfits, *damaged)
    return [replace(candidate, faults=faults) for candidate in candidates], asides, misfits


def _without_secondary(groups: Iterable[_Group], asides: list[Aside]) -> Iterator[_Group]:
    """The groups without images DERIVED\\SECONDARY, which go to `asides`, beside originals of their series.

    Those that go on or fill the originals' own grid stay: a workstation made them of the same scan, and without them
    the volume would be shorter or coarser. So do all of a series that has no originals to make a volume of.
    """
    groups = list(groups)
    originals = [[image for image in group.images if not is_secondary(image)] for group in groups]
    volume = any(
        len(own) > 1 and _is_stack(_Group(group.place, own)) for group, own in zip(groups, originals, strict=True)
    )
    for group, own in zip(groups, originals, strict=True):
        kept = _on_their_grid(group, own) if own else [] if volume else group.images
        stays = {id(image) for image in kept}
        asides += [Aside(image, BESIDE_ORIGINALS, always=True) for image in group.images if id(image) not in stays]
        if kept:
            yield _Group(group.place, kept)


def _on_their_grid(group: _Group, originals: list[Image]) -> list[Image]:
    """The originals of a group, and the secondary images that make one regular stack with them."""
    if len(originals) == len(group.images):
        return originals
    stacks = Stacks(group.images, group.place.orientation, group.place.spacing)
    original = [number for number, image in enumerate(group.images) if not is_secondary(image)]
    heights = np.sort(stacks.heights[original])
    added = []
    for number, image in enumerate(group.images):
        if is_secondary(image) and np.abs(heights - stacks.heights[number]).min() >= stacks.same_place:
            added.append(number)
    together = sorted([*original, *added])
    return [group.images[number] for number in (together if stacks.lattice(together) else original)]


def _group(images: Iterable[Image]) -> tuple[list[_Group], list[Dropped]]:
    """Images of like size, orientation and pixel spacing; and those that have no place in the patient."""
    groups: list[_Group] = []
    known: dict[tuple[object, ...], _Group] = {}  # exact values seen before: nearly all slices of a series
    sizes: dict[tuple[int, int], tuple[list[_Group], np.ndarray]] = {}
    misfits = []
    for image in images:
        place = place_of(image)
        if isinstance(place, str):
            misfits.append(Dropped(image.name, f"{place}: no place in the patient"))
            continue
        size = (int(image.get("Rows")), int(image.get("Columns")))
        exact = (size, place.orientation, place.spacing)
        alike, places = sizes.get(size, ([], np.empty((0, 8))))
        group = known.get(exact) or _near(alike, places, place)
        if group is None and len(groups) == limits.MAX_GROUPS:
            misfits.append(Dropped(image.name, f"one of more than {limits.MAX_GROUPS} kinds of slices in its series"))
            continue
        if group is None:
            group = _Group(place, [])
            groups.append(group)
            sizes[size] = [*alike, group], np.vstack([places, [*place.orientation, *place.spacing]])
        known[exact] = group
        group.images.append(image)
    return groups, misfits


def _near(groups: list[_Group], places: np.ndarray, place: Place) -> _Group | None:
    """The first of the groups that lies as `place` does, to the tolerances.

    places  [groups, 8] their orientations and pixel spacings
    """
    if not groups:
        return None
    directions = places[:, :6] - place.orientation
    pixels = places[:, 6:] / place.spacing - 1
    near = (np.abs(directions).max(axis=1) <= SAME_DIRECTION) & (np.abs(pixels).max(axis=1) <= SAME_PIXEL)
    return groups[int(np.argmax(near))] if near.any() else None


def _is_stack(group: _Group) -> bool:
    """Whether the images lie at two positions at least."""
    positions = np.array([image.get("ImagePositionPatient") for image in group.images], np.float64)
    return bool(np.abs(positions - positions[0]).max() > SAME_PLACE * min(group.place.spacing))


def _why_no_stack(group: _Group) -> str:
    count = len(group.images)
    return ONLY_SLICE if count == 1 else f"the {count} images of its series are all at one position"


def _difference(lone: _Group, usual: _Group) -> str:
    """In what a lone image differs from the others of its series."""
    size, others = (tuple(group.images[0].get(side) for side in ("Rows", "Columns")) for group in (lone, usual))
    if size != others:
        return f"{size[0]} x {size[1]} pixels, the others {others[0]} x {others[1]}"
    if np.abs(np.subtract(lone.place.orientation, usual.place.orientation)).max() > SAME_DIRECTION:
        return f"orientation {_listed(lone.place.orientation)}, the others {_listed(usual.place.orientation)}"
    return f"PixelSpacing {_listed(lone.place.spacing)} mm, the others {_listed(usual.place.spacing)}"


def _listed(numbers: Iterable[float]) -> str:
    return "\\".join(f"{number:.4g}" for number in numbers)


def _warnings(images: Sequence[Image]) -> Iterator[str]:
    lost = [image for image in images if str(image.get("Modality", "")).strip(" \0").upper() != "CT"]
    if lost:
        modality = shown(lost[0].get("Modality", ""))
        what = f"a damaged Modality ({modality})" if modality.strip() else "no Modality"
        yield f"{len(lost)} of {len(images)} images have {what}; taken for CT by their SOP class"
    unknown = [image for image in images if not is_known_class(image)]
    if unknown:
        uid = str(unknown[0].get("SOPClassUID", "(absent)"))
        what = class_name(uid) or f"SOP class {shown(uid)}"
        yield f"{len(unknown)} of {len(images)} images are of {what}; taken for CT by their modality"
    derived = [words for words in map(image_type, images) if words[:1] == ["DERIVED"]]
    if derived:
        words = shown("\\".join(derived[0]))
        yield f"{len(derived)} of {len(images)} images are {words}: processed, not the scanner's own slices"


def _numbered(
    source: Source, candidates: list[Candidate], dropped: list[Dropped], asides: list[Aside], readable: list[str]
) -> Survey:
    """The survey, its candidates in the order of their first images, with the faults and warnings of what was left."""
    places = {entry.name: number for number, entry in enumerate(source)}
    first: dict[tuple[str, int], int] = {}
    for candidate in candidates:
        whole = (candidate.series_uid, candidate.number)
        first[whole] = min(first.get(whole, len(places)), min(places[image.entry.name] for image in candidate.images))
    candidates.sort(key=lambda one: (first[one.series_uid, one.number], one.series_uid, one.number, one.part or 0))
    numbers = {
        whole: number for number, whole in enumerate(dict.fromkeys((c.series_uid, c.number) for c in candidates), 1)
    }
    faults, doubtful = lost_slices(candidates, dropped, readable)
    everything = tuple(dropped)
    return Survey(
        tuple(
            replace(
                one,
                number=numbers[one.series_uid, one.number],
                dropped=everything,
                faults=(*one.faults, *faults.get(index, ())),
                warnings=(
                    *one.warnings,
                    *aside_warnings(one, asides),
                    *lost_warnings(dropped, doubtful, one.series_uid),
                ),
            )
            for index, one in enumerate(candidates)
        ),
        everything,
    )
