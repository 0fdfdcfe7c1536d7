"""Whole volume against sliding window: the same weights, Dice on ellipsoids that span the windows' borders.

    python benchmarks/sliding_window_accuracy.py [--side 160] [--train-side 96] [--epochs 16] [--windows 64,96]

Trains one network on whole volumes with `volseg train`, then lets it segment larger ones whole and by MONAI's sliding
window (overlap 0.5, constant and gaussian blending). Needs MONAI.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from support.launch import volseg

from volseg.distributed.communicator import SerialCommunicator
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused import FusedNetwork
from volseg.models.stored import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--train-side", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--windows", default="64,96")
    parser.add_argument("--cases", type=int, default=4)
    given = parser.parse_args()
    if importlib.util.find_spec("monai") is None:
        print("MONAI is not installed: nothing to compare with")
        return
    with tempfile.TemporaryDirectory(prefix="volseg-windows-") as name:
        folder = Path(name)
        volseg(folder, "generate", "train", "--shape", cube(given.train_side), "--cases", "8")
        volseg(folder, "generate", "test", "--shape", cube(given.side), "--cases", str(given.cases), "--seed", "7")
        size = ["--base-channels", "16", "--levels", "4", "--epochs", str(given.epochs)]
        volseg(folder, "train", "train", "-o", "run", *size)
        model, card = load_model(folder / "run")
        compare(model.eval(), card, sorted((folder / "test" / "imagesTr").iterdir()), given)


def compare(model: torch.nn.Module, card, images: list[Path], given: argparse.Namespace) -> None:
    print(f"trained on {cube(given.train_side)}, {given.epochs} epochs; {len(images)} cases of {cube(given.side)}\n")
    scores: dict[str, list[list[float]]] = {}
    for path in images:
        voxels = np.asarray(nib.load(path).dataobj, np.float32).T
        truth = path.parent.parent / "labelsTr" / path.name.replace("_0000", "")
        labels = np.asarray(nib.load(truth).dataobj).T
        x = torch.from_numpy((voxels - voxels.mean()) / voxels.std())[None, None].contiguous()
        for way, mask in masks(model, x, given.windows):
            found = [dice(mask == value, labels == value) for value in range(1, len(card.labels))]
            scores.setdefault(way, []).append(found)
    names = [name for name, value in sorted(card.labels.items(), key=lambda item: item[1]) if value]
    print(f"| way | mean Dice | {' | '.join(names)} | worst case |")
    print("|---|---" + "|---" * (len(names) + 1) + "|")
    for way, found in scores.items():
        by_class = [statistics.mean(case[n] for case in found) for n in range(len(names))]
        cells = [f"{value:.3f}" for value in (statistics.mean(by_class), *by_class, min(map(statistics.mean, found)))]
        print(f"| {way} | {' | '.join(cells)} |")


@torch.inference_mode()
def masks(model, x: torch.Tensor, windows: str):
    from monai.inferers import sliding_window_inference

    whole = FusedNetwork(model, ProcessGrid(SerialCommunicator(), (1, 1, 1))).eval()
    yield "whole volume", torch.cat([part.argmax(1) for _, part in whole.logit_slabs(x)], 1)[0].numpy()
    for window in map(int, windows.split(",")):
        for blending in ("constant", "gaussian"):
            logits = sliding_window_inference(x, (window,) * 3, 1, model, overlap=0.5, mode=blending)
            yield f"windows of {window}, {blending}", logits.argmax(1)[0].numpy()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def cube(side: int) -> str:
    return f"{side}x{side}x{side}"


if __name__ == "__main__":
    main()
