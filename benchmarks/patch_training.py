"""Whole-volume training against MONAI's patch training: equal channels, optimizer and wall time, the same ellipsoids.

    python benchmarks/patch_training.py [--side 128] [--patch 64] [--minutes 4] [--cases 10] [--channels 16] [--seed 0]

MONAI's way: its DynUNet (nnU-Net's network) of the same channels and halvings, two random patches a step, every other
one centred on foreground, Dice + cross-entropy, AdamW, and sliding windows with overlap 0.5 and gaussian blending.
Ours: `volseg train` on the whole volumes with its defaults, and `volseg segment`. All train for the same wall time, one
after the other, with the learning rate falling to 0 over it by the same rule; MONAI with each of two settings of AdamW.
The largest ellipsoids are wider than a patch. Test cases are other scenes of the same kind.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from support.launch import volseg

from volseg.distributed.communicator import SerialCommunicator
from volseg.volumes.generation import Recipe, generate_dataset

CLASSES = 3
SETTINGS = {"as ours": (1e-2, 1e-3), "torch's eps": (1e-3, 1e-8)}  # AdamW's learning rate and eps


@dataclass(frozen=True)
class Outcome:
    """Seconds and steps of training, Dice of each test case, seconds of segmenting one."""

    seconds: float
    steps: int
    scores: list[float]
    each: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--tests", type=int, default=4)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--multigrid", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if importlib.util.find_spec("monai") is None:
        print("MONAI is not installed: nothing to compare with")
        return
    budget = 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="volseg-patches-") as name:
        folder = Path(name)
        sides = (given.side,) * 3
        for what, cases, seed in (("train", given.cases, given.seed), ("test", given.tests, given.seed + 1000)):
            generate_dataset(folder / what, Recipe(sides, cases, noise=0.5, seed=seed), SerialCommunicator())
        widest = widest_object(Recipe(sides, given.tests, noise=0.5, seed=given.seed + 1000))
        print(
            f"{given.cases} cases of {given.side} voxels a side to train on, {given.tests} to test, the widest object"
        )
        print(f"{widest:.0f} voxels, ", end="")
        print(f"patches of {given.patch}; {given.channels} channels, {given.levels} halvings, {budget:.0f} s each\n")
        print("| way | training s | steps | mean Dice | worst case | segmenting s a case |\n|---|---|---|---|---|---|")
        report("volseg, whole volumes", ours(folder, given, budget, 1))
        if given.multigrid > 1:
            report(f"volseg, multigrid {given.multigrid}", ours(folder, given, budget, given.multigrid))
        for setting in SETTINGS:
            report(f"MONAI, patches, AdamW {setting}", monai_way(folder, given, budget, setting))


def report(way: str, outcome: Outcome) -> None:
    """One row of the table."""
    mean, worst = statistics.mean(outcome.scores), min(outcome.scores)
    cells = way, f"{outcome.seconds:.0f}", outcome.steps, f"{mean:.3f}", f"{worst:.3f}", f"{outcome.each:.1f}"
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def ours(folder: Path, given: argparse.Namespace, budget: float, multigrid: int) -> Outcome:
    """As many epochs as the budget holds, by what one takes."""
    size = ["--base-channels", given.channels, "--levels", given.levels, "--validation", 0, "--seed", given.seed]
    size += ["--multigrid", multigrid] if multigrid > 1 else []
    epoch = trained(folder, f"trial {multigrid}", multigrid, size)[0] / multigrid
    seconds, steps = trained(folder, f"run {multigrid}", max(1, round(budget / epoch)), size)
    begun = time.perf_counter()
    scores = []
    for image, label in pairs(folder / "test"):
        mask = folder / f"{image.name}.mask.nii.gz"
        volseg(folder, "segment", image, "--model", f"run {multigrid}", "-o", mask, "--overwrite")
        scores.append(dice(voxels(mask), voxels(label)))
    return Outcome(seconds, steps, scores, (time.perf_counter() - begun) / given.tests)


def trained(folder: Path, run: str, epochs: int, size: list[object]) -> tuple[float, int]:
    """Seconds and steps of a run, its start included."""
    begun = time.perf_counter()
    volseg(folder, "train", "train", "-o", run, "--epochs", epochs, *size)
    steps = len((folder / run / "log.csv").read_text().splitlines()) - 1
    return time.perf_counter() - begun, steps


def monai_way(folder: Path, given: argparse.Namespace, budget: float, setting: str) -> Outcome:
    """MONAI's network, patches and windows; volumes are in memory before the clock starts."""
    from monai.inferers import sliding_window_inference
    from monai.losses import DiceCELoss
    from monai.networks.nets import DynUNet

    torch.manual_seed(given.seed)
    levels = given.levels + 1
    network = DynUNet(
        3, 1, CLASSES, [3] * levels, [1] + [2] * given.levels, [2] * given.levels,
        filters=[given.channels * 2**n for n in range(levels)],
    )  # fmt: skip
    rate, eps = SETTINGS[setting]
    optimizer = torch.optim.AdamW(network.parameters(), rate, eps=eps, weight_decay=1e-5)
    criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    loaded = [(normalized(voxels(image)), voxels(label).astype(np.int64)) for image, label in pairs(folder / "train")]
    batches = patches(loaded, given.patch, given.seed)
    begun, steps = time.perf_counter(), 0
    network.train()
    while (spent := time.perf_counter() - begun) < budget:
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - spent / budget) ** 0.9
        x, y = next(batches)
        optimizer.zero_grad(set_to_none=True)
        criterion(network(x), y).backward()
        optimizer.step()
        steps += 1
    seconds = time.perf_counter() - begun
    network.eval()
    begun, scores = time.perf_counter(), []
    with torch.inference_mode():
        for image, label in pairs(folder / "test"):
            x = torch.from_numpy(normalized(voxels(image)))[None, None]
            logits = sliding_window_inference(x, (given.patch,) * 3, 2, network, overlap=0.5, mode="gaussian")
            scores.append(dice(logits.argmax(1)[0].numpy(), voxels(label)))
    return Outcome(seconds, steps, scores, (time.perf_counter() - begun) / given.tests)


def patches(
    cases: list[tuple[np.ndarray, np.ndarray]], side: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Two patches a step, cut by MONAI's own transform: a centre in the foreground as often as not."""
    from monai.transforms import RandCropByPosNegLabeld

    cut = RandCropByPosNegLabeld(["image", "label"], "label", (side,) * 3, pos=1, neg=1, num_samples=2)
    cut.set_random_state(seed)
    rng = np.random.default_rng(seed)
    while True:
        for number in rng.permutation(len(cases)):
            image, label = cases[number]
            found = cut({"image": torch.from_numpy(image)[None], "label": torch.from_numpy(label)[None]})
            yield (
                torch.stack([p["image"] for p in found]).as_tensor(),
                torch.stack([p["label"] for p in found]).as_tensor(),
            )


def pairs(folder: Path) -> list[tuple[Path, Path]]:
    images = sorted((folder / "imagesTr").iterdir())
    return [(path, folder / "labelsTr" / path.name.replace("_0000", "")) for path in images]


def widest_object(recipe: Recipe) -> float:
    """Of all cases: the diameter of an ellipsoid along an axis, in voxels."""
    scenes = [recipe.scene(case) for case in range(recipe.cases)]
    return max(2 * extent for scene in scenes for one in scene.ellipsoids for extent in one.half_extents)


def voxels(path: Path) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(nib.load(path).dataobj).T)


def normalized(array: np.ndarray) -> np.ndarray:
    return ((array - array.mean()) / array.std()).astype(np.float32)


def dice(found: np.ndarray, true: np.ndarray) -> float:
    """The mean over the classes that are there."""
    values = [value for value in range(1, CLASSES) if (true == value).any()]
    return statistics.mean(
        float(2 * ((found == v) & (true == v)).sum() / ((found == v).sum() + (true == v).sum())) for v in values
    )


if __name__ == "__main__":
    main()
