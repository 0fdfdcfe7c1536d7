"""A real CT with coarse slices: Dice after equal time with the network that `train` chooses, and with axes all alike.

    python benchmarks/coarse_slices.py --ct FOLDER [--slices 2] [--steps 184] [--seeds 0,1] [--base-channels 8]

FOLDER has ct.nii.gz and labels.nii.gz. So many slices become one (their mean; of the labels, the first of them). Both
networks are trained on that one scan for the same processor time: steps of the first way, and as many of the second as
take as long, by a few steps of each measured before. The mask is that of the scan trained on, so that the table says
how fast training goes, not how well it generalises.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from support.launch import volseg

WAYS = ("auto", "none")
FEW, MORE = 3, 13


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=Path)
    parser.add_argument("--slices", type=int, default=2)
    parser.add_argument("--steps", type=int, default=184)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--base-channels", type=int, default=8)
    options = parser.parse_args()
    if options.ct is None:
        print("nothing to measure: --ct names a folder with ct.nii.gz and labels.nii.gz")
        return
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        labels = write_set(options.ct, options.slices, work / "set")
        seconds = {way: seconds_of_a_step(work, way, options.base_channels) for way in WAYS}
        steps = {way: round(options.steps * seconds[WAYS[0]] / seconds[way]) for way in WAYS}
        print("| seed | --anisotropy | steps | processor seconds of a step | mean Dice | Dice by label |")
        print("|---|---|---|---|---|---|")
        for seed in options.seeds.split(","):
            for way in WAYS:
                train(work, way, options.base_channels, steps[way], seed)
                by_label = dice(work, labels)
                row = f"{np.mean(by_label):.3f} | {', '.join(f'{value:.3f}' for value in by_label)}"
                print(f"| {seed} | {way} | {steps[way]} | {seconds[way]:.2f} | {row} |", flush=True)


def write_set(source: Path, slices: int, folder: Path) -> int:
    """A data set of one scan with slices so many times as thick; the number of its labels."""
    image, mask = (nib.load(source / name) for name in ("ct.nii.gz", "labels.nii.gz"))
    values, classes = np.asarray(image.dataobj, np.float32), np.asarray(mask.dataobj, np.uint8)
    thick = values.shape[2] // slices
    values = values[:, :, : thick * slices].reshape(*values.shape[:2], thick, slices).mean(3)
    classes = classes[:, :, : thick * slices : slices]
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (slices - 1) / 2
    affine[:3, 2] *= slices
    for place, array in (("imagesTr/case_0000", values.round().astype(np.int16)), ("labelsTr/case", classes)):
        path = folder / f"{place}.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(array, affine), path)
    count = int(classes.max())
    labels = {"background": 0} | {f"label {n}": n for n in range(1, count + 1)}
    about = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about))
    return count


def train(work: Path, way: str, base_channels: int, steps: int, seed: str = "0") -> float:
    """Train from the beginning; processor seconds of the whole command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    volseg(
        work, "train", "set", "-o", "run", "--anisotropy", way, "--base-channels", base_channels, "--epochs", steps,
        "--seed", seed, "--overwrite", threads=1,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime


def seconds_of_a_step(work: Path, way: str, base_channels: int) -> float:
    """The difference of a longer and a short run: what comes once, such as compiling kernels, is in both."""
    short, longer = (train(work, way, base_channels, steps) for steps in (FEW, MORE))
    return (longer - short) / (MORE - FEW)


def dice(work: Path, labels: int) -> list[float]:
    """Of each label of the scan that was trained on."""
    volseg(
        work,
        "segment",
        "set/imagesTr/case_0000.nii.gz",
        "-o",
        "mask.nii.gz",
        "--model",
        "run",
        "--overwrite",
        threads=1,
    )
    mask, truth = (np.asarray(nib.load(work / name).dataobj) for name in ("mask.nii.gz", "set/labelsTr/case.nii.gz"))
    sums = [((mask == n).sum() + (truth == n).sum(), ((mask == n) & (truth == n)).sum()) for n in range(1, labels + 1)]
    return [2 * float(both) / float(total) if total else 1.0 for total, both in sums]


if __name__ == "__main__":
    main()
