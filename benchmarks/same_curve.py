"""The same training run made in several ways: on one rank and on more, with replicas, killed and continued.

    python benchmarks/same_curve.py [--steps 40] [--shape 28x24x32] [--seed 0] [-- further options of volseg train]

For example `-- --augment full`. Each step has two cases: one rank takes them one after the other, two replicas at the
same time. A rank of the last runs is killed (-9) after a random step, and they are continued on another number of
ranks. The table has the largest relative difference of a loss from that of one rank. Exit status 1 where one is above
1e-5.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from support.killing import finish, kill_one, losses, relative_difference
from support.launch import split_arguments, volseg

TOLERANCE = 1e-5
CASES, BATCH = 8, 2
WAYS = {"2 ranks": (2, 1), "4 ranks": (4, 1), "2 replicas of 1 rank": (2, 2), "2 replicas of 2 ranks": (4, 2)}
KILLED = {  # (ranks, replicas) before and after
    "2 ranks, killed and continued on 1": ((2, 1), (1, 1)),
    "1 replica of 2 ranks, killed and continued on 2 replicas of 2": ((2, 1), (4, 2)),
    "4 ranks, killed and continued on 2": ((4, 1), (2, 1)),
}


def main() -> None:
    own, further = split_arguments(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--shape", default="28x24x32")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(own)
    epochs = -(-given.steps * BATCH // CASES)
    common = [
        "ellipsoids", f"--epochs={epochs}", "--base-channels=4", "--levels=2", "--validation=0",
        "--learning-rate=1e-3", "--checkpoint-seconds=0", *further,
    ]  # fmt: skip
    chance = random.Random(given.seed)
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="volseg-curve-") as name:
        folder = Path(name)
        log = folder / "log"

        def options(run: Path, replicas: int) -> list[str]:
            return [*common, "-o", run.name, f"--replicas={replicas}", f"--accumulate={BATCH // replicas}"]

        def row(way: str, run: Path, killed: str) -> float:
            difference = relative_difference(losses(run), reference)
            print(f"| {way} | {killed} | {losses(run)[-1]:.6f} | {difference:.1e} |", flush=True)
            return difference

        volseg(folder, "generate", f"--shape={given.shape}", f"--cases={CASES}")
        one = folder / "one"
        finish(folder, 1, options(one, 1), log)
        reference = losses(one)
        print(
            f"{len(reference)} steps of {BATCH} cases of {given.shape} voxels, further options: {further or 'none'}\n"
        )
        print("| run | killed after step | last loss | relative difference, largest of all steps |")
        print("|---|--:|--:|--:|")
        print(f"| 1 rank | | {reference[-1]:.6f} | |", flush=True)
        for number, (way, (ranks, replicas)) in enumerate(WAYS.items()):
            run = folder / f"way-{number}"
            finish(folder, ranks, options(run, replicas), log)
            worst = max(worst, row(way, run, ""))
        for number, (way, (first, then)) in enumerate(KILLED.items()):
            run = folder / f"killed-{number}"
            death = kill_one(
                folder, run, first[0], options(run, first[1]), log,
                rank=chance.randrange(first[0]), rows=chance.randrange(1, len(reference) - 2), pause=0.0,
            )  # fmt: skip
            finish(folder, then[0], [*options(run, then[1]), "--continue"], log)
            worst = max(worst, row(way, run, str(death.after)))
    print(f"\nlargest {worst:.1e}, limit {TOLERANCE:.0e}")
    raise SystemExit(1 if worst > TOLERANCE else 0)


if __name__ == "__main__":
    main()
