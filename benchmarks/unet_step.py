"""The U-Net on one rank, as volseg runs it and as plain torch modules: time of a forward and of a training step.

    python benchmarks/unet_step.py [--side 96] [--base-channels 16] [--levels 4] [--threads 2] [--repeats 5]

The two are the same module with the same weights; torch's is timed in contiguous and in channels-last memory and the
better of the two counts. Runs are interleaved; ratios (torch / volseg) are medians of the pairs.
"""

from __future__ import annotations

from volseg.machine import tune_allocator

tune_allocator()

import argparse  # noqa: E402
import copy  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from functools import partial  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from volseg.config import ModelConfig  # noqa: E402
from volseg.distributed.communicator import SerialCommunicator  # noqa: E402
from volseg.distributed.grid import ProcessGrid  # noqa: E402
from volseg.models.unet import UNet  # noqa: E402
from volseg.nn.convert import partition_module  # noqa: E402
from volseg.nn.losses import dice_cross_entropy  # noqa: E402

CLASSES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("side", 96), ("base-channels", 16), ("levels", 4), ("threads", 2), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    config = ModelConfig(in_channels=1, classes=CLASSES, base_channels=given.base_channels, levels=given.levels)
    plain = UNet(config)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last_3d)
    grid = ProcessGrid(SerialCommunicator(), (1, 1, 1))
    ours = partition_module(copy.deepcopy(plain), grid, multiple_of=config.multiple)
    x = torch.randn(1, 1, given.side, given.side, given.side)
    target = torch.randint(0, CLASSES, (1, given.side, given.side, given.side), dtype=torch.uint8)
    rivals = {"contiguous": (plain, x), "channels-last": (last, x.contiguous(memory_format=torch.channels_last_3d))}
    print(
        f"torch {torch.__version__}, {given.threads} threads, {given.side}^3, base {given.base_channels}, "
        f"levels {given.levels}"
    )
    print("| pass | torch contiguous s | torch channels-last s | volseg s | best torch / volseg |")
    print("|---|---|---|---|---|")
    for name, training in (("forward", False), ("training step", True)):
        times: dict[str, list[float]] = {key: [] for key in (*rivals, "volseg")}
        for turn in range(given.repeats + 1):
            for key, (model, image) in rivals.items():
                taken = timed(partial(plain_step, model, image, target, training))
                times[key] += [taken] * bool(turn)
            taken = timed(partial(our_step, ours, x, target, training))
            times["volseg"] += [taken] * bool(turn)
        ratio = statistics.median(
            min(times[key][n] for key in rivals) / times["volseg"][n] for n in range(given.repeats)
        )
        seconds = " | ".join(f"{statistics.median(times[key]):.2f}" for key in times)
        print(f"| {name} | {seconds} | {ratio:.2f} |", flush=True)


def timed(call: object) -> float:
    begin = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - begin


def plain_step(model: nn.Module, x: Tensor, target: Tensor, training: bool) -> None:
    """Forward, or forward, Dice + cross-entropy and backward, as one would write it with torch."""
    if not training:
        with torch.inference_mode():
            model(x)
        return
    logits = model(x)
    labels = target.long()
    p, t = logits.softmax(1), F.one_hot(labels, CLASSES).permute(0, 4, 1, 2, 3)
    dice = (2 * (p * t).sum((0, 2, 3, 4)) + 1e-5) / (p.sum((0, 2, 3, 4)) + t.sum((0, 2, 3, 4)) + 1e-5)
    (F.cross_entropy(logits, labels) + 1 - dice[1:].mean()).backward()
    model.zero_grad(set_to_none=True)


def our_step(model: nn.Module, x: Tensor, target: Tensor, training: bool) -> None:
    """The same with the partitioned twin."""
    if not training:
        with torch.inference_mode():
            model(x)
        return
    loss, _ = dice_cross_entropy(model(x), target, SerialCommunicator())
    loss.backward()
    model.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
