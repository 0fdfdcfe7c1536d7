"""`volseg segment` as a user runs it, on large int16 volumes and within memory limits: time, peak, plan.

    python benchmarks/segment_program.py [--cases 512:13GiB,512:4GiB] [--ranks 1] [--folder .]

Each case is the side of a cube, and a memory limit or a schedule. Masks of one volume are compared. Volumes are made
block by block; --folder is where they, and what spills, lie.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
from support.launch import volseg

from volseg.distributed.communicator import SerialCommunicator
from volseg.geometry import Box
from volseg.volumes.reading import open_volume
from volseg.volumes.writing import write_volume

GIB = 2**30
SCHEDULES = ("in-place", "recompute", "spill")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="512:13GiB,512:4GiB")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="volseg-program-", dir=given.folder) as name:
        folder = Path(name)
        train(folder)
        print(f"base 16, levels 4, int16 .nii, {given.ranks} rank(s)\n")
        print("| voxels | asked for | schedule | s | million voxels/s | peak GiB a rank | planned / peak | mask |")
        print("|---|---|---|---|---|---|---|---|")
        for case in given.cases.split(","):
            side, _, asked = case.partition(":")
            row(folder, int(side), asked, given.ranks)


def row(folder: Path, side: int, asked: str, ranks: int) -> None:
    scan = folder / f"{side}.nii"
    if not scan.exists():
        make(folder, side, scan)
    option = "--schedule" if asked in SCHEDULES else "--memory-limit"
    mask, report = folder / "mask.nii", folder / "report.json"
    volseg(
        folder, *("segment", scan, "-o", mask, "--model", "run", option, asked, "--report", report, "--overwrite"),
        ranks=ranks,
    )  # fmt: skip
    found = json.loads(report.read_text())
    peak, seconds = max(found["peak_bytes_by_rank"]), found["seconds"]
    with mask.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    print(
        f"| {side}^3 | {asked} | {found['schedule']} | {seconds:.0f} | {side**3 / seconds / 1e6:.2f} | "
        f"{peak / GIB:.2f} | {found['planned_bytes'] / peak:.2f} | {digest} |",
        flush=True,
    )


def train(folder: Path) -> None:
    """A model of a CT, whatever it has learned."""
    volseg(folder, "generate", "data", "--shape", "64x64x64", "--cases", "2")
    description = folder / "data" / "dataset.json"
    content = json.loads(description.read_text())
    content["channel_names"] = {"0": "CT"}
    description.write_text(json.dumps(content))
    size = ["--base-channels", "16", "--levels", "4", "--epochs", "1"]
    volseg(folder, "train", "data", "-o", "run", *size)


def make(folder: Path, side: int, path: Path) -> None:
    volseg(folder, "generate", str(side), "--shape", f"{side}x{side}x{side}", "--cases", "1", "--format", "zarr")
    source = open_volume(next((folder / str(side) / "imagesTr").iterdir()))

    def produce(units):
        box: Box = units[0].box
        return (source.read(box) * 100).astype(np.int16)

    write_volume(path, source.space, np.int16, produce, SerialCommunicator())


if __name__ == "__main__":
    main()
