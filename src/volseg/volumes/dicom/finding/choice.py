"""Choose one of the volumes that a source holds, as the user asked; or say what there is to choose from."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from volseg.errors import VolumeError
from volseg.volumes.audit import Dropped, count_reasons
from volseg.volumes.dicom.finding.candidates import Candidate, Survey, some_names, table_text
from volseg.volumes.dicom.finding.companions import why_unreadable
from volseg.volumes.dicom.finding.foreign import NOT_DICOM, Foreign
from volseg.volumes.dicom.finding.screening import shown

ONLY_SLICE = "the only slice of its series"
REASONS_LISTED = 4
NAMES_LISTED = 3
DIGITS_OF_A_NUMBER = 3


def choose(path: str | Path, survey: Survey, series: str | None) -> Candidate:
    """The candidate that `series` asks for: its UID, its number, or an ending of its UID; without it, the only one.

    A number of up to three digits, or of a part such as 2.1, is never taken for an ending.

    Its `dropped` then accounts for everything else in the source.

    Raises VolumeError, with the table of candidates, where there is not exactly one; with what was found instead, where
    there is none; and where images of the chosen series are damaged or do not fit the others.
    """
    if not survey.candidates:
        raise VolumeError(_nothing(Path(path), survey.dropped))
    matching = list(survey.candidates) if series is None else _matching(survey.candidates, series)
    if len(matching) != 1:
        raise VolumeError(f"{path}: {_which(survey, series, len(matching))}:\n{table_text(survey)}")
    chosen = matching[0]
    if chosen.faults:
        raise VolumeError(f"{path}: {_misfits(chosen)}")
    others = [
        Dropped(image.name, f"of series {other.label} ({other.description or other.series_uid}), which was not chosen")
        for other in survey.candidates
        if other is not chosen
        for image in other.images
    ]
    return replace(chosen, dropped=(*survey.dropped, *others))


def _misfits(chosen: Candidate) -> str:
    """What images do not fit a candidate, and what to do about it."""
    count = len(chosen.faults)
    what, them = ("1 image of the series does", "it") if count == 1 else (f"{count} images of the series do", "them")
    listed = ", ".join(f"{some_names([item.name])} ({item.reason})" for item in chosen.faults[:NAMES_LISTED])
    more = f" and {count - NAMES_LISTED} more" if count > NAMES_LISTED else ""
    return (
        f"{what} not fit the other {chosen.slices}: {listed}{more}; mend {them}, or take {them} out if the volume is "
        "whole without"
    )


def _which(survey: Survey, series: str | None, matching: int) -> str:
    """That not one of several was chosen, and how to."""
    count = len(survey.candidates)
    first = survey.candidates[0].label
    how = (
        f"choose one with --series, by its number or an ending of its UID (--series {first}; where a command has no "
        "--series, ingest it first)"
    )
    if series is not None:
        return f"--series {shown(series)} is {matching or 'none'} of its {count} CT volumes; {how}"
    parts = [candidate for candidate in survey.candidates if candidate.part is not None]
    if not parts:
        return f"{count} CT volumes; {how}"
    one = "in one series" if len(parts) == count and len({part.number for part in parts}) == 1 else "some in one series"
    return f"{count} CT volumes, {one} and told apart as the table says; {how}"


def _matching(candidates: tuple[Candidate, ...], series: str) -> list[Candidate]:
    exact = [one for one in candidates if one.series_uid == series]
    numbered = [one for one in candidates if series in (one.label, str(one.number))]
    # "--series 7" of two must not find a UID ...07, nor "2.3" of a series of two parts one ...2.3
    pieces = series.split(".") if any(one.part for one in candidates) else [series]
    short = len(pieces) <= 2 and all(piece.isdecimal() and len(piece) <= DIGITS_OF_A_NUMBER for piece in pieces)
    ending = [one for one in candidates if series and not short and one.series_uid.endswith(series)]
    return exact or numbered or ending


def _nothing(path: Path, dropped: tuple[Dropped, ...]) -> str:
    """What to say of a source without a candidate."""
    telling = [
        Dropped(item.name, why_unreadable(item))
        for item in dropped
        if item.reason != NOT_DICOM or (isinstance(item, Foreign) and item.what)
    ]
    if not telling:
        inside = f"its {len(dropped)} files hold none" if dropped else "it is empty"
        return f"{path}: no DICOM images ({inside}); give a folder with one CT series, or a .nii.gz file"
    if path.is_file() and len(dropped) == 1 and dropped[0].reason == ONLY_SLICE:
        return f"{path}: one slice only; give the folder that holds its series, such as {path.parent}"
    counted = count_reasons(telling)
    listed = "; ".join(f"{count} x {reason} ({some_names(names)})" for reason, count, names in counted[:REASONS_LISTED])
    more = f"; and {len(counted) - REASONS_LISTED} other reasons" if len(counted) > REASONS_LISTED else ""
    files = "its only file" if len(dropped) == 1 else f"its {len(dropped)} files"
    remedy = "give a whole CT series, or a .nii.gz file"
    if "unpack" in counted[0][0]:
        remedy = "then give the folder"
    if counted[0][0].startswith("gzip-compressed") and path.is_dir():
        remedy = f"gunzip -r {shlex.quote(str(path))} unpacks them all"
    return f"{path}: no CT volume of two or more slices in {files}: {listed}{more}; {remedy}"
