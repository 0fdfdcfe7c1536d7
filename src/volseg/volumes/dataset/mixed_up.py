"""Files that are somebody else's: image and labels exchanged, labels of another case."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from volseg.geometry import Triple
from volseg.volumes.dataset.case import Case, Dataset, Fault
from volseg.volumes.volume import Space

NAMED = 3
PLACES = 2  # decimals of an affine in mm by which grids are told apart

Grid = tuple[Triple, tuple[float, ...]]


def is_mask(values: np.ndarray, dataset: Dataset) -> bool:
    """Whether an image's voxels are all values of the set's labels, as a mask's are."""
    top = max(dataset.labels.values()) if dataset.ignore is None else dataset.ignore
    if not values.size:
        return True
    if not (values.min() >= 0 and values.max() <= top):
        return False
    return values.dtype.kind in "iu" or bool((values == np.floor(values)).all())


def exchanged_text(case: Case, dataset: Dataset) -> str:
    """What is said of a case whose labels are none, and whose image might be them."""
    top = max(dataset.labels.values())
    return (
        f"{case.label}: holds no labels, but {case.images[0]} holds nothing but whole numbers from 0 to {top}: image "
        "and labels are exchanged; give each the other's place"
    )


def with_owners(
    dataset: Dataset, spaces: Sequence[Sequence[Space]], faults: list[list[Fault]]
) -> list[list[Fault]]:  # fmt: skip
    """The faults of each case; where labels lie not on their image's grid and on that of one other case, that is said.

    spaces  of each case: canonical grids of its first image and of its labels; empty where they could not be opened
    """
    if not any(fault.kind == "geometry" for some in faults for fault in some):
        return faults
    images: dict[Grid, list[int]] = defaultdict(list)
    for number, grids in enumerate(spaces):
        if grids:
            images[_grid(grids[0])].append(number)
    return [
        [_with_owner(dataset, images, number, spaces[number], fault) for fault in some]
        for number, some in enumerate(faults)
    ]


def _with_owner(
    dataset: Dataset, images: Mapping[Grid, list[int]], number: int, grids: Sequence[Space], fault: Fault
) -> Fault:  # fmt: skip
    if fault.kind != "geometry" or not grids:
        return fault
    owners = images.get(_grid(grids[1]), [])
    if len(owners) != 1 or owners[0] == number:
        return fault
    owner = dataset.cases[owners[0]]
    more = f"; they lie on the grid of case {owner.name}: are they its labels?"
    return dataclasses.replace(fault, message=fault.message + more)


def _grid(space: Space) -> Grid:
    numbers = np.asarray(space.affine, dtype=np.float64)[:3].round(PLACES) + 0.0  # no -0
    return space.shape, tuple(numbers.ravel().tolist())
