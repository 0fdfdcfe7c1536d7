"""A network that learned on patches, before and after some steps on whole volumes: `volseg train --from`.

    python benchmarks/adapting.py [--shape 64x80x96] [--patch 40] [--steps 400] [--channels 8] [--rates 0.01,0.001]

It is trained on random crops of the phantoms of `volseg generate`, so that its norms only ever see the statistics of a
patch; then for 10 and for 40 steps on whole volumes, and, to compare with, for 40 more steps on crops. The Dice is that
of whole-volume masks of cases held out of all runs; "windows" is the mask put together of overlapping windows as large
as the crops, as patch tools make it. Ten cases are trained on, two held out, and one case is a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from volseg.api import evaluate, segment, train
from volseg.config import Config
from volseg.config.toml import override
from volseg.distributed.communicator import SerialCommunicator
from volseg.sizes import parse_shape
from volseg.volumes.generation import Recipe, generate_dataset

CASES, HELD_OUT = 12, 2
SERIAL = SerialCommunicator()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="64x80x96")
    parser.add_argument("--patch", type=int, default=40)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--rates", default="0.01,0.001")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="volseg-adapting-") as name:
        folder = Path(name)
        recipe = Recipe(parse_shape(asked.shape), CASES, noise=asked.noise, bias=0.4, seed=asked.seed)
        generate_dataset(folder / "data", recipe, SERIAL)
        crop = (asked.patch,) * 3
        settings = override(
            Config(), model={"base_channels": asked.channels, "levels": 3},
            training={"validation": HELD_OUT, "validate_every": 10**6, "seed": asked.seed},
        )  # fmt: skip
        print(
            f"{CASES - HELD_OUT} cases of {asked.shape} voxels, patches of {asked.patch}, {asked.channels} channels\n"
        )
        print("| | learning rate | Dice of held-out cases |\n|---|---|---|")
        before = trained(folder, "patches", settings, asked.steps, crop=crop)
        row(f"{asked.steps} steps on patches, whole volume", 0.01, before)
        row("the same, by windows", 0.01, windows(folder, folder / "patches", asked.patch))
        for rate in map(float, asked.rates.split(",")):
            for steps, seen in ((10, "whole volumes"), (40, "whole volumes"), (40, "patches")):
                name = f"{steps}-{rate}-{seen}".replace(" ", "-")
                start = {"begin_from": folder / "patches", "crop": crop if seen == "patches" else None}
                dice = trained(folder, name, Config(training=settings.training), steps, learning_rate=rate, **start)
                row(f"and {steps} steps on {seen}, whole volume", rate, dice)
                if seen == "patches":
                    row("the same, by windows", rate, windows(folder, folder / name, asked.patch))


def row(what: str, rate: float, dice: float) -> None:
    """Print one."""
    print(f"| {what} | {rate:g} | {dice:.4f} |", flush=True)


def trained(folder: Path, run: str, config: Config, steps: int, **options: object) -> float:
    """Train a run; the mean Dice of whole-volume masks of the cases held out."""
    report = train(
        folder / "data", folder / run, config=config, epochs=steps // (CASES - HELD_OUT), previews=0,
        communicator=SERIAL, **options,
    )  # fmt: skip
    assert report.validation_dice is not None
    return report.validation_dice


def windows(folder: Path, run: Path, patch: int) -> float:
    """The mean Dice of the masks that windows make of the cases held out."""
    held_out = json.loads((run / "split.json").read_text())["val"]
    masks = folder / f"masks-{run.name}"
    references = folder / f"references-{run.name}"
    masks.mkdir()
    references.mkdir()
    for case in held_out:
        (references / f"{case}.nii.gz").symlink_to(folder / "data" / "labelsTr" / f"{case}.nii.gz")
        scan = folder / "data" / "imagesTr" / f"{case}_0000.nii.gz"
        segment(scan, masks / f"{case}.nii.gz", model=run, window=(patch,) * 3, communicator=SERIAL)
    return statistics.fmean(evaluate(masks, references, communicator=SERIAL).dice.values())


if __name__ == "__main__":
    main()
