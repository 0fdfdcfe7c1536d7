"""Labels that are lost where cases are seen at another spacing than their own."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.events import Listener, Progress, ignore
from volseg.geometry import format_triple
from volseg.volumes.canonical import in_order_of
from volseg.volumes.dataset.case import Case, Dataset, Fault
from volseg.volumes.fingerprint import CaseFingerprint, Fingerprint
from volseg.volumes.resampling import Spacing, kept_where_close, resampled
from volseg.volumes.scan import seen_space
from volseg.volumes.volume import Volume

LEAST = 0.25
"""Share of a label's volume below which it counts as nearly lost."""
PIECE_VOXELS = 2**20


def lost_labels(
    dataset: Dataset, fingerprint: Fingerprint, spacing: Spacing | None, communicator: Communicator,
    listen: Listener = ignore,
) -> list[Fault]:  # fmt: skip
    """A warning for each case of which a label has no voxel left, or next to none, at `spacing`. Collective.

    spacing  mm, canonical D, H, W; None: each case's own, where nothing is lost

    The ranks share the cases that are resampled; their labels are read again, some planes at a time.
    """
    if spacing is None:
        return []
    known = {case.name: case for case in fingerprint.cases}
    views: list[tuple[Case, Volume, str]] = []
    with communicator.together():
        for case in dataset.cases:
            own = known[case.name].spacing if case.name in known else spacing
            if case.label is not None and kept_where_close(own, spacing) != own:
                image = case.images[0].open()
                label = in_order_of(dataset.open_labels(case), image.space)
                seen = resampled(label, seen_space(image, spacing), "labels")
                views.append((case, seen, format_triple(tuple(f"{n:.4g}" for n in own))))
    return lost_in(views, dataset, fingerprint, communicator, listen)


def lost_in(
    views: Sequence[tuple[Case, Volume, str]], dataset: Dataset, fingerprint: Fingerprint, communicator: Communicator,
    listen: Listener = ignore,
) -> list[Fault]:  # fmt: skip
    """The same of labels as a network sees them. Collective.

    views  cases, each with its labels on the grid that the network sees, and the --spacing that keeps them
    """
    known = {case.name: case for case in fingerprint.cases}
    counts = np.zeros((len(views), len(dataset.labels)), dtype=np.int64)
    with communicator.together():
        for number in range(communicator.rank, len(views), communicator.size):
            counts[number] = _count(views[number][1], len(dataset.labels))
            done = min(number + communicator.size, len(views))
            listen(Progress("labels at the spacing of training", done, len(views), "cases"))
    counts = communicator.reduce_all(counts)
    faults = [
        _fault(dataset, known[case.name], case, view, keeping, after.tolist())
        for (case, view, keeping), after in zip(views, counts, strict=True)
    ]
    return [fault for fault in faults if fault is not None]


def _count(view: Volume, labels: int) -> np.ndarray:
    """Voxels of each label."""
    _, h, w = view.shape
    found = np.zeros(labels, dtype=np.int64)
    for _, values in view.slabs(max(1, PIECE_VOXELS // (h * w))):
        found += np.bincount(values.astype(np.int64).ravel(), minlength=labels)[:labels]
    view.close()
    return found


def _fault(
    dataset: Dataset, before: CaseFingerprint, case: Case, view: Volume, keeping: str, after: list[int]
) -> Fault | None:  # fmt: skip
    larger = prod(view.space.spacing) / prod(before.spacing)
    lost = [
        f"label {name} ({before.voxels[value]} voxels) has {after[value] or 'none'} left"
        for name, value in dataset.labels.items()
        if value and after[value] * larger < LEAST * before.voxels[value]
    ]
    if not lost:
        return None
    sides = format_triple(tuple(f"{n:.4g}" for n in view.space.spacing))
    message = (
        f"{case.name}: {', '.join(lost)} at {sides} mm, where it is seen in training; --spacing {keeping} keeps it"
    )
    return Fault(case.name, "lost label", message, serious=False)
