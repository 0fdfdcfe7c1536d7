"""A training step of the U-Net on two ranks against one, and against two threads: time, memory, waiting.

    python benchmarks/unet_ranks.py [--sides 96,128] [--base-channels 16] [--levels 4] [--repeats 5]

One job of two ranks, each bound to a core. In each repeat, one after the other: both ranks with a thread each, rank 0
alone with one thread, rank 0 alone with two threads on both cores; meanwhile rank 1 sleeps. Each takes two steps and
the second counts, since cores that slept begin slowly. A step is forward, loss, backward and the sum of the gradients
over the ranks, and takes as long as the slower rank. Ratios are medians of the repeats' ratios. Memory is that of jobs
which do nothing else, above what they held before. Waiting is time in MPI calls that return later than the work beside
them, with a block of 128^3 for each rank: messages, and ranks that are late.
"""

from __future__ import annotations

from volseg.machine import prepare_for_torch

prepare_for_torch()

import argparse  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402

import torch  # noqa: E402
from mpi4py import MPI  # noqa: E402
from support.launch import mpirun  # noqa: E402
from support.timing import ratio, seconds  # noqa: E402
from support.unet import configuration, data, fused  # noqa: E402
from torch import Tensor  # noqa: E402

from volseg.config import ModelConfig  # noqa: E402
from volseg.distributed.communicator import Communicator, SerialCommunicator  # noqa: E402
from volseg.distributed.launch import connect  # noqa: E402
from volseg.distributed.placement import available_cores, place  # noqa: E402
from volseg.machine import peak_memory  # noqa: E402
from volseg.models.fused import FusedNetwork  # noqa: E402
from volseg.models.unet import UNet  # noqa: E402
from volseg.nn.blocks import take_block  # noqa: E402
from volseg.nn.gradients import sum_gradients  # noqa: E402

Sides = tuple[int, int, int]
DIMS = (2, 1, 1)
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default="96,128")
    for name, default in (("base-channels", 16), ("levels", 4), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--worker", choices=("time", "memory", "waiting"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    config, sides = configuration(given.base_channels, given.levels), [int(n) for n in given.sides.split(",")]
    if given.worker:
        work(given.worker, config, (sides[0],) * 3, given.repeats)
        return
    if len(available_cores()) < 2:
        raise SystemExit("two ranks need two cores")
    print(f"torch {torch.__version__}, base {given.base_channels}, levels {given.levels}, {given.repeats} repeats\n")
    print("| measure | side | value |")
    print("|---|---|---|", flush=True)
    for side in sides:
        print(launch("time", side, 2, given), flush=True)
        one, two = (float(launch("memory", side, ranks, given)) for ranks in (1, 2))
        print(
            f"| training peak a rank above the process, 2 ranks / 1 | {side} | "
            f"{two / one:.3f} ({two / MIB:.0f} / {one / MIB:.0f} MiB) |",
            flush=True,
        )
    print(launch("waiting", 128, 2, given))


def launch(what: str, side: int, ranks: int, given: argparse.Namespace) -> str:
    """Run this program as a job and return what it printed."""
    command = [*mpirun(ranks), sys.executable, __file__]
    command += ["--worker", what, "--sides", str(side), "--repeats", str(given.repeats)]
    command += ["--base-channels", str(given.base_channels), "--levels", str(given.levels)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, timeout=1800, check=True
    )
    return done.stdout.strip()


def work(what: str, config: ModelConfig, sides: Sides, repeats: int) -> None:
    """What a rank of a job does."""
    communicator, cores = connect(), available_cores()
    place(communicator)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = UNet(config)
    if what == "time":
        times(model, sides, repeats, communicator, cores)
    elif what == "memory":
        memory(model, sides, communicator)
    else:
        waiting(model, sides, repeats, communicator)


def step_of(model: UNet, sides: Sides, communicator: Communicator) -> Callable[[], None]:
    """A training step on this rank's block of a volume."""
    network = fused(model, communicator, DIMS if communicator.size > 1 else (1, 1, 1))
    layout = network.grid.layout(sides, network.config.multiple)
    x, target = data(sides)
    x, target = take_block(x, network.grid, layout), take_block(target.unsqueeze(1), network.grid, layout)[:, 0]

    def step() -> None:
        train_once(network, x, target, communicator)

    return step


def train_once(network: FusedNetwork, x: Tensor, target: Tensor, communicator: Communicator) -> None:
    network.train()
    network.loss(x, target)[0].backward()
    sum_gradients(network.parameters(), communicator)
    network.zero_grad(set_to_none=True)


def times(model: UNet, sides: Sides, repeats: int, communicator: Communicator, cores: tuple[int, ...]) -> None:
    """Steps on both ranks, on one, and on one with two threads, in turn."""
    own_core = available_cores()
    both = step_of(model, sides, communicator)
    alone = step_of(model, sides, SerialCommunicator()) if communicator.is_root else None
    taken: dict[str, list[float]] = {"both": [], "one": [], "threads": []}
    for turn in range(repeats + 1):
        communicator.barrier()
        found = {"both": max(communicator.gather_all(second_of_two(both, communicator)))}
        if alone is not None:
            found["one"] = second_of_two(alone)
            os.sched_setaffinity(0, cores)
            torch.set_num_threads(2)
            found["threads"] = second_of_two(alone)
            torch.set_num_threads(1)
            os.sched_setaffinity(0, own_core)
        sleep_until_all_are_here()
        for name, value in found.items():
            taken[name] += [value] * bool(turn)
    if communicator.is_root:
        one, two, threads = (statistics.median(taken[name]) for name in ("one", "both", "threads"))
        gain, against = ratio(taken["one"], taken["both"]), ratio(taken["both"], taken["threads"])
        print(f"| speed-up of 2 ranks x 1 thread over 1 x 1 | {sides[0]} | {gain:.2f} ({one:.2f} / {two:.2f} s) |")
        print(
            f"| time of 2 ranks x 1 thread / 1 rank x 2 threads | {sides[0]} | {against:.2f} "
            f"({two:.2f} / {threads:.2f} s) |"
        )


def second_of_two(step: Callable[[], None], communicator: Communicator | None = None) -> float:
    """Seconds of the second of two steps, begun together."""
    step()
    if communicator is not None:
        communicator.barrier()
    return seconds(step)


def sleep_until_all_are_here() -> None:
    """A barrier that leaves the core alone."""
    request = MPI.COMM_WORLD.Ibarrier()
    while not request.Test():
        time.sleep(0.002)


def memory(model: UNet, sides: Sides, communicator: Communicator) -> None:
    """Bytes that two steps need above what a step on a small volume left; the rank with most."""
    tiny = max(model.config.multiple)
    step_of(model, (2 * tiny, tiny, tiny), communicator)()
    before = peak_memory()
    step = step_of(model, sides, communicator)
    for _ in range(2):
        step()
    most = max(communicator.gather_all(peak_memory() - before))
    if communicator.is_root:
        print(most)


def waiting(model: UNet, sides: Sides, repeats: int, communicator: Communicator) -> None:
    """The share of a step that a rank waits, and what it sends, with a block of `sides` for each."""
    d, h, w = sides
    step = step_of(model, (d * communicator.size, h, w), communicator)
    step()
    shares, sent = [], 0.0
    for _ in range(repeats):
        communicator.barrier()
        communicator.meter.reset()
        taken = seconds(step)
        sent = sum(size for _, _, size in communicator.meter.by_layer().values())
        shares.append(statistics.fmean(communicator.gather_all(communicator.meter.total / taken)))
    if communicator.is_root:
        print(
            f"| waiting of a training step, mean of the ranks | {d} a rank | {statistics.median(shares):.1%} "
            f"({sent / MIB:.0f} MiB sent a rank and step) |"
        )


if __name__ == "__main__":
    main()
