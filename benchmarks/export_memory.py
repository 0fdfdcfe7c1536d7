"""Peak memory and time of the way from features back to the mask on the scanner's grid, by number of classes.

    python benchmarks/export_memory.py [--model 128x128x128] [--native 192x256x256] [--classes 3,10,30,100]

Beside it the usual way: all logits as float32, `torch.nn.functional.interpolate` to the scanner's grid, arg-max. Each
figure comes from a process of its own; "above" is its peak over what it held before, the features included. The naive
way is left out where its two arrays of logits alone would take more than --limit GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from volseg.models.bringing_back import bring_back
from volseg.volumes.interpolation import AxisMap

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="128x128x128", help="voxels of the network's grid")
    parser.add_argument("--native", default="192x256x256", help="voxels of the mask")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--classes", default="3,10,30,100")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=8.0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given, *given.one.split(","))))
        return
    print(f"{given.model} features of {given.channels} channels to a mask of {given.native}, {given.threads} thread(s)")
    print("| classes | volseg s | volseg MiB above | naive s | naive MiB above | masks differ in voxels of a million |")
    print("|---|---|---|---|---|---|")
    for classes in given.classes.split(","):
        ours = fresh(classes, "volseg")
        logits = 4 * int(classes) * (np.prod(sides(given.native)) + np.prod(sides(given.model)))
        row = [classes, f"{ours['seconds']:.1f}", f"{ours['above'] / MIB:.0f}"]
        if logits > given.limit * 2**30:
            row += ["", f"over {logits / MIB:.0f}", ""]
        else:
            naive = fresh(classes, "naive")
            differ = np.mean([a != b for a, b in zip(ours["sample"], naive["sample"], strict=True)]) * 1e6
            row += [f"{naive['seconds']:.1f}", f"{naive['above'] / MIB:.0f}", f"{differ:.0f}"]
        print("| " + " | ".join(row) + " |", flush=True)


def sides(text: str) -> tuple[int, int, int]:
    d, h, w = map(int, text.split("x"))
    return d, h, w


def fresh(classes: str, way: str) -> dict[str, object]:
    """One measurement in a new process."""
    command = [sys.executable, *sys.argv, "--one", f"{classes},{way}"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout)


@torch.inference_mode()
def measure(given: argparse.Namespace, classes: str, way: str) -> dict[str, object]:
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model, native = sides(given.model), sides(given.native)
    # Smooth, as a network's features are; made channel by channel, so that the peak so far is little more than they.
    x = torch.empty(1, given.channels, *model, memory_format=torch.channels_last_3d)
    for channel in range(given.channels):
        coarse = torch.randn(1, 1, *(max(2, n // 8) for n in model))
        x[:, channel] = torch.nn.functional.interpolate(coarse, size=model, mode="trilinear")[:, 0]
    head = torch.nn.Conv3d(given.channels, int(classes), 1)
    maps = [
        AxisMap.of((n - 1) / 2 + (np.arange(m) - (m - 1) / 2) * n / m, n) for n, m in zip(model, native, strict=True)
    ]
    mask = np.empty(native, np.uint8)
    head(x[..., :2, :2, :2])  # oneDNN is there from now on
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    if way == "volseg":
        bring_back(x, head.weight, head.bias, maps, mask)
    else:
        logits = torch.nn.functional.interpolate(head(x), size=native, mode="trilinear", align_corners=False)
        mask[...] = logits[0].argmax(0).numpy()
    seconds = time.perf_counter() - began
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"seconds": seconds, "above": above, "sample": mask.reshape(-1)[::97].tolist()}


if __name__ == "__main__":
    main()
