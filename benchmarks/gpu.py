"""A GPU within a limit of time: speed and memory against plain torch, the largest volumes, a scan, several ranks.

    python benchmarks/gpu.py [--device auto] [--minutes 8] [--sides 128,192,256] [--channels 16,32] [--levels 4]
                             [--precisions float32,bfloat16] [--scan 512] [--parts tests,speed,largest,scan,ranks]

Each part has a share of the time, and what does not fit is said. Times are medians of runs that take turns with plain
torch's; plain torch is the same module in channels-last memory, with autocast in bfloat16, and compiled
(`torch.compile`) where that works: the best of its settings counts. Memory is the most that tensors had at a time, in
bytes a voxel. On a processor (`--device cpu --sides 32 --scan 64 --minutes 2`) everything runs through the same code
with torch's operators (VOLSEG_BACKEND=torch), to see that it works.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from support.launch import mpirun, volseg
from support.unet import data, fused, module_of, network_named, our_forward, our_step, plain_forward, plain_step

from volseg.distributed.communicator import SerialCommunicator
from volseg.distributed.devices import choose_device
from volseg.geometry import format_triple

SHARES = {"tests": 0.15, "speed": 0.4, "largest": 0.2, "scan": 0.15, "ranks": 0.1}
REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = ("tests/nn/test_torch_ops.py", "tests/distributed/test_ghost_exchange.py", "tests/distributed/test_devices.py")
RUNS = 5

Run = Callable[[], None]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--sides", default="128,192,256")
    parser.add_argument("--channels", default="16,32")
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--scan", type=int, default=512)
    parser.add_argument("--parts", default=",".join(SHARES))
    options = parser.parse_args()
    device = torch.device(choose_device(options.device, SerialCommunicator()).name)
    if device.type == "cpu":
        os.environ["VOLSEG_BACKEND"] = "torch"
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor, by torch's operators"
    print(f"{named}; torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    parts = {"tests": tests, "speed": speed, "largest": largest, "scan": scan, "ranks": ranks}
    for name in options.parts.split(","):
        print(f"\n## {name}", flush=True)
        begin = time.monotonic()
        parts[name](options, device, begin + 60 * options.minutes * SHARES[name])
        print(f"({time.monotonic() - begin:.0f} s)", flush=True)
    return 0


def tests(options: argparse.Namespace, device: torch.device, deadline: float) -> None:
    """Those of the backend and of what brings faces to MPI."""
    there = [path for path in TESTS if (REPOSITORY / path).exists()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", *there]
    try:
        run = subprocess.run(
            command, cwd=REPOSITORY, timeout=max(1.0, deadline - time.monotonic()), capture_output=True, text=True
        )
        print(run.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        print("not done in its share of the time")


def speed(options: argparse.Namespace, device: torch.device, deadline: float) -> None:
    """Forward and step of cubes, ours and plain torch's, in turns."""
    print(
        "| side | channels | precision | what | plain s | volseg s | plain / volseg | plain B/voxel | volseg B/voxel |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for side in map(int, options.sides.split(",")):
        for channels in map(int, options.channels.split(",")):
            for precision in options.precisions.split(","):
                for what in ("forward", "step"):
                    if time.monotonic() > deadline:
                        print(f"left out for want of time: from {side}³, {channels} channels, {precision}, {what} on")
                        return
                    _row(options.levels, device, side, channels, precision, what)


def _row(levels: int, device: torch.device, side: int, channels: int, precision: str, what: str) -> None:
    ours, plain = _runs(levels, device, side, channels, precision, what)
    seconds: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for turn in range(RUNS + 1):  # the first is not counted: memory is taken, algorithms are chosen, modules compiled
        for name, run in {"volseg": ours, **plain}.items():
            if name in memory and memory[name] < 0:
                continue
            try:
                taken, peak = _measured(run, device)
            except (torch.OutOfMemoryError, RuntimeError, ImportError) as error:  # torch.compile may lack a compiler
                memory[name] = -1
                if name == "volseg":
                    print(f"volseg: {str(error).splitlines()[0]}")
                continue
            if turn:
                seconds.setdefault(name, []).append(taken)
            memory[name] = max(memory.get(name, 0.0), peak)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min((name for name in medians if name != "volseg"), key=lambda name: medians[name], default=None)
    least = min((memory[name] for name in plain if memory.get(name, -1) > 0), default=float("nan")) / side**3
    mine = medians.get("volseg", float("nan"))
    theirs = medians[best] if best else float("nan")
    print(
        f"| {side} | {channels} | {precision} | {what} | {theirs:.4f} ({best or 'out of memory'}) | {mine:.4f} | "
        f"{theirs / mine:.2f} | {least:.0f} | {memory.get('volseg', float('nan')) / side**3:.0f} |",
        flush=True,
    )


def _runs(
    levels: int, device: torch.device, side: int, channels: int, precision: str, what: str
) -> tuple[Run, dict[str, Run]]:
    model = module_of(network_named("plain", channels, levels)).to(device)
    x, target = (tensor.to(device) for tensor in data((side, side, side)))
    twin = fused(model, precision=precision)
    of_ours, of_plain = (our_forward, plain_forward) if what == "forward" else (our_step, plain_step)
    last = model.to(memory_format=torch.channels_last_3d)
    image = x.contiguous(memory_format=torch.channels_last_3d)

    def cast() -> object:
        return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()

    def plain(module: torch.nn.Module) -> Run:
        def run() -> None:
            with cast():  # type: ignore[attr-defined]
                of_plain(module, image, target)

        return run

    plains = {"eager": plain(last)}
    if device.type == "cuda":
        plains["compiled"] = plain(torch.compile(last))
    return lambda: of_ours(twin, x, target), plains


def _measured(run: Run, device: torch.device) -> tuple[float, float]:
    """Seconds, and bytes of tensors above what was there."""
    if device.type != "cuda":
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin, float("nan")
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begin, torch.cuda.max_memory_allocated(device) - before


def largest(options: argparse.Namespace, device: torch.device, deadline: float) -> None:
    """The largest cube that trains and that segments, in bfloat16: by halves between one that does and one not."""
    if device.type != "cuda":
        print("only on a GPU: a processor's limit is that of the machine")
        return
    for what in ("step", "forward"):
        fits, too_large = 0, 96
        while time.monotonic() < deadline and (too_large == 0 or too_large - fits > 32):
            side = (fits + too_large) // 32 * 16 if too_large else 2 * fits
            try:
                _measured(_runs(options.levels, device, side, 32, "bfloat16", what)[0], device)
                fits, too_large = side, too_large if too_large > side else 0
            except torch.OutOfMemoryError:
                too_large = side
            torch.cuda.empty_cache()
        print(f"{what}: {fits}³ fits with 32 channels" + (f", {too_large}³ does not" if too_large else ""))


@contextmanager
def _small_run(options: argparse.Namespace, device: torch.device, side: int) -> Iterator[tuple[Path, Path, Path]]:
    """A folder, a scan of `side`³ voxels in it, and a model that was trained for an epoch."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        volseg(folder, "generate", "data", "--shape", format_triple((side, side, side)), "--cases", 1)
        volseg(folder, "generate", "small", "--shape", "64x64x64", "--cases", 1)
        volseg(folder, "train", "small", "-o", "run", "--epochs", 1, "--validation", 0, "--device", device)
        yield folder, next((folder / "data").rglob("*_0000.nii.gz")), folder / "run"


def scan(options: argparse.Namespace, device: torch.device, deadline: float) -> None:
    """`volseg segment` from file to file."""
    with _small_run(options, device, options.scan) as (folder, image, model):
        for precision in options.precisions.split(","):
            begin = time.monotonic()
            where = ("--model", model, "--device", device, "--precision", precision)
            volseg(folder, "segment", image, "-o", f"{precision}.nii.gz", *where)
            print(f"{options.scan}³, 16 channels, {precision}: {time.monotonic() - begin:.1f} s", flush=True)


def ranks(options: argparse.Namespace, device: torch.device, deadline: float) -> None:
    """2 and 4 ranks on one device: how far logits are from those of one rank."""
    with _small_run(options, device, 64) as (folder, image, model):
        for count in (2, 4):
            command = ["verify-partition", str(image), "--model", str(model), "--device", str(device)]
            run = subprocess.run(
                [*mpirun(count), sys.executable, "-m", "volseg", *command], cwd=folder, capture_output=True, text=True,
                timeout=300, check=False,
            )  # fmt: skip
            print((run.stdout + run.stderr).strip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
