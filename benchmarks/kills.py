"""One rank of a training job is killed (-9) at a random moment, again and again; then the run is continued.

    python benchmarks/kills.py [--kills 20] [--ranks 2,4] [--steps 12] [--seed 0] [-- further options of volseg train]

A checkpoint is written after each step, so that many kills meet one that is being written. Each job must end with a
non-zero status within 10 s, leave no checkpoint half-written, and continue, on another number of ranks, to the curve of
a run that was never killed. Exit status 1 where one does not.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from support.killing import finish, kill_one, losses, relative_difference
from support.launch import split_arguments, volseg

from volseg.errors import CheckpointError
from volseg.models.stored import load_tensors
from volseg.training.keeping import stored_checkpoints

LIMIT = 10.0  # seconds for a job to end
TOLERANCE = 1e-5
CASES = 4


def main() -> None:
    own, further = split_arguments(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(own)
    counts = [int(count) for count in given.ranks.split(",")]
    epochs = -(-given.steps // (CASES - 1))
    options = [
        "ellipsoids", f"--epochs={epochs}", "--base-channels=4", "--levels=2", "--validation=1",
        "--learning-rate=3e-4", "--checkpoint-seconds=0", *further,
    ]  # fmt: skip
    chance = random.Random(given.seed)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="volseg-kills-") as name:
        folder = Path(name)
        volseg(folder, "generate", "--shape=20x24x22", f"--cases={CASES}")
        seconds = {}
        for ranks in counts:
            seconds[ranks] = finish(folder, ranks, [*options, "-o", f"whole-{ranks}"], folder / "log")
        references = {ranks: losses(folder / f"whole-{ranks}") for ranks in counts}
        steps = len(references[counts[0]])
        print(f"{given.kills} kills of runs of {steps} steps, seed {given.seed}\n")
        print(
            "| kill | ranks | killed rank | after step | s to end | status | checkpoints, all whole "
            "| left half-written | continued on | from step | relative difference | passes |"
        )
        print("|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|---|")
        for number in range(1, given.kills + 1):
            ranks = counts[number % len(counts)]
            run, log = folder / f"run-{number}", folder / f"log-{number}"
            death = kill_one(
                folder, run, ranks, [*options, "-o", run.name], log,
                rank=chance.randrange(ranks), rows=chance.randrange(steps - 1),
                pause=chance.uniform(0, seconds[ranks] / steps / 2),
            )  # fmt: skip
            whole, kept, step = whole_checkpoints(run)
            partial = len(list(run.rglob("*.partial*")))
            onto = chance.choice([count for count in (1, *counts) if count != ranks])
            again = ["--continue"] if kept else ["--overwrite"]
            finish(folder, onto, [*options, "-o", run.name, *again], log)
            difference = relative_difference(losses(run), references[ranks])
            # A checkpoint after each step: none may be lost but that of the step the log has just got.
            good = (
                death.code != 0 and death.seconds <= LIMIT and whole and step >= death.after - 1
                and difference <= TOLERANCE and not list(run.rglob("*.partial*"))
            )  # fmt: skip
            failures += not good
            print(
                f"| {number} | {ranks} | {death.rank} | {death.after} | {death.seconds:.2f} | {death.code} "
                f"| {kept}, {'yes' if whole else 'no'} | {partial} | {onto} | {step} | {difference:.1e} "
                f"| {'yes' if good else 'NO'} |",
                flush=True,
            )
    print(f"\n{given.kills - failures} of {given.kills} pass")
    raise SystemExit(1 if failures else 0)


def whole_checkpoints(run: Path) -> tuple[bool, int, int]:
    """Whether all checkpoints are what was written, how many there are, and the step of the newest (0 for none)."""
    paths = stored_checkpoints(run)
    try:
        steps = [load_tensors(path)[1].step for path in paths]
    except CheckpointError:
        return False, len(paths), 0
    return True, len(paths), max(steps, default=0)


if __name__ == "__main__":
    main()
