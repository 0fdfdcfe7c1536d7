"""Sort the images of a source into candidate volumes, say why the rest is left out, and choose one.

What a candidate needs is here; what makes an image a slice at all is in `screening`. Nothing is guessed: where a source
holds several volumes the user is asked, and where a slice of the chosen series is damaged or unlike the others, that is
an error and not a shorter volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.audit import Dropped, count_reasons
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.finding.candidates import (
    Candidate,
    Survey,
    candidate_rows,
    table_text,
)
from volseg.volumes.dicom.finding.directory import MISSING
from volseg.volumes.dicom.finding.headers import ENHANCED_CT, NOT_DICOM, Damaged, read_image
from volseg.volumes.dicom.finding.screening import Place, image_type, is_secondary, place_of, shown, why_not_a_slice
from volseg.volumes.dicom.finding.sources import Source
from volseg.volumes.dicom.image import Image, printable, without_folders
from volseg.volumes.tolerance import SAME_PLACE

__all__ = ["Candidate", "Survey", "candidate_rows", "choose", "survey"]

SAME_DIRECTION = 1e-3  # of each of the six numbers of an orientation: 0.06 degrees
SAME_PIXEL = 1e-3  # relative
ONLY_SLICE = "the only slice of its series"
NO_UID = "no SeriesInstanceUID"
REASONS_LISTED = 4
NAMES_LISTED = 3
DIGITS_OF_A_NUMBER = 3


@dataclass(eq=False)
class _Group:
    """Slices of one series, size, orientation and pixel spacing."""

    place: Place
    images: list[Image]


def survey(source: Source) -> Survey:
    """The candidate volumes of a source, numbered in the order of their first images; and all that is in none.

    Slices belong together by SeriesInstanceUID, rows and columns, orientation (to 1e-3) and pixel spacing (to 0.1 %). A
    frame of an enhanced file counts as an image. Images DERIVED\\SECONDARY are dropped where their series has others;
    a series of nothing else (reformatted images) is a candidate, with a warning.
    """
    series: dict[str, list[Image]] = {}
    dropped = list(source.dropped)
    for found in _images(source):
        reason = why_not_a_slice(found) if isinstance(found, Image) else None
        if isinstance(found, Dropped):
            dropped.append(found)
        elif reason is not None:
            dropped.append(Dropped(found.name, reason))
        else:
            series.setdefault(printable(str(found.get("SeriesInstanceUID", NO_UID))), []).append(found)
    candidates: list[Candidate] = []
    damaged: dict[str | None, list[Damaged]] = {}
    for item in dropped:
        if isinstance(item, Damaged):
            damaged.setdefault(item.series_uid, []).append(item)
    for uid, images in series.items():
        some, rest = _sort_series(uid, images, damaged.get(uid, []))
        candidates += some
        dropped += rest
    return _numbered(source, candidates, dropped)


def choose(path: str | Path, survey: Survey, series: str | None) -> Candidate:
    """The candidate that `series` asks for: its UID, its number, or an ending of its UID; without it, the only one.

    A number of up to three digits is never taken for an ending.

    Its `dropped` then accounts for everything else in the source.

    Raises VolumeError, with the table of candidates, where there is not exactly one; with what was found instead, where
    there is none; and where images of the chosen series are damaged or do not fit the others.
    """
    if not survey.candidates:
        raise VolumeError(_nothing(Path(path), survey.dropped))
    found = list(survey.candidates) if series is None else _matching(survey.candidates, series)
    if len(found) != 1:
        count = len(survey.candidates)
        how = "choose one with --series, by its number or an ending of its UID (--series 1)"
        if series is None:
            what = f"{count} CT volumes; {how}"
        else:
            what = f"--series {shown(series)} is {len(found) or 'none'} of its {count} CT volumes; {how}"
        raise VolumeError(f"{path}: {what}:\n{table_text(survey)}")
    chosen = found[0]
    if chosen.faults:
        listed = ", ".join(f"{_base(item.name)} ({item.reason})" for item in chosen.faults[:NAMES_LISTED])
        more = f" and {len(chosen.faults) - NAMES_LISTED} more" if len(chosen.faults) > NAMES_LISTED else ""
        raise VolumeError(
            f"{path}: {len(chosen.faults)} images of the series do not fit the other {chosen.slices}: {listed}{more}; "
            "mend them, or take them out if the volume is whole without"
        )
    others = [
        Dropped(image.name, f"of series {other.number} ({other.description or other.series_uid}), which was not chosen")
        for other in survey.candidates
        if other is not chosen
        for image in other.images
    ]
    return replace(chosen, dropped=(*survey.dropped, *others))


def _images(source: Source) -> Iterator[Image | Dropped]:
    """Every image of a source, those of an enhanced file one a frame; and every file that is none."""
    for entry in source:
        found = read_image(entry)
        if not isinstance(found, Image) or str(found.get("SOPClassUID")) not in ENHANCED_CT:
            yield found
            continue
        from volseg.volumes.dicom.frames import expand

        try:
            yield from expand(found)
        except VolumeError as error:
            reason = str(error).removeprefix(f"{found.name}: ")
            yield Damaged(found.name, reason, printable(str(found.get("SeriesInstanceUID", NO_UID))))


def _sort_series(uid: str, images: list[Image], damaged: list[Damaged]) -> tuple[list[Candidate], list[Dropped]]:
    """The candidates of one series, not yet numbered, and its images that are in none."""
    dropped: list[Dropped] = []
    secondary = [image for image in images if is_secondary(image)]
    if len(secondary) < len(images):
        dropped += [
            Dropped(image.name, "DERIVED\\SECONDARY, beside the originals of its series") for image in secondary
        ]
        images = [image for image in images if not is_secondary(image)]
    groups, misfits = _group(images)
    whole = [group for group in groups if _is_stack(group)]
    usual = max(whole, key=lambda group: len(group.images), default=None)
    for group in groups:
        if group not in whole:
            reason = _why_no_stack(group) if usual is None else _difference(group, usual)
            misfits += [Dropped(image.name, reason) for image in group.images]
    candidates = [
        Candidate(
            0,
            uid,
            tuple(group.images),
            group.place.orientation,
            (group.place.spacing[0], group.place.spacing[1]),
            faults=(*misfits, *damaged),
            warnings=tuple(_warnings(group.images)),
        )
        for group in whole
    ]
    return candidates, dropped + misfits


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


def _warnings(images: list[Image]) -> Iterator[str]:
    derived = [words for words in map(image_type, images) if words[:1] == ["DERIVED"]]
    if derived:
        words = shown("\\".join(derived[0]))
        yield f"{len(derived)} of {len(images)} images are {words}: processed, not the scanner's own slices"


def _numbered(source: Source, candidates: list[Candidate], dropped: list[Dropped]) -> Survey:
    """The survey, its candidates in the order of their first images, warned of damaged files of no known series."""
    places = {entry.name: number for number, entry in enumerate(source)}
    candidates.sort(key=lambda one: (places[one.images[0].entry.name], one.series_uid))
    lost = [item.name for item in dropped if isinstance(item, Damaged) and item.series_uid is None]
    missing = [item.name for item in dropped if item.reason == MISSING]
    warning: tuple[str, ...] = ()
    if lost:
        warning += (f"{len(lost)} damaged files, perhaps slices of it, were left out: {_some(lost)}",)
    if missing:
        warning += (f"{len(missing)} files of the DICOMDIR are missing, perhaps slices of it: {_some(missing)}",)
    everything = tuple(dropped)
    return Survey(
        tuple(
            replace(one, number=number, dropped=everything, warnings=(*one.warnings, *warning))
            for number, one in enumerate(candidates, 1)
        ),
        everything,
    )


def _matching(candidates: tuple[Candidate, ...], series: str) -> list[Candidate]:
    exact = [one for one in candidates if one.series_uid == series]
    numbered = [one for one in candidates if str(one.number) == series]
    short = series.isdecimal() and len(series) <= DIGITS_OF_A_NUMBER  # "--series 7" of two must not find a UID ...07
    ending = [one for one in candidates if series and not short and one.series_uid.endswith(series)]
    return exact or numbered or ending


def _nothing(path: Path, dropped: tuple[Dropped, ...]) -> str:
    """What to say of a source without a candidate."""
    found = [item for item in dropped if item.reason != NOT_DICOM]
    if not found:
        inside = f"its {len(dropped)} files hold none" if dropped else "it is empty"
        return f"{path}: no DICOM images ({inside}); give a folder with one CT series, or a .nii.gz file"
    if path.is_file() and len(dropped) == 1 and dropped[0].reason == ONLY_SLICE:
        return f"{path}: one slice only; give the folder that holds its series, such as {path.parent}"
    counted = count_reasons(found)
    listed = "; ".join(f"{count} x {reason} ({_some(names)})" for reason, count, names in counted[:REASONS_LISTED])
    more = f"; and {len(counted) - REASONS_LISTED} other reasons" if len(counted) > REASONS_LISTED else ""
    files = "its only file" if len(dropped) == 1 else f"its {len(dropped)} files"
    remedy = "give a whole CT series, or a .nii.gz file"
    return f"{path}: no CT volume of two or more slices in {files}: {listed}{more}; {remedy}"


def _some(names: Iterable[str]) -> str:
    short = [_base(name) for name in names]
    return ", ".join(short[:NAMES_LISTED]) + (
        f" and {len(short) - NAMES_LISTED} more" if len(short) > NAMES_LISTED else ""
    )


def _base(name: str) -> str:
    return without_folders(name).rsplit("!", 1)[-1]
