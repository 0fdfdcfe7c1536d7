"""Predicted and measured peak memory per rank: the real program, training and segmenting, on several rank counts.

    python benchmarks/memory_plan.py [--side 160] [--ranks 1,2,4] [--base-channels 16] [--levels 3]

Each row runs `volseg train` (2 steps on one case) or `volseg segment` under mpirun and reads its report. Ranks beyond
the cores show memory, not speed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from support.launch import volseg

GIB = 2**30
SCHEDULES = ("in-place", "recompute", "spill")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--base-channels", type=int, default=16)
    parser.add_argument("--levels", type=int, default=3)
    given = parser.parse_args()
    side = f"{given.side}x{given.side}x{given.side}"
    print(f"{side} voxels, base {given.base_channels}, levels {given.levels}")
    print("| task | ranks | measured GiB a rank | planned GiB | planned / measured |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="volseg-memory-") as name:
        folder = Path(name)
        volseg(folder, "generate", "data", "--shape", side, "--cases", "1", threads=1)
        size = ["--base-channels", str(given.base_channels), "--levels", str(given.levels)]
        for ranks in map(int, given.ranks.split(",")):
            volseg(folder, "train", "data", "-o", f"run{ranks}", "--epochs", "2", *size, ranks=ranks, threads=1)
            memory = json.loads((folder / f"run{ranks}" / "report.json").read_text())["memory"]
            row("train", ranks, memory["peak_bytes_by_rank"], memory["planned_bytes"])
        scan = next((folder / "data" / "imagesTr").iterdir())
        for schedule in SCHEDULES:
            for ranks in map(int, given.ranks.split(",")):
                segment(folder, scan, schedule, ranks)


def segment(folder: Path, scan: Path, schedule: str, ranks: int) -> None:
    report = folder / f"{schedule}{ranks}.json"
    options = ["--model", f"run{ranks}", "--schedule", schedule, "--report", str(report), "--overwrite"]
    volseg(folder, "segment", scan, "-o", "mask.nii.gz", *options, ranks=ranks, threads=1)
    found = json.loads(report.read_text())
    row(f"segment, {schedule}", ranks, found["peak_bytes_by_rank"], found["planned_bytes"])


def row(task: str, ranks: int, peaks: list[int], planned: int) -> None:
    measured = ", ".join(f"{p / GIB:.2f}" for p in peaks)
    print(f"| {task} | {ranks} | {measured} | {planned / GIB:.2f} | {planned / max(peaks):.2f} |", flush=True)


if __name__ == "__main__":
    main()
