"""Programs on a GPU against plain torch with cuDNN: agreement, time, memory, the largest volume, whole commands.

    python benchmarks/gpu.py [--device cuda|cpu] [--minutes 8] [--shapes 128,192,256] [--channels 16,32] [--levels 4]
                             [--repeats 3] [--large 512] [--parts tests,agreement,speed,commands,largest,compiled]

Each part is a process of its own with a share of the time, is ended where that is over, and fails alone; what was left
out for want of time is said. The tables are markdown, for RESULTS.md as they are printed. ``--device cpu`` runs the
same by torch's operators on the processor, where there is no allocator to ask for peaks: sizes must be small there,
such as ``--shapes 32 --channels 8 --levels 2 --large 48``.

Plain torch is the same network with the same weights, contiguous and channels-last, in bfloat16 by autocast, with
cuDNN's search for the fastest algorithm and without TF32, which volseg does not use for float32 either. The better
layout counts in each turn; runs are interleaved and ratios are medians of the turns' ratios. ``compiled`` is
`torch.compile` of the channels-last network at the smallest shape. Peaks are those of the allocator in a first call,
with weights, image and what a backend keeps for later calls.
"""

from __future__ import annotations

from volseg.machine import prepare_for_torch

prepare_for_torch()

import argparse  # noqa: E402
import copy  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import signal  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial  # noqa: E402
from math import prod  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from support.launch import mpirun, volseg  # noqa: E402
from support.timing import best, in_turn, ratio, seconds  # noqa: E402
from support.unet import (  # noqa: E402
    data,
    fused,
    module_of,
    network_named,
    our_forward,
    our_step,
    plain_forward,
    plain_step,
    shape_of,
)
from torch import Tensor, nn  # noqa: E402

from volseg.geometry import Triple, format_triple  # noqa: E402
from volseg.models.unet import UNet  # noqa: E402
from volseg.nn.fused.backend import BACKEND  # noqa: E402

TESTS = (
    "tests/nn/test_torch_ops.py",
    "tests/models/test_torch_backend.py",
    "tests/distributed/test_ghost_exchange.py",
    "tests/distributed/test_devices.py",
)
SHARES = {"tests": 0.15, "agreement": 0.1, "speed": 0.3, "commands": 0.25, "largest": 0.12, "compiled": 0.08}
"""Of the time, which each part may use; what it leaves goes to the parts behind it."""

PRECISIONS = ("float32", "bfloat16")
SMALL = 64  # voxels of a side where results are compared
# Differences of float32 from float64, relative, that no order of sums explains. Of gradients plain torch has up to 6e-3
# at the smallest sizes, by leaky ReLUs.
WRONG_LOGITS, WRONG_GRADIENTS = 1e-4, 5e-2
OF_MEMORY = 0.92  # of a GPU's free memory the largest volume is tried with
GIB = 2**30

Call = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda by default; without one nothing is measured")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--shapes", default="128,192,256")
    parser.add_argument("--channels", default="16,32")
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large", default="512")
    parser.add_argument("--parts", default=",".join(SHARES))
    parser.add_argument("--part", choices=tuple(SHARES), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        lacking = "torch sees no GPU here: give --device cpu and small sizes, or see docs/gpu.md"
        if options.device:
            raise SystemExit(lacking)
        print(f"left out: {lacking}")  # among all benchmarks
        return
    options.device = options.device or "cuda"
    if options.device == "cpu":
        os.environ[BACKEND] = "torch"
    if options.part:
        PARTS[options.part](options)
        return
    where = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    print(f"{where}, torch {torch.__version__}, CUDA {torch.version.cuda}, {options.levels} halvings", flush=True)
    all_parts(options)


def all_parts(options: argparse.Namespace) -> None:
    """Run each part in a process, with its share of what is left of the time."""
    end, waiting = time.time() + 60 * options.minutes, [name for name in SHARES if name in options.parts.split(",")]
    failed = []
    while waiting:
        shares = sum(SHARES[name] for name in waiting)
        name = waiting.pop(0)
        room = (end - time.time()) * SHARES[name] / shares
        print(f"\n## {name}, at most {room:.0f} s\n", flush=True)
        begun = time.time()
        outcome = in_time([sys.executable, __file__, *sys.argv[1:], "--part", name, "--until", str(begun + room)], room)
        print(f"\n{name}: {outcome}, {time.time() - begun:.0f} s", flush=True)
        failed += [name] if outcome.startswith("failed") else []
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def in_time(command: list[str], limit: float) -> str:
    """Run a command and all that it starts for so many seconds at most, and say how it ended."""
    job = subprocess.Popen(command, start_new_session=True)
    try:
        code = job.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        return "out of time, the rest was left out"
    return "done" if code == 0 else f"failed with exit code {code}"


def tests(options: argparse.Namespace) -> None:
    """The tests of the backend, on one rank; they run on the processor."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "tests/run_suite.py", "--ranks", "1", *TESTS]
    raise SystemExit(subprocess.run(command, cwd=root, check=False).returncode)


def agreement(options: argparse.Namespace) -> None:
    """Logits and gradients on the device against plain torch in float64 on the processor, twice for the same bits.

    Gradients are of a random direction of the logits, and their difference is a ratio of norms: where the argument of
    a leaky ReLU falls on the other side of zero, single values differ by much.
    """
    side = min(SMALL, *(max(shape_of(shape)) for shape in options.shapes.split(",")))
    network = network_named("plain", numbers(options.channels)[0], options.levels)
    torch.manual_seed(0)
    model, x = module_of(network), data((side, side, side))[0]
    direction = torch.randn(1, network.classes, side, side, side)
    logits, gradients = outcome(copy.deepcopy(model).double(), x.double(), direction.double())
    print("| precision | logits | gradients of weights | voxels whose class differs | bits of a second run |")
    print("|---|---|---|---|---|")
    wrong = False
    for precision in PRECISIONS:
        ours = fused(model.to(options.device), precision=precision)
        first, second = (outcome(ours, x.to(options.device), direction.to(options.device)) for _ in range(2))
        same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        far = float((first[0] - logits).abs().max() / logits.abs().max())
        steep = float((first[1] - gradients).norm() / gradients.norm())
        classes = f"{int((first[0].argmax(1) != logits.argmax(1)).sum())} of {side**3}"
        bits = "the same" if same else "DIFFERENT"
        print(f"| {precision} | {far:.1e} | {steep:.1e} | {classes} | {bits} |", flush=True)
        wrong |= not same or (precision == "float32" and (far > WRONG_LOGITS or steep > WRONG_GRADIENTS))
    if wrong:
        raise SystemExit("the results on this device are not what they should be")


def outcome(model: nn.Module, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and all gradients of weights in a row, of `direction` upstream; on the host in float64."""
    logits = model.train()(x)
    model.zero_grad(set_to_none=True)
    logits.backward(direction)
    gradients = [p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None]
    return logits.detach().double().cpu(), torch.cat(gradients)


def speed(options: argparse.Namespace) -> None:
    """Forward and step of both, for each shape, number of channels and precision."""
    print("| | shape | channels | precision | plain s | volseg s | plain / volseg | plain B/voxel | volseg B/voxel |")
    print("|---|---|---|---|---|---|---|---|---|")
    for text in options.shapes.split(","):
        for channels in numbers(options.channels):
            for precision in PRECISIONS:
                if time.time() > options.until - 10:
                    print(f"| left out for want of time | {text} | {channels} | {precision} | | | | | |", flush=True)
                    continue
                compare(options, shape_of(text), channels, precision, ("contiguous", "channels last"))


def compiled(options: argparse.Namespace) -> None:
    """The same with `torch.compile`, which needs a compiler of C++ or Triton and may take long."""
    print("| | shape | channels | precision | plain s | volseg s | plain / volseg | plain B/voxel | volseg B/voxel |")
    print("|---|---|---|---|---|---|---|---|---|")
    shape = min((shape_of(text) for text in options.shapes.split(",")), key=prod)
    for precision in reversed(PRECISIONS):
        compare(options, shape, numbers(options.channels)[0], precision, ("compiled",))


def compare(
    options: argparse.Namespace, shape: Triple, channels: int, precision: str, layouts: tuple[str, ...]
) -> None:
    """Print a row for the forward and for the step."""
    model = module_of(network_named("plain", channels, options.levels))
    for name in ("forward", "step"):
        calls: dict[str, Call] = {}
        peaks: dict[str, str] = {}
        for way in (*layouts, "volseg"):
            made = partial(call_of, name, way, model, shape, precision, options.device)
            peaks[way] = peak_of(made, shape, options.device)
            if peaks[way] != "out of memory":
                calls[way] = made()
        try:
            times = in_turn(calls, options.repeats)
        except torch.OutOfMemoryError:  # each alone had room
            times = {}
        plain = [times[way] for way in layouts if way in times]
        if not plain or "volseg" not in times:
            middle = ["-", "-", "-"]
        else:
            theirs = best(*plain)
            middle = [f"{statistics.median(theirs):.4f}", f"{statistics.median(times['volseg']):.4f}"]
            middle += [f"{ratio(theirs, times['volseg']):.2f}"]
        ends = [" / ".join(peaks[way] for way in layouts), peaks["volseg"]]
        facts = [name, format_triple(shape), str(channels), precision, *middle, *ends]
        print(f"| {' | '.join(facts)} |", flush=True)
        del calls
        clean(options.device)


def call_of(name: str, way: str, model: UNet, shape: Triple, precision: str, device: str) -> Call:
    """A forward or step of one way, with a model and an image of its own on the device, that waits for its end."""
    x, target = (tensor.to(device) for tensor in data(shape))
    own = copy.deepcopy(model).to(device)
    if way == "volseg":
        ours = fused(own, precision=precision)
        return partial(finished, partial(our_forward if name == "forward" else our_step, ours, x, target), device)
    if way != "contiguous":
        own = own.to(memory_format=torch.channels_last_3d)
        x = x.to(memory_format=torch.channels_last_3d)
    own = own.eval() if name == "forward" else own.train()
    module = torch.compile(own) if way == "compiled" else own
    step = partial(plain_forward if name == "forward" else plain_step, module)
    return partial(finished, partial(plainly, step, x, target, precision == "bfloat16", device), device)


def plainly(step: Callable[[Tensor, Tensor], object], x: Tensor, target: Tensor, half: bool, device: str) -> None:
    """A call of plain torch with its best settings of the same precision."""
    with (
        torch.autocast(device, torch.bfloat16, enabled=half),
        torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False),
    ):
        step(x, target)


def finished(call: Call, device: str) -> None:
    """A call, and the device's work behind it."""
    call()
    if device == "cuda":
        torch.cuda.synchronize()


def peak_of(make: Callable[[], Call], shape: Triple, device: str) -> str:
    """Bytes a voxel of a first call, model and image included; "-" where no allocator says so, or out of memory."""
    if device != "cuda":
        return "-"
    try:
        return f"{peak_bytes(make) / prod(shape):.1f}"
    except torch.OutOfMemoryError:
        return "out of memory"
    finally:
        clean(device)


def peak_bytes(make: Callable[[], Call]) -> int:
    """The most that tensors of this process have on its GPU during a first call, above what they had before."""
    clean("cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    make()()
    return torch.cuda.max_memory_allocated() - before


def clean(device: str) -> None:
    """Give back what nothing refers to."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def largest(options: argparse.Namespace) -> None:
    """The largest cube of which a step and a forward run, begun where the peaks of two small ones point."""
    if options.device != "cuda":
        print("left out: a processor's memory is not for a benchmark to fill; `volseg plan-partition` plans for it")
        return
    free, _ = torch.cuda.mem_get_info()
    print(f"{free / GIB:.1f} GiB free\n\n| | channels | precision | largest cube | s | bytes a voxel |")
    print("|---|---|---|---|---|---|")
    channels, precision = numbers(options.channels)[-1], "bfloat16"
    model = module_of(network_named("plain", channels, options.levels))
    multiple = 2**options.levels
    for name in ("step", "forward"):
        sides = [8 * multiple, 12 * multiple]
        peaks = [peak_bytes(partial(call_of, name, "volseg", model, (s, s, s), precision, "cuda")) for s in sides]
        side = largest_side(sides, peaks, OF_MEMORY * free, multiple)
        while time.time() < options.until - 5:
            made = partial(call_of, name, "volseg", model, (side, side, side), precision, "cuda")
            try:
                begun = time.perf_counter()
                peak = peak_bytes(made)
            except torch.OutOfMemoryError:
                side -= multiple
                continue
            taken = time.perf_counter() - begun
            print(f"| {name} | {channels} | {precision} | {side} | {taken:.1f} | {peak / side**3:.1f} |", flush=True)
            break
        else:
            print(f"| {name} | {channels} | {precision} | left out for want of time, below {side} | | |", flush=True)


def largest_side(sides: list[int], peaks: list[int], limit: float, multiple: int) -> int:
    """The largest multiple whose cube fits into `limit` bytes, where peaks are a constant and so much a voxel."""
    (small, large), (few, more) = sides, peaks
    slope = (more - few) / (large**3 - small**3)
    rest = few - slope * small**3
    return max(multiple, int(((limit - rest) / slope) ** (1 / 3)) // multiple * multiple)


def commands(options: argparse.Namespace) -> None:
    """Train on small volumes, compare 2 and 4 ranks with one, and segment a large volume from file to file."""
    where, side = ["--device", options.device], min(SMALL, *shape_of(options.large))
    size = ["--base-channels", numbers(options.channels)[0], "--levels", options.levels]
    with tempfile.TemporaryDirectory(prefix="volseg-gpu-") as name:
        folder = Path(name)
        volseg(folder, "generate", "small", "--shape", format_triple((side, side, side)), "--cases", 2)
        train = partial(volseg, folder, "train", "small", "-o", "run", "--epochs", 2, *size, *where)
        print(f"train, 2 epochs of {side}^3: {seconds(train):.1f} s", flush=True)
        scan = sorted((folder / "small" / "imagesTr").iterdir())[0]
        for ranks in (2, 4):
            command = [*mpirun(ranks), sys.executable, "-m", "volseg", "verify-partition", str(scan), "--model", "run"]
            done = subprocess.run([*command, *where], cwd=folder, capture_output=True, text=True, check=False)
            print(f"{ranks} ranks: exit code {done.returncode}: {(done.stdout + done.stderr).strip()}", flush=True)
        shape = format_triple(shape_of(options.large))
        volseg(folder, "generate", "large", "--shape", shape, "--cases", 1, "--format", "zarr")
        scan = next((folder / "large" / "imagesTr").iterdir())
        arguments = ["segment", scan, "-o", "mask.nii.gz", "--model", "run", "--report", "report.json", *where]
        taken = seconds(partial(volseg, folder, *arguments))
        report = json.loads((folder / "report.json").read_text())
        print(f"segment {shape}, from file to file: {taken:.1f} s, of which the network {report['seconds']:.1f} s")
        print(f"devices: {json.dumps(report['devices'])}")


def numbers(text: str) -> list[int]:
    """Of a list with commas."""
    return [int(number) for number in text.split(",")]


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "tests": tests, "agreement": agreement, "speed": speed, "commands": commands, "largest": largest,
    "compiled": compiled,
}  # fmt: skip

if __name__ == "__main__":
    main()
