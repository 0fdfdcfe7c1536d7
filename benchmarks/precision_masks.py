"""One scan segmented in float32 and in bfloat16 with the weights of one run: how much of the mask is the same?

    python benchmarks/precision_masks.py --model RUN --scan FILE [--labels FILE] [--ranks 1,2]
                                         [--schedules in-place,recompute,spill] [--small 32]

In each precision the scan is segmented by each schedule and on each number of ranks by a `volseg segment` of its own,
each rank with one thread. The table says for each: the share of all voxels, and of those that are not background in the
first row, whose label is that of the first row; the mean Dice against --labels; processor seconds of the command; and
the peak of a rank, above what it is by the first schedule on the scan's middle of --small voxels a side, by the rank's
share of the voxels that the network sees. Exit status 1 where a precision has two different masks.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path

import nibabel as nib
import numpy as np
from support.launch import volseg
from support.timing import processor_seconds

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Mask:
    """A mask's labels, processor seconds of the command, the largest rank's peak in bytes, voxels seen."""

    labels: np.ndarray
    seconds: float
    peak: int
    seen: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.labels.tobytes()).hexdigest()[:8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--schedules", default="in-place,recompute,spill")
    parser.add_argument("--small", type=int, default=32)
    asked = parser.parse_args()
    if not (asked.model and asked.scan):
        print("nothing to measure: --model names a run folder, --scan a scan")
        return
    model, scan = asked.model.resolve(), asked.scan.resolve()
    ranks_asked = [int(ranks) for ranks in asked.ranks.split(",")]
    reference, different = None, False
    print("| precision | schedule | ranks | mask | same | same of foreground | Dice | processor s | bytes a voxel |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="volseg-masks-") as name:
        folder = Path(name)
        small = middle_of(scan, asked.small, folder / "small.nii.gz")
        for precision in PRECISIONS:
            masks, before = set(), {}
            for schedule, ranks in itertools.product(asked.schedules.split(","), ranks_asked):
                options = ("--model", model, "--precision", precision, "--schedule", schedule)
                mask = segmented(folder, scan, ranks, options)
                reference = reference or mask
                dice = f"{dice_of(folder / f'mask-{scan.name}', asked.labels):.4f}" if asked.labels else ""
                if ranks not in before:
                    before[ranks] = segmented(folder, small, ranks, options).peak
                above = (mask.peak - before[ranks]) * ranks / mask.seen
                equal = mask.labels == reference.labels
                shares = f"{equal.mean():.5%} | {equal[reference.labels > 0].mean():.4%}"
                row = f"{precision} | {schedule} | {ranks} | {mask.digest} | {shares} | {dice}"
                print(f"| {row} | {mask.seconds:.1f} | {above:.1f} |", flush=True)
                masks.add(mask.digest)
            different |= len(masks) > 1
    raise SystemExit(1 if different else 0)


def middle_of(scan: Path, side: int, path: Path) -> Path:
    """Write the middle of a scan, so many voxels a side or all that there are."""
    image = nib.load(scan)
    cut = tuple(slice(max(0, (n - side) // 2), (n + side) // 2) for n in image.shape)
    nib.save(image.slicer[cut], path)
    return path


def segmented(folder: Path, scan: Path, ranks: int, options: tuple[object, ...]) -> Mask:
    """Segment a scan by one command; its mask stays in the folder under the scan's name."""
    mask, report = folder / f"mask-{scan.name}", folder / "report.json"
    command = ("segment", scan, "-o", mask, *options, "--report", report, "--overwrite")
    before = processor_seconds()
    volseg(folder, *command, ranks=ranks, threads=1)
    spent = processor_seconds() - before
    facts = json.loads(report.read_text())
    labels = np.asarray(nib.load(mask).dataobj)
    return Mask(labels, spent, max(facts["peak_bytes_by_rank"]), prod(facts["seen_shape"] or facts["shape"]))


def dice_of(mask: Path, labels: Path) -> float:
    """Mean Dice of a mask over the labels of a file, by `volseg evaluate`."""
    command = (sys.executable, "-m", "volseg", "evaluate", mask, labels, "--json", "-q")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return statistics.fmean(label["Dice"] for label in json.loads(done.stdout)["mean"].values())


if __name__ == "__main__":
    main()
