"""The U-Net in one process against plain torch modules, SGEMM and OpenVINO: time of a forward and of a training step.

    python benchmarks/unet_step.py [--shapes 96,128] [--threads 1,2] [--base-channels 16] [--levels 4] [--repeats 5]
                                   [--network plain|residual|anisotropic|nnunet|nnunet-resenc|nnunet-anisotropic]
                                   [--precision float32|bfloat16]

A shape is the side of a cube, or D x H x W such as 40x320x320.

The plain network is the same module with the same weights, timed in contiguous and in channels-last memory; the better
of the two counts in each turn. Runs are interleaved and ratios are medians of the turns' ratios. Peak memory is that of
processes which do nothing else, above what they held before the first step. OpenVINO is compared where it is installed
(`pip install -c constraints.txt '.[bench]'`), in float32 and in the precision that it chooses by itself, which is
bfloat16 where the processor has tiles for it. GF/s count the operations of the direct sums. With ``--precision
bfloat16`` volseg stores tensors in bfloat16, and is compared with itself in float32 too.
"""

from __future__ import annotations

from volseg.machine import prepare_for_torch

prepare_for_torch()

import argparse  # noqa: E402
import copy  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from functools import partial  # noqa: E402
from importlib.util import find_spec  # noqa: E402
from math import prod  # noqa: E402

import torch  # noqa: E402
from support.timing import best, in_turn, ratio  # noqa: E402
from support.unet import (  # noqa: E402
    NETWORKS,
    data,
    forward_operations,
    fused,
    module_of,
    network_named,
    our_forward,
    our_step,
    plain_forward,
    plain_step,
    shape_of,
)
from torch import Tensor  # noqa: E402

from volseg.geometry import Triple, format_triple  # noqa: E402
from volseg.machine import peak_memory  # noqa: E402
from volseg.models.unet import UNet  # noqa: E402
from volseg.networks.description import Network  # noqa: E402
from volseg.nn.kernels import winograd  # noqa: E402
from volseg.nn.kernels.rows import Activation, Rows  # noqa: E402

SGEMM = 1536
SMALL = 32
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="96,128")
    parser.add_argument("--threads", default="1,2")
    for name, default in (("base-channels", 16), ("levels", 4), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--network", choices=NETWORKS, default="plain")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--peak", choices=("plain", "volseg"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    network = network_named(given.network, given.base_channels, given.levels)
    shapes = [shape_of(text) for text in given.shapes.split(",")]
    if given.peak:
        print(training_peak(network, shapes[0], given.peak, given.precision))
        return
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, base {given.base_channels}, "
        f"levels {given.levels}, {given.network}, volseg in {given.precision}, {given.repeats} repeats\n"
    )
    print("| measure | shape | threads | plain torch s | volseg s | value |")
    print("|---|---|---|---|---|---|")
    for count in map(int, given.threads.split(",")):
        torch.set_num_threads(count)
        for shape in shapes:
            compare(network, shape, count, given.repeats, given.precision)
            if given.precision != "float32":
                beside_float32(network, shape, count, given.repeats, given.precision)
        if given.network == "plain" and given.precision == "float32":
            small_layers(network, shapes[0][0], count, given.repeats)
            small_blocks(network, shapes[0], count, given.repeats)
        half_precision(network, shapes[0], count, given.repeats, given.precision)
        if find_spec("openvino") is not None:
            for hint in ("f32", None):
                openvino(network, shapes[0], count, given.repeats, given.precision, hint)
    for shape in shapes:
        peaks = [peak_of(name, shape, given) for name in ("plain", "volseg")]
        values = " | ".join(f"{peak / MIB:.0f} MiB, {peak / prod(shape):.0f} B/voxel" for peak in peaks)
        name = "training peak above the process, volseg / plain"
        print(f"| {name} | {format_triple(shape)} | 1 | {values} | {peaks[1] / peaks[0]:.3f} |")


def compare(network: Network, shape: Triple, threads: int, repeats: int, precision: str) -> None:
    """Forward and training step against plain torch, and the forward's rate against SGEMM's."""
    for name, times in beside_plain(network, shape, repeats, precision, bfloat16=False):
        plain_row(f"{name}, plain / volseg", shape, threads, times)
        if name == "forward":
            rates = [forward_operations(network, prod(shape)) / t / 1e9 for t in times["volseg"]]
            sgemm = [2 * SGEMM**3 / t / 1e9 for t in times["sgemm"]]
            value = f"{ratio(rates, sgemm):.2f} ({statistics.median(rates):.0f} / {statistics.median(sgemm):.0f} GF/s)"
            row("forward GF/s / SGEMM GF/s", shape, threads, None, times["volseg"], value)


def beside_float32(network: Network, shape: Triple, threads: int, repeats: int, precision: str) -> None:
    """Forward and training step against volseg's own in float32."""
    torch.manual_seed(0)
    model, sample = module_of(network), data(shape)
    twins = {"float32": fused(model), precision: fused(model, precision=precision)}
    for name, step in (("forward", our_forward), ("training step", our_step)):
        times = in_turn({key: partial(step, twin, *sample) for key, twin in twins.items()}, 2 * repeats)
        value = f"{ratio(times['float32'], times[precision]):.2f}"
        row(f"{name}, volseg float32 / {precision}", shape, threads, times["float32"], times[precision], value)


def beside_plain(
    network: Network, shape: Triple, repeats: int, precision: str, *, bfloat16: bool
) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Times of forward and training step: plain torch in both memory formats, SGEMM, volseg.

    bfloat16  plain torch runs under autocast
    """
    torch.manual_seed(0)
    plain, (x, target) = module_of(network), data(shape)
    last, ours = copy.deepcopy(plain).to(memory_format=torch.channels_last_3d), fused(plain, precision=precision)
    x_last = x.contiguous(memory_format=torch.channels_last_3d)
    a, b = torch.randn(2, SGEMM, SGEMM)

    def theirs(step: Callable[..., None], model: UNet, image: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            step(model, image, target)

    for name, step, own in (("forward", plain_forward, our_forward), ("training step", plain_step, our_step)):
        calls: dict[str, Callable[[], object]] = {
            "contiguous": partial(theirs, step, plain, x),
            "last": partial(theirs, step, last, x_last),
            "sgemm": partial(torch.mm, a, b),
            "volseg": partial(own, ours, x, target),
        }
        yield name, in_turn(calls, repeats)


def plain_row(name: str, shape: Triple, threads: int, times: dict[str, list[float]]) -> None:
    """The better of plain torch's memory formats over volseg."""
    theirs, ours = best(times["contiguous"], times["last"]), times["volseg"]
    row(name, shape, threads, theirs, ours, f"{ratio(theirs, ours):.2f}")


def small_layers(network: Network, side: int, threads: int, repeats: int) -> None:
    """GF/s of one convolution of the finest level on a small block against those on a large one."""
    width = network.widths[0]
    weight = torch.randn(width, width, 3, 3, 3)

    def step(sides: int, backward: bool) -> Callable[[], object]:
        x, out, given = (Rows.of(torch.randn(sides, sides, sides, width)) for _ in range(3))

        def forward() -> None:
            winograd.forward([Activation(x)], winograd.pack_weight(weight, [width]), None, out)

        def gradients() -> None:
            turned = winograd.pack_turned_weight(weight, [width])
            sums = winograd.WeightSums(weight, [width], sides**3)
            winograd.backward([Activation(x)], given, turned, [winograd.Target(out)], sums)
            sums.finish()

        return gradients if backward else forward

    for backward in (False, True):
        times = in_turn({"small": step(SMALL, backward), "large": step(side, backward)}, 5 * repeats)
        value = (SMALL / side) ** 3 * ratio(times["large"], times["small"])
        name = f"one convolution {'backward' if backward else 'forward'}, GF/s at {SMALL}^3 / at {side}^3"
        row(name, (side, side, side), threads, None, times["small"], f"{value:.2f}")


def half_precision(network: Network, shape: Triple, threads: int, repeats: int, precision: str) -> None:
    """torch's bfloat16 against volseg."""
    for name, times in beside_plain(network, shape, repeats, precision, bfloat16=True):
        plain_row(f"{name}, plain in bfloat16 / volseg in {precision}", shape, threads, times)


def small_blocks(network: Network, shape: Triple, threads: int, repeats: int) -> None:
    """GF/s of a small volume against those of a large one."""
    torch.manual_seed(0)
    model = module_of(network)
    small, large = fused(model), fused(model)
    for name, step in (("forward", our_forward), ("training step", our_step)):
        times = in_turn(
            {
                "small": partial(step, small, *data((SMALL, SMALL, SMALL))),
                "large": partial(step, large, *data(shape)),
            },
            3 * repeats,
        )
        factor = forward_operations(network, SMALL**3) / forward_operations(network, prod(shape))
        value = factor * ratio(times["large"], times["small"])
        row(
            f"{name}, GF/s at {SMALL}^3 / at {format_triple(shape)}",
            shape,
            threads,
            None,
            times["small"],
            f"{value:.2f}",
        )


def openvino(network: Network, shape: Triple, threads: int, repeats: int, precision: str, hint: str | None) -> None:
    """Forward against OpenVINO on the same weights.

    hint  OpenVINO's name of the precision in which it computes; None: as it chooses
    """
    import openvino as ov

    torch.manual_seed(0)
    model, (x, target) = module_of(network).eval(), data(shape)
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    settings |= {} if hint is None else {"INFERENCE_PRECISION_HINT": hint}
    compiled = ov.Core().compile_model(ov.convert_model(model, example_input=x), "CPU", settings)
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    array, ours = x.numpy(), fused(model, precision=precision)
    theirs = torch.from_numpy(compiled(array)[0])
    with torch.inference_mode():
        difference = float((ours.eval()(x) - theirs).abs().max() / theirs.abs().max())
    times = in_turn({"openvino": lambda: compiled(array), "volseg": partial(our_forward, ours, x, target)}, 2 * repeats)
    value = f"{ratio(times['volseg'], times['openvino']):.2f} (logits differ by {difference:.0e} of the largest)"
    name = f"forward, volseg in {precision} / OpenVINO in {chosen}"
    row(name, shape, threads, times["openvino"], times["volseg"], value)


def row(name: str, shape: Triple, threads: int, theirs: list[float] | None, ours: list[float], value: str) -> None:
    seconds = ["-" if times is None else f"{statistics.median(times):.3f}" for times in (theirs, ours)]
    print(f"| {name} | {format_triple(shape)} | {threads} | {' | '.join(seconds)} | {value} |", flush=True)


def peak_of(name: str, shape: Triple, given: argparse.Namespace) -> int:
    """Bytes above the process that two training steps need, measured in a process of their own."""
    command = [sys.executable, __file__, "--peak", name, "--shapes", format_triple(shape)]
    command += ["--base-channels", str(given.base_channels), "--levels", str(given.levels), "--network", given.network]
    command += ["--precision", given.precision]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def training_peak(network: Network, shape: Triple, name: str, precision: str) -> int:
    """Bytes above what this process holds after a step on a tiny volume, model and image included."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = module_of(network)
    step = partial(plain_step, model) if name == "plain" else partial(our_step, fused(model, precision=precision))
    tiny = 2 * max(network.multiple)
    step(*data((tiny, tiny, tiny)))
    before = peak_memory()
    x, target = data(shape)
    for _ in range(2):
        step(x, target)
    return peak_memory() - before


if __name__ == "__main__":
    main()
