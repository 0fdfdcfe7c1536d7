"""A trained nnU-Net model by its own predictor and by volseg: voxels that agree, Dice, processor time, peak memory.

    python benchmarks/nnunet_models.py RESULTS SCAN [SCAN ...] [--labels FOLDER] [--nnunet PYTHON] [--adapted RUN]
                                       [--threads 1] [--only WAYS]

RESULTS is the folder that nnU-Net v2's training wrote (plans.json, dataset.json, fold_0). PYTHON is an interpreter with
the package nnunetv2; without it volseg's ways are compared with one another. FOLDER has the reference masks under the
names of the scans without _0000. RUN is the same model after `volseg train --from`, segmented whole.

Every way is a process of its own that segments all the scans; its time and peak have the start and the loading of the
libraries in them. Without mirroring, on so many threads.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

PREDICT = """
import sys, torch
torch.set_num_threads(int(sys.argv[2]))
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
import SimpleITK
predictor = nnUNetPredictor(
    tile_step_size=0.5, use_gaussian=True, use_mirroring=False, perform_everything_on_device=False,
    device=torch.device("cpu"), verbose=False, allow_tqdm=False,
)
predictor.initialize_from_trained_model_folder(sys.argv[1], use_folds=(0,), checkpoint_name="checkpoint_final.pth")
for scan, mask in zip(sys.argv[3::2], sys.argv[4::2]):
    image, properties = SimpleITKIO().read_images([scan])
    found = predictor.predict_single_npy_array(image, properties, None, None, False)
    SimpleITKIO().write_seg(found, mask, properties)
"""

WAYS = ("nnU-Net", "windows", "windows, 2 ranks", "whole", "adapted, whole")


@dataclass(frozen=True)
class Outcome:
    """What one way made of the scans.

    masks    [D, H, W] of each, in the order of the file
    seconds  of processors, all ranks together
    peak     bytes of the largest process
    """

    masks: list[np.ndarray]
    seconds: float
    peak: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("scans", type=Path, nargs="*")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--nnunet")
    parser.add_argument("--adapted", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default=",".join(way.replace(", ", " ") for way in WAYS))
    given = parser.parse_args()
    if given.results is None or not given.scans:
        print("nothing to measure: name the results of nnU-Net's training, and scans")
        return
    with tempfile.TemporaryDirectory(prefix="volseg-nnunet-") as name:
        table(measured(given, Path(name)), given)


def measured(given: argparse.Namespace, work: Path) -> dict[str, Outcome]:
    """By way, in the order of `WAYS`."""
    outcomes = {}
    imported = work / "imported"
    run([sys.executable, "-m", "volseg", "import", given.results, "-o", imported, "-q"], 1)
    wanted = given.only.split(",")
    for way in WAYS:
        if way.replace(", ", " ") not in wanted:
            continue
        masks = [work / f"{way.replace(' ', '_')}_{number}.nii.gz" for number in range(len(given.scans))]
        if way == "nnU-Net":
            if given.nnunet is None:
                continue
            pairs = [path for pair in zip(given.scans, masks, strict=True) for path in pair]
            used = run([given.nnunet, "-c", PREDICT, given.results, given.threads, *pairs], given.threads)
        else:
            model = given.adapted if way.startswith("adapted") else imported
            if model is None:
                continue
            used = (0.0, 0)
            for scan, mask in zip(given.scans, masks, strict=True):
                used = with_more(used, segmented(scan, mask, model, way, given.threads))
        outcomes[way] = Outcome([voxels(mask) for mask in masks], *used)
    return outcomes


def segmented(scan: Path, mask: Path, model: Path, way: str, threads: int) -> tuple[float, int]:
    """One scan by volseg: processor seconds and peak."""
    ranks = 2 if way.endswith("2 ranks") else 1
    command = [sys.executable, "-m", "volseg", "segment", scan, "-o", mask, "--model", model, "-q"]
    if way.endswith("whole"):
        command.append("--whole")
    launcher = [Path(sys.executable).with_name("mpirun"), "-n", ranks] if ranks > 1 else []
    return run([*launcher, *command], threads)


def run(command: Sequence[object], threads: int) -> tuple[float, int]:
    """Processor seconds of a command and of all that it started, and the peak of the largest process, in bytes.

    Raises SystemExit where it fails.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        [str(part) for part in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    said = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(str(part) for part in command)[:300]} ended with {process.returncode}:\n{said}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def with_more(used: tuple[float, int], more: tuple[float, int]) -> tuple[float, int]:
    return used[0] + more[0], max(used[1], more[1])


def voxels(mask: Path) -> np.ndarray:
    return np.asarray(nib.load(mask).dataobj).T


def table(outcomes: dict[str, Outcome], given: argparse.Namespace) -> None:
    first = next(iter(outcomes))
    print(f"| way | voxels as by {first} | processor s | x {first} | peak GiB | Dice of each scan |")
    print("|---|---|---|---|---|---|")
    references = [None if given.labels is None else reference(scan, given.labels) for scan in given.scans]
    for way, outcome in outcomes.items():
        same = [np.mean(a == b) for a, b in zip(outcome.masks, outcomes[first].masks, strict=True)]
        scores = [
            "-" if labels is None else f"{mean_dice(mask, labels):.4f}"
            for mask, labels in zip(outcome.masks, references, strict=True)
        ]
        faster = outcomes[first].seconds / outcome.seconds
        print(
            f"| {way} | {min(same):.5%} | {outcome.seconds:.1f} | {faster:.2f} | {outcome.peak / 2**30:.2f} | "
            f"{', '.join(scores)} |"
        )


def reference(scan: Path, folder: Path) -> np.ndarray:
    return voxels(folder / scan.name.replace("_0000", ""))


def mean_dice(mask: np.ndarray, labels: np.ndarray) -> float:
    values = [value for value in np.unique(labels) if value]
    scores = [
        2 * np.count_nonzero((mask == value) & (labels == value))
        / (np.count_nonzero(mask == value) + np.count_nonzero(labels == value))
        for value in values
    ]  # fmt: skip
    return float(np.mean(scores))


if __name__ == "__main__":
    main()
