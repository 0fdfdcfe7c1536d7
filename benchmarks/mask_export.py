"""Writing one volume on all ranks against one: the same bytes, level and voxels, and nibabel's own save beside them.

    python benchmarks/mask_export.py [--ranks 2] [--shapes 256x256x256,300x512x512] [--repeats 9]

Every rank holds its block of the volume, as after segmenting, and `write_volume` moves blocks to the units of the
file. The one-rank write runs in the same job while the other ranks sleep; runs are interleaved, figures are medians,
and the ratio is the median of the pairs' ratios. The mask is of ellipsoids, the CT has them in a body, with noise.
"the machine" is what the cores gave at that time to plain zlib on all ranks against one, nothing shared: the limit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel as nib
import numpy as np
from mpi4py import MPI
from nibabel.openers import Opener
from support.launch import mpirun
from support.timing import seconds

from volseg.distributed.communicator import Communicator, MpiCommunicator, SerialCommunicator
from volseg.distributed.launchers import under_launcher
from volseg.distributed.redistribute import redistribute
from volseg.geometry import Box, Triple
from volseg.volumes.nifti.output import COMPRESSION_LEVEL
from volseg.volumes.output import Unit
from volseg.volumes.volume import Space
from volseg.volumes.writing import write_volume


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="256x256x256,300x512x512")
    parser.add_argument("--ranks", type=int, default=2, help="started under mpirun unless this is under one already")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: the temporary folder")
    given = parser.parse_args()
    if given.ranks > 1 and not under_launcher():
        command = [*mpirun(given.ranks), sys.executable, *sys.argv]
        raise SystemExit(subprocess.run(command, check=False).returncode)
    everyone = MpiCommunicator(MPI.COMM_WORLD)
    say(everyone, f"{everyone.size} ranks, level {COMPRESSION_LEVEL}, {given.repeats} repeats")
    say(everyone, "| voxels | file | MB | nibabel s | 1 rank s | all ranks s | 1 rank / all | the machine |")
    say(everyone, "|---|---|---|---|---|---|---|---|")
    for text in given.shapes.split(","):
        d, h, w = map(int, text.split("x"))
        with tempfile.TemporaryDirectory(prefix="volseg-export-", dir=given.folder) as name:
            folder = Path(everyone.broadcast(name))
            for kind, suffix in (("mask", ".nii.gz"), ("CT", ".nii.gz"), ("mask", ".nii"), ("mask", ".zarr")):
                measure((d, h, w), kind, folder / f"volume{suffix}", given.repeats, everyone)
            everyone.barrier()


def measure(shape: Triple, kind: str, path: Path, repeats: int, everyone: Communicator) -> None:
    """One row of the table."""
    side = -(-shape[0] // everyone.size)
    blocks = [Box((r * side, 0, 0), (min(shape[0], (r + 1) * side), *shape[1:])) for r in range(everyone.size)]
    block = render(shape, kind, blocks[everyone.rank])
    whole = render(shape, kind, Box.whole(shape)) if everyone.is_root else block
    alone, together, peer, machine = [], [], [], []
    for _ in range(repeats):
        quietly_wait()
        if everyone.is_root:
            alone.append(seconds(lambda: write(path, shape, whole, [Box.whole(shape)], SerialCommunicator())))
            first = path.read_bytes() if path.is_file() else b""
            if path.name.endswith(".gz"):
                peer.append(seconds(lambda: save_with_nibabel(path.with_name("peer.nii.gz"), whole)))
        quietly_wait()
        together.append(seconds(lambda: write(path, shape, block, blocks, everyone)))
        machine.append(cores(everyone))
        if everyone.is_root and path.is_file() and path.read_bytes() != first:
            raise SystemExit(f"{path.name}: other bytes on {everyone.size} ranks than on one")
    if everyone.is_root:
        size = sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())
        theirs = f"{median(peer):.2f}" if peer else "-"
        ratio = median(a / t for a, t in zip(alone, together, strict=True))
        name = f"{kind}{path.name.removeprefix('volume')}"
        times = f"{theirs} | {median(alone):.2f} | {median(together):.2f} | {ratio:.2f} | {median(machine):.2f}"
        print(f"| {'x'.join(map(str, shape))} | {name} | {size / 1e6:.1f} | {times} |", flush=True)
    everyone.barrier()


def write(path: Path, shape: Triple, block: np.ndarray, blocks: list[Box], communicator: Communicator) -> None:
    def produce(units: list[Unit | None]) -> np.ndarray | None:
        wanted = [None if unit is None else unit.box for unit in units]
        return redistribute(block, blocks, wanted, communicator)

    space = Space(shape, np.diag([0.8, 0.8, 1.5, 1.0]))
    write_volume(path, space, block.dtype, produce, communicator, overwrite=True, produce_communicates=True)


def cores(everyone: Communicator) -> float:
    """How many times the work of one rank all ranks do in the same time, compressing each for itself."""
    text = np.random.default_rng(1).normal(0, 20, 2_000_000).astype(np.int16).tobytes()
    quietly_wait()
    one = seconds(lambda: zlib.compress(text, COMPRESSION_LEVEL)) if everyone.is_root else 0.0
    quietly_wait()
    everyone.barrier()
    slowest: float = max(everyone.gather_all(seconds(lambda: zlib.compress(text, COMPRESSION_LEVEL))))
    return everyone.size * one / slowest


def save_with_nibabel(path: Path, voxels: np.ndarray) -> None:
    """nibabel's own save of the same voxels at the same level, flushed to disk too."""
    Opener.default_compresslevel = COMPRESSION_LEVEL
    nib.save(nib.Nifti1Image(voxels.T, np.eye(4)), path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def render(shape: Triple, kind: str, box: Box) -> np.ndarray:
    """The voxels of `box` of a volume of ten organs in a body: labels, or HU with noise of 20."""
    rng = np.random.default_rng(7)
    axes = np.ogrid[box.slices]
    unit = [axis / side for axis, side in zip(axes, shape, strict=True)]
    mask = np.zeros(box.shape, np.uint8)
    for label in range(1, 11):
        centre, radius = rng.uniform(0.3, 0.7, 3), rng.uniform(0.05, 0.18, 3)
        mask[sum(((u - c) / r) ** 2 for u, c, r in zip(unit, centre, radius, strict=True)) <= 1] = label
    if kind == "mask":
        return mask
    body = ((unit[1] - 0.5) / 0.35) ** 2 + ((unit[2] - 0.5) / 0.45) ** 2 <= 1
    values = np.empty(box.shape, np.int16)
    for d in range(box.shape[0]):
        noise = np.random.default_rng(box.start[0] + d).normal(0, 20, box.shape[1:])
        values[d] = np.where(body[0], 20 + 15 * mask[d] + noise, -1000 + noise / 4)
    return values


def quietly_wait() -> None:
    """A barrier that leaves the waiting ranks' cores to the others."""
    request = MPI.COMM_WORLD.Ibarrier()
    while not request.Test():
        time.sleep(0.01)


def say(communicator: Communicator, line: str) -> None:
    if communicator.is_root:
        print(line, flush=True)


if __name__ == "__main__":
    main()
