"""Convolution forward and backward: volseg's kernels against torch's own, by kernel, stride and channels.

    python benchmarks/convolution.py [--repeats 7] [--threads 1] [--kernels 3x3x3/2,1x3x3]

Torch's own is the faster of `F.conv3d` (or its gradients) on contiguous and on channels-last memory. Each row times all
in turn, and prints medians and their ratio (torch / volseg: above 1 is faster). With one thread the times are those
that the processor spent, which other work on the machine disturbs less. `backward` is both gradients together, as
training takes them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from support.timing import ratio

from volseg.geometry import Triple
from volseg.nn.kernels import block_convolution
from volseg.nn.kernels.rows import Activation, Rows

KERNELS: dict[str, tuple[Triple, Triple]] = {
    "3x3x3": ((3, 3, 3), (1, 1, 1)),
    "1x3x3": ((1, 3, 3), (1, 1, 1)),
    "3x3x3/2": ((3, 3, 3), (2, 2, 2)),
    "3x3x3/1x2x2": ((3, 3, 3), (1, 2, 2)),
    "1x3x3/1x2x2": ((1, 3, 3), (1, 2, 2)),
    "1x1x1": ((1, 1, 1), (1, 1, 1)),
    "1x1x1/2": ((1, 1, 1), (2, 2, 2)),
    "3x1x1": ((3, 1, 1), (1, 1, 1)),
    "5x5x5": ((5, 5, 5), (1, 1, 1)),
    "7x7x7": ((7, 7, 7), (1, 1, 1)),
}
SIDES = {16: 64, 32: 40, 64: 32, 128: 16}
"""Of the input, by its channels."""

LONG_KERNEL_SIDES = {16: 32, 32: 24, 64: 16, 128: 16}
"""The same for 5x5x5 and 7x7x7."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernels", type=lambda names: names.split(","), default=list(KERNELS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {options.threads} threads")
    print("| kernel/stride | channels | side | pass | torch ms | volseg ms | ratio | volseg GF/s |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.kernels:
        kernel, stride = KERNELS[name]
        for channels, side in (LONG_KERNEL_SIDES if kernel[2] > 3 else SIDES).items():
            case = Case(kernel, stride, channels, side)
            for what, torch_own, ours, operations in case.passes():
                times = processor_seconds([*torch_own, ours], options.repeats, options.threads)
                best = min(times[:-1], key=statistics.median)
                own, taken = statistics.median(best), statistics.median(times[-1])
                print(
                    f"| {name} | {channels} | {side} | {what} | {own * 1e3:.2f} | {taken * 1e3:.2f} | "
                    f"{ratio(best, times[-1]):.2f} | {operations / taken / 1e9:.0f} |",
                    flush=True,
                )


def processor_seconds(calls: list[Callable[[], object]], repeats: int, threads: int) -> list[list[float]]:
    """Seconds of each call, in turn after one turn that does not count; of one thread those that it ran."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, own in zip(calls, times, strict=True):
            begin = clock()
            call()
            if turn:
                own.append(clock() - begin)
    return times


Pass = tuple[str, list[Callable[[], object]], Callable[[], object], float]


class Case:
    """A convolution of as many channels to as many, padded by half its kernel."""

    def __init__(self, kernel: Triple, stride: Triple, channels: int, side: int) -> None:
        self.kernel, self.stride, self.channels, self.sides = kernel, stride, channels, (side,) * 3
        self.outputs = [-(-side // s) for s in stride]
        self.weight = torch.randn(channels, channels, *kernel)
        self.x, self.gradient = torch.randn(*self.sides, channels), torch.randn(*self.outputs, channels)
        first, second = (t.permute(3, 0, 1, 2).unsqueeze(0) for t in (self.x, self.gradient))
        self.layouts = [(first.contiguous(), second.contiguous()), (first, second)]
        self.out, self.target = (
            Rows.of(torch.empty(*self.outputs, channels)),
            Rows.of(torch.empty(*self.sides, channels)),
        )

    def passes(self) -> list[Pass]:
        """(name, torch's two, volseg's, floating-point operations) of forward and backward."""
        weight, stride, sources = self.weight, self.stride, [self.channels]
        packed = block_convolution.pack_weight(weight, sources, stride)
        turned = block_convolution.pack_turned_weight(weight, sources, stride)
        input_, gradient = Activation(Rows.of(self.x)), Rows.of(self.gradient)
        padding = [k // 2 for k in self.kernel]
        operations = 2.0 * self.weight.numel() * self.outputs[0] * self.outputs[1] * self.outputs[2]

        def backward() -> object:
            into = block_convolution.weight_sums(weight, sources, self.gradient.numel() // self.channels, stride)
            block_convolution.backward([input_], gradient, turned, [block_convolution.Target(self.target)], into)
            return into.finish()

        def torch_backward(x: torch.Tensor, y: torch.Tensor) -> object:
            settings = (stride, padding, [1] * 3, False, [0] * 3, 1, [True, True, False])
            return torch.ops.aten.convolution_backward(y, x, weight, None, *settings)

        return [
            (
                "forward",
                [lambda x=x: F.conv3d(x, weight, None, stride, padding) for x, _ in self.layouts],
                lambda: block_convolution.forward([input_], packed, None, self.out),
                operations,
            ),
            (
                "backward",
                [lambda x=x, y=y: torch_backward(x, y) for x, y in self.layouts],
                backward,
                2 * operations,
            ),
        ]


if __name__ == "__main__":
    main()
