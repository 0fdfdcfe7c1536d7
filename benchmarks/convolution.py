"""Convolution forward and backward: volseg's kernels against torch's own, by kernel, stride and channels.

    python benchmarks/convolution.py [--repeats 7] [--threads 1] [--kernels 3x3x3/2,1x3x3] [--precision bfloat16]

Torch's own is the faster of `F.conv3d` (or its gradients) on contiguous and on channels-last memory. Each row times all
in turn, and prints medians and their ratio (torch / volseg: above 1 is faster). With one thread the times are those
that the processor spent, which other work on the machine disturbs less. `backward` is both gradients together, as
training takes them. With `--precision bfloat16` torch and volseg have tensors of bfloat16, and volseg's own float32 is
timed beside them, whose ratio stands in a further column.
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
from volseg.nn.kernels import amx, block_convolution
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
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {options.threads} threads")
    half = options.precision == "bfloat16"
    if half and not amx.available():
        print(f"bfloat16 by conversion to float32 and back: {amx.refusal()}")
    more = " float32 / bfloat16 |" if half else ""
    print(f"| kernel/stride | channels | side | pass | torch ms | volseg ms | ratio | volseg GF/s |{more}")
    print("|---|---|---|---|---|---|---|---|" + "---|" * half)
    for name in options.kernels:
        kernel, stride = KERNELS[name]
        for channels, side in (LONG_KERNEL_SIDES if kernel[2] > 3 else SIDES).items():
            dtypes = [torch.bfloat16, torch.float32] if half else [torch.float32]
            passes = [Case(kernel, stride, channels, side, dtype).passes() for dtype in dtypes]
            for (what, torch_own, ours, operations), *others in zip(*passes, strict=True):
                exact = [our_own for _, _, our_own, _ in others]
                times = processor_seconds([*torch_own, ours, *exact], options.repeats, options.threads)
                best, our_times = min(times[:2], key=statistics.median), times[2]
                own, taken = statistics.median(best), statistics.median(our_times)
                print(
                    f"| {name} | {channels} | {side} | {what} | {own * 1e3:.2f} | {taken * 1e3:.2f} | "
                    f"{ratio(best, our_times):.2f} | {operations / taken / 1e9:.0f} |"
                    + "".join(f" {ratio(slower, our_times):.2f} |" for slower in times[3:]),
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
    """A convolution of as many channels to as many, padded by half its kernel; all tensors are of one type."""

    def __init__(self, kernel: Triple, stride: Triple, channels: int, side: int, dtype: torch.dtype) -> None:
        self.kernel, self.stride, self.channels, self.sides = kernel, stride, channels, (side,) * 3
        self.outputs = [-(-side // s) for s in stride]
        self.weight = torch.randn(channels, channels, *kernel)
        self.x, self.gradient = (torch.randn(*n, channels).to(dtype) for n in (self.sides, self.outputs))
        first, second = (t.permute(3, 0, 1, 2).unsqueeze(0) for t in (self.x, self.gradient))
        self.layouts = [(first.contiguous(), second.contiguous()), (first, second)]
        self.out, self.target = (
            Rows.of(torch.empty(*self.outputs, channels, dtype=dtype)),
            Rows.of(torch.empty(*self.sides, channels, dtype=dtype)),
        )

    def passes(self) -> list[Pass]:
        """(name, torch's two, volseg's, floating-point operations) of forward and backward."""
        weight, stride, sources = self.weight, self.stride, [self.channels]
        dtype = self.x.dtype
        packed = block_convolution.pack_weight(weight, sources, stride, dtype)
        turned = block_convolution.pack_turned_weight(weight, sources, stride, dtype)
        input_, gradient = Activation(Rows.of(self.x)), Rows.of(self.gradient)
        padding = [k // 2 for k in self.kernel]
        same = weight.to(dtype)
        operations = 2.0 * self.weight.numel() * self.outputs[0] * self.outputs[1] * self.outputs[2]

        def backward() -> object:
            voxels = self.gradient.numel() // self.channels
            into = block_convolution.weight_sums(weight, sources, voxels, stride, stored=dtype)
            block_convolution.backward([input_], gradient, turned, [block_convolution.Target(self.target)], into)
            return into.finish()

        def torch_backward(x: torch.Tensor, y: torch.Tensor) -> object:
            settings = (stride, padding, [1] * 3, False, [0] * 3, 1, [True, True, False])
            return torch.ops.aten.convolution_backward(y, x, same, None, *settings)

        return [
            (
                "forward",
                [lambda x=x: F.conv3d(x, same, None, stride, padding) for x, _ in self.layouts],
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
