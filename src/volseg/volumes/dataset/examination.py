"""Every case of a data set, read once: what is wrong with it, and its fingerprint.

Cases are shared over the ranks, and each is read piece by piece; where there are more ranks than cases, several share
the pieces of one. What is found does not depend on that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.errors import VolumeError
from volseg.events import Listener, Progress, ignore
from volseg.geometry import Box
from volseg.volumes.canonical import canonical, in_order_of
from volseg.volumes.checks import check_same_grid
from volseg.volumes.dataset.case import Case, Dataset, Fault, Kind
from volseg.volumes.dataset.findings import (
    DIGEST_BYTES,
    MOST_VALUES,
    Findings,
    faults_of,
    faults_of_set,
    fingerprint_of,
    with_copies,
)  # fmt: skip
from volseg.volumes.dataset.mixed_up import is_mask, with_owners
from volseg.volumes.dataset.unlike import portraits_of, typical_images, unlike_cases
from volseg.volumes.fingerprint import Fingerprint
from volseg.volumes.intensity import QUANTILES, Intensities
from volseg.volumes.tally import Close, Packed, Tally, has_any_of
from volseg.volumes.volume import Volume

PIECE_VOXELS = 2**20
ROWS = 32  # and slices, of which pieces are made: the side of a zarr chunk
SAMPLED_ROWS = 4  # one in so many rows says what an image looks like; pieces begin at multiples of it


@dataclass(frozen=True)
class Examination:
    """What was found.

    faults       of the cases, in their order, and of the set
    fingerprint  of the cases without serious faults
    """

    faults: tuple[Fault, ...]
    fingerprint: Fingerprint


def examine(dataset: Dataset, communicator: Communicator, listen: Listener = ignore) -> Examination:
    """Look at every voxel of every case. Collective; the same result on all ranks, whatever their number."""
    parts = max(1, communicator.size // max(1, len(dataset.cases)))
    units = [(number, part) for number in range(len(dataset.cases)) for part in range(parts)]
    mine = units[communicator.rank :: communicator.size]
    looks: list[_Look] = []
    error: Exception | None = None
    try:
        for done, (number, part) in enumerate(mine, start=1):
            looks.append(_look_at(dataset, number, part, parts))
            listen(
                Progress(
                    "check", min(done * communicator.size, len(units)), len(units), "parts" if parts > 1 else "cases"
                )
            )
    except Exception as caught:
        error = caught
    communicator.raise_together(error)
    gathered = sorted(
        (look for some in communicator.gather_all([look.findings for look in looks]) for look in some),
        key=lambda findings: (findings.number, findings.part),
    )
    by_case = [[f for f in gathered if f.number == number] for number in range(len(dataset.cases))]
    faults = [faults_of(dataset, case, found) for case, found in zip(dataset.cases, by_case, strict=True)]
    faults = with_owners(dataset, [found[0].spaces for found in by_case], with_copies(dataset, by_case, faults))
    sound = {number for number, found in enumerate(faults) if not any(fault.serious for fault in found)}
    intensities = _intensities(dataset, [look for look in looks if look.findings.number in sound], parts, communicator)
    cases = tuple(fingerprint_of(dataset, number, by_case[number]) for number in sorted(sound))
    portraits = portraits_of([(look.findings.number, look.image) for look in looks], parts == 1, communicator)
    constant = {n for n, some in enumerate(faults) if any(fault.kind == "constant image" for fault in some)}  # said
    portraits = {number: portraits[number] for number in sorted((sound - constant) & portraits.keys())}
    for number, fault in unlike_cases(dataset, portraits).items():
        faults[number].append(fault)
    images = typical_images(dataset, portraits)
    fingerprint = Fingerprint(dataset.labels, dataset.channel_names, cases, intensities, images)
    of_set = faults_of_set(dataset, fingerprint)
    return Examination((*(fault for some in faults for fault in some), *of_set), fingerprint)


@dataclass
class _Look:
    """The findings, and what stays on the rank that found it, by channel: the foreground's values, and the image's."""

    findings: Findings
    foreground: list[Packed] = field(default_factory=list)
    image: list[Packed] = field(default_factory=list)


def _look_at(dataset: Dataset, number: int, part: int, parts: int) -> _Look:
    case, found = dataset.cases[number], Findings(number, part)
    look = _Look(found)
    opened = _open(dataset, case, found)
    if opened is None:
        return look
    images, label = opened
    found.spaces = canonical(images[0]).space, canonical(label).space
    found.shape, found.spacing = found.spaces[0].shape, found.spaces[0].spacing
    tallies, of_images = [Tally() for _ in images], [Tally() for _ in images]
    if any(kind == "geometry" for kind, _ in found.faults):  # what can be said without each other
        for channel, image in enumerate(images):
            for box, values in _pieces(image, _boxes([image], part, parts), found):
                _look_at_image(found, channel, values, box, dataset)
        for _, values in _pieces(label, _boxes([label], part, parts), found):
            _look_at_labels(found, values, dataset)
        return look
    boxes = _boxes([*images, label], part, parts)
    readers = [_pieces(volume, boxes, found) for volume in (*images, label)]
    for pieces in zip(*readers, strict=False):  # one that cannot be read on ends all
        box, labels = pieces[-1]
        _look_at_labels(found, labels, dataset)
        foreground = _foreground_of(labels, dataset.ignore)
        for channel, (_, values) in enumerate(pieces[:-1]):
            _look_at_image(found, channel, values, box, dataset)
            tallies[channel].add(values[foreground])
            of_images[channel].add(values[:, ::SAMPLED_ROWS])
        found.digest += _digest_of(box, [values for _, values in pieces[:-1]])
    look.foreground = [tally.packed() for tally in tallies]
    look.image = [tally.packed() for tally in of_images]
    return look


def _open(dataset: Dataset, case: Case, found: Findings) -> tuple[list[Volume], Volume] | None:
    """The case's volumes, with a note of each that cannot be opened or lies on another grid than the first."""
    images: list[Volume] = []
    label: Volume | None = None
    assert case.label is not None
    for file in case.images:
        with _noting(found, "unreadable"):
            images.append(file.open())
    with _noting(found, "unreadable"):
        label = dataset.open_labels(case, found.remarks.add)
    found.doubts += [
        f"{image.path}: {line}" for image in images if image.format == "DICOM" for line in image.audit.warnings
    ]
    if len(images) < len(case.images) or label is None:
        return None
    label = in_order_of(label, images[0].space)
    for image in images[1:]:
        with _noting(found, "geometry"):
            check_same_grid(images[0], image, "a channel")
    with _noting(found, "geometry"):
        check_same_grid(images[0], label)
    return images, label


@contextmanager
def _noting(found: Findings, kind: Kind) -> Iterator[None]:
    """Notes what goes wrong in the body as a fault of `kind`, and goes on after it."""
    try:
        yield
    except (VolumeError, OSError) as error:
        found.faults.append((kind, str(error)))


def _boxes(volumes: Sequence[Volume], part: int, parts: int) -> list[Box]:
    """A part of volumes of one shape, in pieces: whole slices of compressed files, else as chunks lie in a zarr."""
    d, h, w = volumes[0].shape
    depth, rows = max(1, PIECE_VOXELS // (h * w)), h
    if not any(volume.whole_slices for volume in volumes):
        depth, rows = ROWS, max(1, PIECE_VOXELS // (ROWS * ROWS * w)) * ROWS
    boxes = [
        Box((z, y, 0), (min(z + depth, d), min(y + rows, h), w)) for z in range(0, d, depth) for y in range(0, h, rows)
    ]
    return boxes[len(boxes) * part // parts : len(boxes) * (part + 1) // parts]


def _pieces(volume: Volume, boxes: Sequence[Box], found: Findings) -> Iterator[tuple[Box, np.ndarray]]:
    """The voxels of each box; what cannot be read is noted, and ends them."""
    with _noting(found, "unreadable"):
        for box in boxes:
            yield box, volume.read(box)
    volume.close()


def _foreground_of(labels: np.ndarray, ignore: int | None) -> np.ndarray:
    """Where a label is that is neither background nor nobody's."""
    foreground: np.ndarray = labels > 0
    return foreground if ignore is None else foreground & (labels != ignore)


def _look_at_image(found: Findings, channel: int, values: np.ndarray, box: Box, dataset: Dataset) -> None:
    found.image_is_mask = found.image_is_mask and is_mask(values, dataset)
    value = found.constant.setdefault(channel, float(values.flat[0]))
    if value is not None and (values != value).any():
        found.constant[channel] = None
    if values.dtype.kind != "f":
        return
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    first = np.unravel_index(int(np.argmax(bad)), bad.shape)
    d, h, w = (int(n) + start for n, start in zip(first, box.start, strict=True))
    count, known = found.not_finite.get(channel, (0, (d, h, w)))
    found.not_finite[channel] = count + int(bad.sum()), min(known, (d, h, w))


def _look_at_labels(found: Findings, values: np.ndarray, dataset: Dataset) -> None:
    low, high = values.min(), values.max()
    if values.dtype.kind in "iu" and low >= 0 and high < 2**16:
        counts = np.bincount(values.ravel())
        some = np.flatnonzero(counts)
        counts = counts[some]
    else:
        some, counts = np.unique(values, return_counts=True)
    for value, count in zip(some.tolist(), counts.tolist(), strict=True):
        if value != value or value != np.floor(value):
            found.fractions = _smallest(found.fractions, value)
        elif value == dataset.ignore:
            found.ignored += count
        elif not 0 <= value <= max(dataset.labels.values()):
            found.outside = _smallest(found.outside, value)
        else:
            found.voxels[int(value)] += count


def _smallest(values: set[float], value: float) -> set[float]:
    """With one more, the smallest `MOST_VALUES`: which these are does not depend on how slices are shared."""
    return set(sorted(values | {value}, key=lambda one: (one != one, one))[:MOST_VALUES])


def _digest_of(box: Box, channels: Sequence[np.ndarray]) -> int:
    """The sum of the digests of runs of rows, each with its place, all channels together."""
    total = 0
    for plane in range(box.shape[0]):
        for row in range(0, box.shape[1], ROWS):
            place = repr((box.start[0] + plane, box.start[1] + row)).encode()
            digest = hashlib.blake2b(place, digest_size=DIGEST_BYTES)
            for values in channels:
                digest.update(np.ascontiguousarray(values[plane, row : row + ROWS]).data.cast("B"))
            total += int.from_bytes(digest.digest())
    return total


def _intensities(
    dataset: Dataset, looks: Sequence[_Look], parts: int, communicator: Communicator
) -> tuple[Intensities | None, ...]:  # fmt: skip
    """Of each channel, from all ranks' looks at sound cases. Collective.

    Cases are read again where their values have to be looked at closely, which whole numbers of a short range have not.
    """
    channels = range(len(dataset.channel_names))
    tallies = [Tally() for _ in channels]
    for channel in channels:
        for look in looks:
            tallies[channel].add_packed(look.foreground[channel])
        tallies[channel].reduce(communicator)
    close = [Close(tally.bins_of(QUANTILES) if tally.total else ()) for tally in tallies]
    with communicator.together():  # a file may have changed since
        for look in looks:
            again = [n for n in channels if has_any_of(look.foreground[n], close[n].bins)]
            for channel, values in _foreground(dataset, look.findings, parts, again) if again else ():
                close[channel].add(values)
    for some in close:
        communicator.reduce_all_in_place(some.counts)
    return tuple(
        Intensities.of(tally, some) if tally.total else None for tally, some in zip(tallies, close, strict=True)
    )


def _foreground(
    dataset: Dataset, before: Findings, parts: int, channels: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    case, found = dataset.cases[before.number], Findings(before.number, before.part)
    opened = _open(dataset, case, found)
    if opened is not None:
        images, label = opened
        boxes = _boxes([*images, label], before.part, parts)
        readers = [_pieces(volume, boxes, found) for volume in (*(images[channel] for channel in channels), label)]
        for pieces in zip(*readers, strict=False):
            foreground = _foreground_of(pieces[-1][1], dataset.ignore)
            for channel, (_, values) in zip(channels, pieces[:-1], strict=True):
                yield channel, values[foreground]
    for _, message in found.faults:
        raise VolumeError(message)
