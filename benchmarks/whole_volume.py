"""A whole volume through the U-Net: volseg's schedules, the same network in plain torch, and MONAI's sliding window.

    python benchmarks/whole_volume.py [--side 256] [--threads 2] [--repeats 3] [--windows 96,128]

Same weights, one process a run, in turn. Peaks are above the process after a first run of a small volume. MONAI is
compared where it is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MIB = 2**20
SMALL = 32
SCHEDULES = ("in-place", "recompute", "spill")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--windows", default="96,128")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--classes", type=int, default=3)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run(given.one, given.side, given.threads, given.classes)))
        return
    peers = ["torch, contiguous", "torch, channels last"]
    if importlib.util.find_spec("monai"):
        peers += [f"MONAI {window}" for window in given.windows.split(",")]
    print(f"{given.side}^3 voxels, base 16, levels 4, {given.threads} threads, {given.repeats} repeats\n")
    print("| way | s | million voxels/s | times in-place | MiB above the process | B/voxel | mask |")
    print("|---|---|---|---|---|---|---|")
    names = [*SCHEDULES, *peers]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(given.repeats):
        for name in names:
            found[name].append(in_a_process(name, given.side, given.threads, given.classes))
    for name in names:
        row(name, given.side, found[name], found["in-place"])
    print("\n| classes | s | MiB above the process, in-place |")
    print("|---|---|---|")
    for classes in (2, 10, 100):
        one = in_a_process("in-place", given.side, given.threads, classes)
        print(f"| {classes} | {one['seconds']:.1f} | {one['peak'] / MIB:.0f} |", flush=True)


def row(name: str, side: int, runs: list[dict[str, float]], reference: list[dict[str, float]]) -> None:
    seconds = statistics.median(one["seconds"] for one in runs)
    peak = statistics.median(one["peak"] for one in runs)
    times = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(runs, reference, strict=True))
    same = "same bytes" if runs[0]["mask"] == reference[0]["mask"] else "other bytes"
    print(
        f"| {name} | {seconds:.2f} | {side**3 / seconds / 1e6:.2f} | {times:.2f} | {peak / MIB:.0f} | "
        f"{peak / side**3:.1f} | {same} |",
        flush=True,
    )


def in_a_process(name: str, side: int, threads: int, classes: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", name, "--side", str(side), "--threads", str(threads)]
    done = subprocess.run([*command, "--classes", str(classes)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(name: str, side: int, threads: int, classes: int) -> dict[str, object]:
    """One way, once on a small volume and once on the large one."""
    from volseg.machine import peak_memory, prepare_for_torch

    prepare_for_torch()
    import torch

    from volseg.config import ModelConfig
    from volseg.models.unet import UNet
    from volseg.nn.kernels.jit import workers

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = UNet(ModelConfig(in_channels=1, classes=classes, base_channels=16, levels=4)).eval()
    segment = ours(model, name) if name in SCHEDULES else peer(model, name)
    with torch.inference_mode():
        segment(SMALL)
        workers.release()
        before, begin = peak_memory(), time.perf_counter()
        mask = segment(side)
        seconds = time.perf_counter() - begin
    digest = hashlib.sha256(mask.numpy().tobytes()).hexdigest()
    return {"seconds": seconds, "peak": peak_memory() - before, "mask": digest}


def ours(model, schedule: str) -> Callable:
    import torch
    from support.unet import fused

    from volseg.nn.fused.scratch import ScratchStore
    from volseg.partition.layout import Layout
    from volseg.program.schedule import Schedule

    network = fused(model).eval()
    folder = tempfile.TemporaryDirectory(prefix="volseg-scratch-", dir=Path.cwd())

    def segment(side: int):
        layout = Layout.even((side, side, side), (1, 1, 1), model.config.multiple)
        store = ScratchStore(Path(folder.name)) if schedule == "spill" else None
        mask = torch.empty(side, side, side, dtype=torch.uint8)
        for first, logits in network.streamed(Schedule(schedule), store).logit_slabs(Slices(side), layout):
            mask[first : first + logits.shape[2]] = logits[0].argmax(0)
        return mask

    return segment


class Slices:
    """An image made plane by plane, as a file would give it: no part of it is held."""

    channels = 1

    def __init__(self, side: int) -> None:
        self.side = side

    def planes(self, wanted: tuple[int, int], width: int):
        import torch

        return torch.stack([plane_of(z, self.side) for z in range(*wanted)]).unsqueeze(3)

    def settled(self) -> None:
        """Nothing can go wrong."""

    def close(self) -> None:
        """Nothing is held."""


def plane_of(z: int, side: int):
    import torch

    return torch.randn(side, side, generator=torch.Generator().manual_seed(z))


def peer(model, name: str) -> Callable:
    import torch

    last = name != "torch, contiguous"
    form = torch.channels_last_3d if last else torch.contiguous_format
    model = model.to(memory_format=form)

    def segment(side: int):
        x = torch.stack([plane_of(z, side) for z in range(side)])[None, None].contiguous(memory_format=form)
        if name.startswith("MONAI"):
            from monai.inferers import sliding_window_inference

            window = min(side, int(name.split()[1]))
            logits = sliding_window_inference(x, (window,) * 3, 1, model, overlap=0.5)
        else:
            logits = model(x)
        return logits.argmax(1)[0].to(torch.uint8)

    return segment


if __name__ == "__main__":
    main()
