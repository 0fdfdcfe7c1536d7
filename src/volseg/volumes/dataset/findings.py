"""What was seen of a case, part by part, and what is wrong with it or with the set by that."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from volseg.errors import first_few
from volseg.geometry import Triple, format_triple
from volseg.volumes.checks import not_finite_text
from volseg.volumes.dataset.case import Case, Dataset, Fault, Kind
from volseg.volumes.dataset.description import outside_message
from volseg.volumes.dataset.mixed_up import exchanged_text
from volseg.volumes.file_names import DESCRIPTION
from volseg.volumes.fingerprint import CaseFingerprint, Fingerprint
from volseg.volumes.mask_values import together
from volseg.volumes.volume import Space

DIGEST_BYTES = 16
MOST_VALUES = 8  # of those outside the list that are kept, and of unused labels that are named


@dataclass
class Findings:
    """What a rank saw in its part of a case; small, for all ranks get it.

    not_finite  by channel: how many voxels, and the first
    constant    by channel: the value of all its voxels so far; None where they differ
    doubts      what a reader of DICOM should know, one line each
    voxels      by label value of the list; `outside` those that are not, `ignored` those that nobody has labelled
    image_is_mask  whether the image channels hold nothing but values of the list
    remarks     what was mended of the labels, or is doubtful about them (see `mask_values`)
    digest      of the image channels in this part: digests of runs of rows, added up, so in any order
    spaces      canonical grids of the first image and of the labels
    """

    number: int
    part: int
    faults: list[tuple[Kind, str]] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    not_finite: dict[int, tuple[int, Triple]] = field(default_factory=dict)
    constant: dict[int, float | None] = field(default_factory=dict)
    voxels: Counter[int] = field(default_factory=Counter)
    outside: set[float] = field(default_factory=set)
    ignored: int = 0
    image_is_mask: bool = True
    spaces: tuple[Space, ...] = ()
    fractions: set[float] = field(default_factory=set)
    remarks: set[str] = field(default_factory=set)
    digest: int = 0
    shape: Triple = (0, 0, 0)
    spacing: tuple[float, float, float] = (0.0, 0.0, 0.0)


def faults_of(dataset: Dataset, case: Case, found: Sequence[Findings]) -> list[Fault]:
    """What the parts of a case say together."""
    said = dict.fromkeys(fault for part in found for fault in part.faults)
    faults = [Fault(case.name, kind, message) for kind, message in said]
    doubts = dict.fromkeys(line for part in found for line in part.doubts)
    doubtful = [Fault(case.name, "doubtful image", line, serious=False) for line in doubts]
    for channel, image in enumerate(case.images):
        seen = [part.not_finite[channel] for part in found if channel in part.not_finite]
        if seen:
            count, first = sum(number for number, _ in seen), format_triple(min(voxel for _, voxel in seen))
            message = (
                f"{image}: {not_finite_text(count)}, the first at D x H x W {first}; replace them, with "
                "-1024 for air in CT"
            )
            faults.append(Fault(case.name, "not finite", message))
        constants = {part.constant[channel] for part in found if channel in part.constant}
        if len(constants) == 1 and None not in constants and not said:
            message = f"{image}: every voxel is {constants.pop():g}, a constant image; there is nothing to see in it"
            faults.append(Fault(case.name, "constant image", message, serious=False))
    assert case.label is not None
    remarks = together(set().union(*(part.remarks for part in found)))
    faults += [Fault(case.name, "doubtful labels", f"{case.label}: {remark}", serious=False) for remark in remarks]
    if _are_exchanged(found):
        return [*faults, Fault(case.name, "outside the list", exchanged_text(case, dataset))]
    fractions = sorted(set().union(*(part.fractions for part in found)), key=lambda one: (one != one, one))
    if fractions:
        shown = ", ".join(f"{value:g}" for value in fractions[:5])
        message = f"{case.label}: labels must be whole numbers, it holds {shown}; is this an image or a probability?"
        faults.append(Fault(case.name, "no whole numbers", message))
    outside = sorted(set().union(*(part.outside for part in found)))
    if outside:
        message = outside_message(outside, dataset.labels, case.label)
        faults.append(Fault(case.name, "outside the list", message))
    voxels = _voxels(found)
    if not dataset.regions:
        strange = [dataset.label_names[value] for value in dataset.unknown_in(case) if voxels[value]]
        if strange:
            message = (
                f"{case.label}: holds {first_few(strange)}, which is not annotated in it by {DESCRIPTION}; add it "
                "there, or take it out of the labels"
            )
            faults.append(Fault(case.name, "outside the list", message))
    if (
        voxels
        and not any(count for value, count in voxels.items() if value)
        and not any(fault.serious for fault in faults)
    ):
        message = f"{case.label}: no voxel of it carries a label; it holds background alone"
        faults.append(Fault(case.name, "empty labels", message, serious=False))
    return faults + doubtful


def with_copies(
    dataset: Dataset, by_case: Sequence[Sequence[Findings]], faults: list[list[Fault]]
) -> list[list[Fault]]:
    """Also a fault for each case with the same image as one before: it may come to lie on both sides of a split."""
    first: dict[str, str] = {}
    for number, found in enumerate(by_case):
        digest, case = _digest(found), dataset.cases[number]
        if any(kind in ("unreadable", "geometry") for part in found for kind, _ in part.faults):
            continue
        if digest in first:
            message = f"{case.images[0]}: the same image as case {first[digest]}; keep one of them"
            faults[number].append(Fault(case.name, "duplicate", message))
        first.setdefault(digest, case.name)
    return faults


def faults_of_set(dataset: Dataset, fingerprint: Fingerprint) -> list[Fault]:
    if not fingerprint.cases:
        return []
    voxels = fingerprint.voxels
    if not any(voxels[1:]):
        message = f"{dataset.folder}: no voxel carries a label; there is nothing to learn from: check the label files"
        return [Fault("", "empty labels", message)]
    unused = [f"{name} ({value})" for name, value in dataset.labels.items() if value and not voxels[value]]
    if not unused:
        return []
    more = f" and {len(unused) - MOST_VALUES} more" if len(unused) > MOST_VALUES else ""
    message = f"{dataset.folder}: in no case occur the labels {', '.join(unused[:MOST_VALUES])}{more}"
    return [Fault("", "unused label", message, serious=False)]


def _are_exchanged(found: Sequence[Findings]) -> bool:
    """Whether the labels are none, and the image holds nothing but labels, and not one alone."""
    seen = {part.constant.get(0) for part in found}
    return (
        any(part.outside or part.fractions for part in found)
        and all(part.image_is_mask for part in found)
        and (len(seen) > 1 or None in seen)
    )


def _voxels(found: Sequence[Findings]) -> Counter[int]:
    return sum((part.voxels for part in found), Counter[int]())


def _digest(found: Sequence[Findings]) -> str:
    total = sum(part.digest for part in found) % 2 ** (8 * DIGEST_BYTES)
    shape = hashlib.blake2b(repr(found[0].shape).encode(), digest_size=DIGEST_BYTES)
    shape.update(total.to_bytes(DIGEST_BYTES))
    return shape.hexdigest()


def fingerprint_of(dataset: Dataset, number: int, found: Sequence[Findings]) -> CaseFingerprint:
    voxels = _voxels(found)
    counts = tuple(voxels[value] for value in range(len(dataset.labels)))
    ignored = sum(part.ignored for part in found)
    name = dataset.cases[number].name
    return CaseFingerprint(
        name=name, shape=found[0].shape, spacing=found[0].spacing, voxels=counts, digest=_digest(found), ignored=ignored
    )
