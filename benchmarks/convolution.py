"""Convolution forward, input gradient and weight gradient: volseg's kernels against torch's own choice, by shape.

    python benchmarks/convolution.py [--repeats 7]

One thread; each row times the two in turn, and prints medians and their ratio (torch / volseg: above 1 is faster).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from support.timing import in_turn

from volseg.nn.kernels.convolution import convolve, transposed_convolve, weight_gradient

# (input channels, output channels, side of the output block): a 16-channel U-Net's levels and small blocks of them
SHAPES = [
    (1, 16, 64),
    (16, 16, 64),
    (32, 16, 64),
    (16, 16, 32),
    (16, 16, 16),
    (32, 32, 32),
    (64, 64, 16),
    (128, 128, 8),
]
ONE = (1, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, 1 thread, {repeats} repeats")
    print("| in | out | side | pass | torch ms | volseg ms | ratio | volseg GF/s |")
    print("|---|---|---|---|---|---|---|---|")
    for inputs, outputs, side in SHAPES:
        for name, plain, ours in passes(inputs, outputs, side):
            times = in_turn({"torch": plain, "volseg": ours}, repeats)
            a, b = statistics.median(times["torch"]), statistics.median(times["volseg"])
            flops = 2 * 27 * inputs * outputs * side**3
            print(
                f"| {inputs} | {outputs} | {side} | {name} | {a * 1e3:.2f} | {b * 1e3:.2f} | {a / b:.1f} | "
                f"{flops / b / 1e9:.0f} |",
                flush=True,
            )


def passes(inputs: int, outputs: int, side: int) -> list[tuple[str, Callable[[], object], Callable[[], object]]]:
    """The three passes of a 3x3x3 convolution as (name, torch's, volseg's)."""
    last = torch.channels_last_3d
    haloed = (side + 2, side + 2, side + 2)
    x = torch.randn(1, inputs, *haloed).contiguous(memory_format=last)
    weight = torch.randn(outputs, inputs, 3, 3, 3)
    grad = torch.randn(1, outputs, side, side, side).contiguous(memory_format=last)
    plain_x, plain_grad = x.contiguous(), grad.contiguous()
    backward = torch.ops.aten.convolution_backward
    settings = ([1] * 3, [0] * 3, [1] * 3, False, [0] * 3, 1)
    return [
        ("forward", lambda: F.conv3d(plain_x, weight), lambda: convolve(x, weight, None, ONE, ONE, 1)),
        (
            "input gradient",
            lambda: backward(plain_grad, plain_x, weight, None, *settings, [True, False, False]),
            lambda: transposed_convolve(grad, weight, ONE, ONE, 1, haloed),
        ),
        (
            "weight gradient",
            lambda: backward(plain_grad, plain_x, weight, None, *settings, [False, True, False]),
            lambda: weight_gradient(x, grad, weight, ONE, ONE, 1),
        ),
    ]


if __name__ == "__main__":
    main()
