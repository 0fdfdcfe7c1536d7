"""Connected components and `--keep-largest` over ranks, against serial cc3d on the whole mask.

    python benchmarks/components.py [--side 256] [--grid 2x1x1] [--repeats 15] [--masks organs,speckles]

One job on as many ranks as the grid has blocks; in each repeat, one after the other: serial cc3d on rank 0, volseg on
rank 0 alone, volseg on all ranks (the slowest rank counts). Medians in ms, and of the repeats' ratios. Every row is
also checked: the partition (each voxel's component named by its first voxel) and the number of components voxel by
voxel, the cleaned mask by its voxels per label. A second job, which does nothing else, measures how far
`--keep-largest` raises the peak memory of a rank, in bytes a voxel of its block (the copy it cleans included).

  partition     cc3d.connected_components                        connected_components: labels, named volume-wide
  with sizes    and np.bincount of its labels                    and sizes()
  keep-largest  cc3d.largest_k(mask == label, k=1), label by label   clean(), report included

organs    5 labels: ellipsoids and tubes across the cuts, and 0.02 % of the voxels at random
speckles  5 % of the voxels, independently, one label
noise     every voxel one of 6 values, independently (on request; minutes)
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cc3d
import numpy as np

from volseg.distributed.communicator import Communicator, SerialCommunicator
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.launch import connect
from volseg.distributed.redistribute import redistribute
from volseg.geometry import Box
from volseg.segmentation.postprocessing import Cleaning, clean
from volseg.volumes.components import Components, connected_components


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--grid", default="2x1x1")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--masks", default="organs,speckles")
    parser.add_argument("--worker", choices=["time", "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--mask", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker == "time":
        time_mask(given.mask, given.grid, given.repeats, connect())
    elif given.worker == "memory":
        memory_of(given.mask, given.grid, connect())
    else:
        launch(given.side, given.grid, given.repeats, given.masks.split(","))


def launch(side: int, grid: str, repeats: int, masks: list[str]) -> None:
    """Start the jobs, mask by mask, and let rank 0 of each print its rows."""
    ranks = int(np.prod([int(n) for n in grid.split("x")]))
    print(f"{side}^3 voxels, grid {grid}: {ranks} ranks of one thread; {repeats} repeats, medians in ms")
    print(f"| mask | components | neighbours | task | serial cc3d | volseg, 1 rank | volseg, {ranks} ranks |", end="")
    print(" cc3d / 1 rank | cc3d / all ranks | same |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="volseg-components-") as folder:
        paths = [Path(folder) / f"{name}.npy" for name in masks]
        for path in paths:
            np.save(path, MASKS[path.stem](side))
            work(ranks, ["--worker", "time", "--mask", path, "--grid", grid, "--repeats", repeats])
        print("\n| mask | bytes a voxel, by rank: 6 neighbours | 26 neighbours |\n|---|---|---|", flush=True)
        for path in paths:
            work(ranks, ["--worker", "memory", "--mask", path, "--grid", grid])


def work(ranks: int, arguments: list[object]) -> None:
    """Run this program on `ranks` ranks."""
    beside = Path(sys.executable).with_name("mpiexec")
    launcher = [str(beside) if beside.exists() else "mpiexec", "-n", str(ranks)]
    command = [*launcher, sys.executable, __file__, *map(str, arguments)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600, check=True)


def time_mask(path: Path, dims: str, repeats: int, communicator: Communicator) -> None:
    """All rows of one mask. Collective."""
    mask, boxes = np.load(path), boxes_of(path, dims, communicator)
    block = mask[boxes[communicator.rank].slices].copy()
    alone, whole = SerialCommunicator(), [Box.whole(mask.shape)]
    for connectivity in (6, 18, 26):
        rule = Cleaning(keep_largest=True, connectivity=connectivity)

        def sized(mask: np.ndarray, boxes: list[Box], communicator: Communicator, c: int = connectivity) -> Components:
            found = connected_components(mask, boxes, communicator, c)
            found.sizes()
            return found

        tasks: dict[str, tuple[Callable[[], object], ...]] = {
            "partition": (
                lambda c=connectivity: cc3d.connected_components(mask, connectivity=c),
                lambda c=connectivity: connected_components(mask, whole, alone, c),
                lambda c=connectivity: connected_components(block, boxes, communicator, c),
            ),
            "with sizes": (
                lambda c=connectivity: np.bincount(cc3d.connected_components(mask, connectivity=c).ravel()),
                lambda run=sized: run(mask, whole, alone),
                lambda run=sized: run(block, boxes, communicator),
            ),
            "keep-largest": (
                lambda c=connectivity: largest_by_cc3d(mask, c),
                lambda rule=rule: clean(mask.copy(), whole, 1.0, rule, alone),
                lambda rule=rule: clean(block.copy(), boxes, 1.0, rule, communicator),
            ),
        }
        same, count = check(mask, block, boxes, rule, communicator)
        for task, (serial, one, all_ranks) in tasks.items():
            few = max(3, repeats // 5) if task == "keep-largest" else repeats  # cc3d's way is slow with many labels
            times = [[timed(serial, communicator, 0), timed(one, communicator, 0), timed(all_ranks, communicator)]
                     for _ in range(few)]  # fmt: skip
            table = np.array(times)
            s, a, b = np.median(table, axis=0)
            by_one, by_all = np.median(table[:, :1] / table[:, 1:], axis=0)
            if communicator.is_root:
                print(f"| {path.stem} | {count} | {connectivity} | {task} | {s:.0f} | {a:.0f} | {b:.0f} |", end="")
                print(f" {by_one:.2f} | {by_all:.2f} | {'yes' if same else 'NO'} |", flush=True)


def timed(run: Callable[[], object], communicator: Communicator, only: int | None = None) -> float:
    """Milliseconds that `run` takes on the slowest rank, or on rank `only` while the others wait. Collective."""
    communicator.barrier()
    start = time.perf_counter()
    if only is None or communicator.rank == only:
        run()
    elapsed = 1e3 * (time.perf_counter() - start)
    return float(communicator.reduce_all(np.array([elapsed if only in (None, communicator.rank) else 0.0]), "max")[0])


def largest_by_cc3d(mask: np.ndarray, connectivity: int) -> np.ndarray:
    """The library's own call, label by label."""
    out = np.zeros_like(mask)
    for label in range(1, int(mask.max()) + 1):
        out[cc3d.largest_k(mask == label, k=1, connectivity=connectivity) > 0] = label
    return out


def check(
    mask: np.ndarray, block: np.ndarray, boxes: list[Box], rule: Cleaning, communicator: Communicator
) -> tuple[bool, int]:
    """Whether partition and cleaned mask are those of the whole mask; and how many components there are. Collective."""
    found = connected_components(block, boxes, communicator, rule.connectivity)
    count = int(communicator.reduce_all(np.array([found.owned.sum()]))[0])
    cleaned = block.copy()
    clean(cleaned, boxes, 1.0, rule, communicator)
    root = [Box.whole(mask.shape), *[None] * (communicator.size - 1)]
    names = redistribute(found.first[found.labels], boxes, root, communicator)
    largest = redistribute(cleaned, boxes, root, communicator)
    same = False
    if names is not None and largest is not None:
        labels, total = cc3d.connected_components(mask, connectivity=rule.connectivity, return_N=True)
        first = np.full(total + 1, mask.size)
        np.minimum.at(first, labels.ravel(), np.arange(mask.size))
        first[0] = -1
        # Two components of a label may be as large, and cc3d keep the later one: then the volumes must agree.
        right = largest_by_cc3d(mask, rule.connectivity)
        sizes = np.array_equal(np.bincount(right.ravel()), np.bincount(largest.ravel()))
        same = np.array_equal(names, first[labels]) and total == count and sizes
    return bool(communicator.broadcast(same)), count


def memory_of(path: Path, dims: str, communicator: Communicator) -> None:
    """Prints by how much `--keep-largest` raised the peak of each rank. Collective."""
    boxes = boxes_of(path, dims, communicator)
    block = np.load(path, mmap_mode="r")[boxes[communicator.rank].slices].copy()
    cells = []
    for connectivity in (6, 26):
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
        before = resident("VmRSS")
        clean(block.copy(), boxes, 1.0, Cleaning(keep_largest=True, connectivity=connectivity), communicator)
        peaks = communicator.gather_all((resident("VmHWM") - before) / block.size)
        cells.append(", ".join(f"{peak:.1f}" for peak in peaks))
    if communicator.is_root:
        print(f"| {path.stem} | {cells[0]} | {cells[1]} |", flush=True)


def resident(what: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def boxes_of(path: Path, dims: str, communicator: Communicator) -> list[Box]:
    d, h, w = (int(n) for n in dims.split("x"))
    shape = np.load(path, mmap_mode="r").shape
    return list(ProcessGrid(communicator, (d, h, w)).layout(shape).blocks())


def organs(side: int) -> np.ndarray:
    random = np.random.default_rng(0)
    mask = np.zeros((side,) * 3, dtype=np.uint8)
    for n in range(60):
        stretch = [0.02, 0.02, 0.5] if n % 6 == 5 else random.uniform(0.02, 0.18, 3)  # every sixth a tube
        ellipsoid(mask, random.uniform(0, side, 3), random.permutation(stretch) * side, n % 5 + 1)
    specks = random.random(mask.shape) < 0.0002
    mask[specks] = random.integers(1, 6, size=np.count_nonzero(specks))
    return mask


def ellipsoid(mask: np.ndarray, centre: np.ndarray, radii: np.ndarray, label: int) -> None:
    low = np.maximum(centre - radii, 0).astype(int)
    high = np.minimum(centre + radii + 1, mask.shape).astype(int)
    grid = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    inside = sum(((x - c) / r) ** 2 for x, c, r in zip(grid, centre, radii, strict=True)) <= 1
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))][inside] = label


def speckles(side: int) -> np.ndarray:
    return (np.random.default_rng(1).random((side,) * 3) < 0.05).astype(np.uint8)


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 6, size=(side,) * 3, dtype=np.uint8)


MASKS: dict[str, Callable[[int], np.ndarray]] = {"organs": organs, "speckles": speckles, "noise": noise}

if __name__ == "__main__":
    main()
