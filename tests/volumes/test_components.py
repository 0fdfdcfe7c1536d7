"""Components found in parts are those of the whole, whatever the parts."""

from __future__ import annotations

from itertools import combinations

import cc3d
import numpy as np
import pytest

from mask_blocks import NOTHING, flooded, hard_masks, pinwheel, random_tiling, snake, speckles
from volseg.distributed.communicator import Communicator, SerialCommunicator
from volseg.errors import ConfigError
from volseg.geometry import Box
from volseg.volumes.components import connected_components, merge


def named_by_cc3d(mask: np.ndarray, connectivity: int) -> np.ndarray:
    """The same from serial cc3d, whatever its numbering."""
    labels, count = cc3d.connected_components(mask, connectivity=connectivity, return_N=True)
    names = np.full(count + 1, mask.size)
    np.minimum.at(names, labels.ravel(), np.arange(mask.size))
    names[0] = -1
    return names[labels]


def check(mask: np.ndarray, names: np.ndarray, boxes: list[Box], communicator: Communicator, connectivity: int) -> None:
    """This rank's part of the result against `names` of the whole; fails on all ranks where it fails on one."""
    box = boxes[communicator.rank]
    found = connected_components(mask[box.slices], boxes, communicator, connectivity)
    here, whole = found.sizes()
    counts = np.bincount(names[names >= 0], minlength=mask.size)
    owned = communicator.gather_all(found.first[found.owned])
    right = {
        "partition": np.array_equal(found.first[found.labels], names[box.slices]),
        "values": np.array_equal(found.value[found.labels], mask[box.slices]),
        "sizes": np.array_equal(whole[1:], counts[found.first[1:]]),
        "voxels here": np.array_equal(here, np.bincount(found.labels.ravel(), minlength=len(here))),
        "owners": np.array_equal(np.sort(np.concatenate(owned)), np.flatnonzero(counts)),
    }
    wrong = communicator.gather_all([what for what, well in right.items() if not well])
    assert not any(wrong), (wrong, connectivity, [str(b) for b in boxes])


@pytest.mark.parallel([1, 2, 3, 4, 8])
@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_hard_masks_on_random_tilings(connectivity: int, communicator: Communicator) -> None:
    random = np.random.default_rng(connectivity)
    for shape in [(11, 9, 13), (1, 7, 20), (5, 5, 5)]:
        for mask in hard_masks(random, shape).values():
            names = flooded(mask, connectivity)
            for _ in range(4 if communicator.size < 8 else 2):
                check(mask, names, random_tiling(random, shape, communicator.size), communicator, connectivity)


@pytest.mark.parallel([2, 8])
def test_a_block_for_each_voxel(communicator: Communicator) -> None:
    """Every two voxels of 2 x 2 x 2, and both of 2: whatever touches, touches over a cut."""
    shape = (2, 2, 2) if communicator.size == 8 else (1, 2, 1)
    boxes = [Box((d, h, w), (d + 1, h + 1, w + 1)) for d, h, w in np.ndindex(shape)]
    for pair in combinations(range(communicator.size), 2):
        mask = np.isin(np.arange(communicator.size), pair).astype(np.uint8).reshape(shape)
        for connectivity in (6, 18, 26):
            check(mask, flooded(mask, connectivity), boxes, communicator, connectivity)


@pytest.mark.parallel([8])
def test_a_pinwheel_with_empty_blocks(communicator: Communicator) -> None:
    random = np.random.default_rng(5)
    shape = (4, 12, 15)
    for mask in hard_masks(random, shape).values():
        for connectivity in (6, 18, 26):
            check(mask, flooded(mask, connectivity), pinwheel(shape, 8), communicator, connectivity)


@pytest.mark.parallel([2])
def test_all_on_one_rank_and_nothing_on_the_other(communicator: Communicator) -> None:
    mask = speckles(np.random.default_rng(0), (6, 7, 8), 2, 0.4)
    names = flooded(mask, 26)
    for boxes in ([NOTHING, Box.whole(mask.shape)], [Box.whole(mask.shape), NOTHING]):
        check(mask, names, boxes, communicator, 26)


@pytest.mark.parallel([1, 2, 4])
def test_many_components_are_those_of_cc3d(communicator: Communicator) -> None:
    """Tens of thousands of specks, and a snake through all of a larger volume, longer than a search's runs."""
    random = np.random.default_rng(1)
    shape = (40, 70, 90)
    for mask in (speckles(random, shape, 3, 0.3), speckles(random, shape, 1, 0.05), snake(shape)):
        for connectivity in (6, 18, 26):
            names = named_by_cc3d(mask, connectivity)
            check(mask, names, random_tiling(random, shape, communicator.size), communicator, connectivity)


def test_a_mask_in_fortran_order_or_backwards_is_numbered_alike() -> None:
    mask = speckles(np.random.default_rng(2), (9, 8, 7), 2, 0.4)
    for view in (np.asfortranarray(mask), np.ascontiguousarray(mask[::-1])[::-1]):
        check(view, flooded(mask, 26), [Box.whole(mask.shape)], SerialCommunicator(), 26)


def test_another_connectivity_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"connectivity 8 is not one of 6 .*, 18 .*, 26"):
        connected_components(np.zeros((1, 1, 1), np.uint8), [Box.whole((1, 1, 1))], SerialCommunicator(), 8)


@pytest.mark.parametrize("seed", range(5))
def test_merge_finds_the_smallest_relative(seed: int) -> None:
    """Random graphs, long paths in random order, and stars; against one relabelling after another."""
    random = np.random.default_rng(seed)
    names = random.permutation(400) + 1000
    path = np.stack([names[:150], names[1:151]], axis=1)
    star = np.stack([np.full(50, names[200]), names[201:251]], axis=1)
    links = np.concatenate([path, star, names[random.integers(260, 400, size=(80, 2))]])
    links = links[random.permutation(len(links))]
    roots = {int(name): int(name) for name in np.unique(links)}
    for a, b in links.tolist():
        low, high = sorted((roots[a], roots[b]))
        roots = {name: low if root == high else root for name, root in roots.items()}
    nodes, found = merge(links)
    assert dict(zip(nodes.tolist(), found.tolist(), strict=True)) == roots
