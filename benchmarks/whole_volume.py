"""A whole volume through the U-Net: volseg's schedules, the same network in plain torch, and MONAI's sliding window.

    python benchmarks/whole_volume.py [--shape 256] [--threads 2] [--repeats 3] [--windows 96,128]
                                      [--network plain|residual|anisotropic|nnunet|nnunet-resenc|nnunet-anisotropic]
                                      [--base-channels 16] [--levels 4] [--precision float32|bfloat16]

The shape is the side of a cube, or D x H x W such as 40x320x320.

Same weights, one process a run, in turn. Peaks are above the process after a first run of a small volume. MONAI is
compared where it is installed.
"""

from __future__ import annotations

from volseg.machine import prepare_for_torch

prepare_for_torch()

import argparse  # noqa: E402
import hashlib  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from math import prod  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from support.unet import NETWORKS, fused, module_of, network_named, shape_of  # noqa: E402
from torch import Tensor  # noqa: E402

from volseg.geometry import Triple, format_triple  # noqa: E402
from volseg.machine import peak_memory  # noqa: E402
from volseg.models.unet import UNet  # noqa: E402
from volseg.nn.fused.scratch import ScratchStore  # noqa: E402
from volseg.nn.kernels.jit import workers  # noqa: E402
from volseg.partition.layout import Layout  # noqa: E402
from volseg.program.schedule import Schedule, schedules_of  # noqa: E402

MIB = 2**20
SMALL = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="256")
    parser.add_argument("--network", choices=NETWORKS, default="plain")
    parser.add_argument("--base-channels", type=int, default=16)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--windows", default="96,128")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--classes", type=int, default=3)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run(given.one, given)))
        return
    peers = ["torch, contiguous", "torch, channels last"]
    if importlib.util.find_spec("monai"):
        peers += [f"MONAI {window}" for window in given.windows.split(",")]
    shape = shape_of(given.shape)
    print(
        f"{format_triple(shape)} voxels, {given.network}, base {given.base_channels}, levels {given.levels}, "
        f"{given.precision}, {given.threads} threads, {given.repeats} repeats\n"
    )
    print("| way | s | million voxels/s | times in-place | MiB above the process | B/voxel | mask |")
    print("|---|---|---|---|---|---|---|")
    model = network_named(given.network, given.base_channels, given.levels, given.classes)
    names = [*(str(schedule) for schedule in schedules_of(model)), *peers]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(given.repeats):
        for name in names:
            found[name].append(in_a_process(name, given, given.classes))
    for name in names:
        row(name, prod(shape), found[name], found["in-place"])
    print("\n| classes | s | MiB above the process, in-place |")
    print("|---|---|---|")
    for classes in (2, 10, 100):
        one = in_a_process("in-place", given, classes)
        print(f"| {classes} | {one['seconds']:.1f} | {one['peak'] / MIB:.0f} |", flush=True)


def row(name: str, voxels: int, runs: list[dict[str, float]], reference: list[dict[str, float]]) -> None:
    seconds = statistics.median(one["seconds"] for one in runs)
    peak = statistics.median(one["peak"] for one in runs)
    times = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(runs, reference, strict=True))
    same = "same bytes" if runs[0]["mask"] == reference[0]["mask"] else "other bytes"
    print(
        f"| {name} | {seconds:.2f} | {voxels / seconds / 1e6:.2f} | {times:.2f} | {peak / MIB:.0f} | "
        f"{peak / voxels:.1f} | {same} |",
        flush=True,
    )


def in_a_process(name: str, given: argparse.Namespace, classes: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", name, "--shape", given.shape, "--network", given.network]
    command += ["--threads", str(given.threads), "--classes", str(classes)]
    command += ["--base-channels", str(given.base_channels), "--levels", str(given.levels)]
    command += ["--precision", given.precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(name: str, given: argparse.Namespace) -> dict[str, object]:
    """One way, once on a small volume and once on the large one."""
    shape = shape_of(given.shape)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = module_of(network_named(given.network, given.base_channels, given.levels, given.classes)).eval()
    segment = peer(model, name) if name.startswith(("torch", "MONAI")) else ours(model, name, given.precision)
    with torch.inference_mode():
        segment((SMALL, SMALL, SMALL))
        workers.release()
        before, begin = peak_memory(), time.perf_counter()
        mask = segment(shape)
        seconds = time.perf_counter() - begin
    digest = hashlib.sha256(mask.numpy().tobytes()).hexdigest()
    return {"seconds": seconds, "peak": peak_memory() - before, "mask": digest}


def ours(model: UNet, schedule: str, precision: str) -> Callable[[Triple], Tensor]:
    """volseg, by a schedule."""
    network = fused(model, precision=precision).eval()
    folder = tempfile.TemporaryDirectory(prefix="volseg-scratch-", dir=Path.cwd())

    def segment(shape: Triple) -> Tensor:
        layout = Layout.even(shape, (1, 1, 1), model.network.multiple)
        store = ScratchStore(Path(folder.name)) if schedule == "spill" else None
        mask = torch.empty(shape, dtype=torch.uint8)
        for first, logits in network.streamed(Schedule(schedule), store).logit_slabs(Slices(shape), layout):
            mask[first : first + logits.shape[2]] = logits[0].argmax(0)
        return mask

    return segment


class Slices:
    """An image made plane by plane, as a file would give it: no part of it is held."""

    channels = 1

    def __init__(self, shape: Triple) -> None:
        self.shape = shape

    def planes(self, wanted: tuple[int, int], width: int) -> Tensor:
        """Planes of the image, [D, H, W, 1]."""
        return torch.stack([plane_of(z, self.shape) for z in range(*wanted)]).unsqueeze(3)

    def settled(self) -> None:
        """Nothing can go wrong."""

    def close(self) -> None:
        """Nothing is held."""


def plane_of(z: int, shape: Triple) -> Tensor:
    """Random values that depend on the plane's number."""
    return torch.randn(shape[1:], generator=torch.Generator().manual_seed(z))


def peer(model: UNet, name: str) -> Callable[[Triple], Tensor]:
    """The module itself, or MONAI's windows of it."""
    last = name != "torch, contiguous"
    form = torch.channels_last_3d if last else torch.contiguous_format
    model = model.to(memory_format=form)

    def segment(shape: Triple) -> Tensor:
        x = torch.stack([plane_of(z, shape) for z in range(shape[0])])[None, None].contiguous(memory_format=form)
        if name.startswith("MONAI"):
            from monai.inferers import sliding_window_inference

            side = int(name.split()[1])
            logits = sliding_window_inference(x, tuple(min(n, side) for n in shape), 1, model, overlap=0.5)
        else:
            logits = model(x)
        return logits.argmax(1)[0].to(torch.uint8)

    return segment


if __name__ == "__main__":
    main()
