"""Which checkpoints of a run are written and kept, the best weights beside the last, and which one a run goes on from.

RUN/checkpoints/step_00000120.safetensors is the whole state after 120 steps. The last few are kept, so that one that
was damaged on disk costs a little time and not the run.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from pathlib import Path

from torch.optim import Optimizer

from volseg.distributed.communicator import Communicator
from volseg.errors import CheckpointError, VolsegError
from volseg.events import Caution, Listener
from volseg.files import remove_leftovers
from volseg.models.stored import (
    BEST,
    CHECKPOINT,
    WEIGHTS,
    DamagedError,
    ModelCard,
    load_tensors,
    save_tensors,
    weights_of,
)
from volseg.models.unet import UNet
from volseg.training.averaging import AveragedWeights
from volseg.training.checkpoint import save_checkpoint

CHECKPOINTS = "checkpoints"


class Checkpoints:
    """Writes the stored models of a run; on the root rank, which holds the run's lock.

    keep, seconds  as `keep` and `checkpoint_seconds` of the configuration
    best           validation Dice of RUN/best.safetensors; None where there is none
    longest        seconds that the slowest checkpoint so far took to write
    """

    def __init__(self, run: Path, keep: int, seconds: float, listen: Listener) -> None:
        self.run, self.keep, self.seconds = run, keep, seconds
        self.best = _best_of(run, listen)
        self.longest = 0.0
        self._saved = time.monotonic()
        (run / CHECKPOINTS).mkdir(exist_ok=True)

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return time.monotonic() - self._saved >= self.seconds

    def save(self, model: UNet, optimizer: Optimizer, averaged: AveragedWeights, card: ModelCard) -> None:
        """Write the last weights (the average, where there is one) and a checkpoint; let go of the oldest ones.

        Raises as `replacing` does.
        """
        begun = time.monotonic()
        # The weights first: a run that was killed between the two goes on, and writes both again.
        with averaged.in_use():
            self._write(lambda: save_tensors(self.run / WEIGHTS, weights_of(model), card))
        new = checkpoint_path(self.run, card.step)
        self._write(lambda: save_checkpoint(new, model, optimizer, card, averaged))
        for path in stored_checkpoints(self.run)[self.keep :]:
            path.unlink(missing_ok=True)
        self._saved = time.monotonic()
        self.longest = max(self.longest, self._saved - begun)

    def _write(self, write: Callable[[], None]) -> None:
        """Write; where that fails, the error says what the run has."""
        try:
            self._with_room(write)
        except (OSError, VolsegError) as error:
            error.add_note(self._remedy())
            raise

    def _with_room(self, write: Callable[[], None]) -> None:
        """Write; where the disk is too full for it, once more without the checkpoints that would be let go of then."""
        try:
            write()
        except OSError as error:
            before = stored_checkpoints(self.run)
            oldest = before[max(1, self.keep - 1) :]
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not oldest or not _is_whole(before[0]):
                raise
            for path in oldest:
                path.unlink(missing_ok=True)
            write()

    def _remedy(self) -> str:
        """What a run that cannot be saved leaves."""
        whole = next((path for path in stored_checkpoints(self.run) if _is_whole(path)), None)
        if whole is None:
            return f"{self.run}: no step is saved; start again with --overwrite once it can be written"
        return f"{whole} is whole: once it can be written, go on from there with --continue"

    def offer(self, model: UNet, averaged: AveragedWeights, card: ModelCard) -> None:
        """Keep the weights of a validation where none was better. Raises as `replacing` does."""
        score = card.validation_dice
        if score is not None and (self.best is None or score > self.best):
            with averaged.in_use():
                self._write(lambda: save_tensors(self.run / BEST, weights_of(model), card))
            self.best = score


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the state after so many steps is kept."""
    return run / CHECKPOINTS / f"step_{step:08d}.safetensors"


def stored_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest first; that of a run which an earlier version began comes last."""
    numbered = {
        int(match[1]): path
        for path in (run / CHECKPOINTS).glob("step_*.safetensors")
        if (match := re.fullmatch(r"step_(\d+)\.safetensors", path.name))
    }
    old = [run / CHECKPOINT] if (run / CHECKPOINT).is_file() else []
    return [numbered[step] for step in sorted(numbered, reverse=True)] + old


def newest_whole(run: Path, communicator: Communicator, listen: Listener) -> Path:
    """The newest checkpoint that is what was written; damaged ones are skipped, with a Caution each. Collective.

    The root looks, so that all ranks go on from the same one. Raises CheckpointError, on all ranks, where none is
    whole, or the newest whole one has another schema.
    """
    path, damaged = communicator.on_root(lambda: _first_whole(run))
    for reason in damaged:
        listen(Caution(f"{reason}\nskipped; going on from {path} instead"))
    return path


def clean_up(run: Path, after: int | None) -> None:
    """Remove what a killed run left half-written, and checkpoints that are not gone on from.

    after  the step that the run goes on from; None where it begins anew, and nothing of an earlier run may stay
    """
    for folder in (run, run / CHECKPOINTS):
        remove_leftovers(folder)
    if after is None:
        for name in (WEIGHTS, BEST):
            (run / name).unlink(missing_ok=True)
    for path in stored_checkpoints(run):
        # Later ones were skipped for being damaged: they must not push out the whole ones that will be written.
        if after is None or (path.name != CHECKPOINT and path.name > checkpoint_path(run, after).name):
            path.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    try:
        load_tensors(path)
    except CheckpointError:
        return False
    return True


def _first_whole(run: Path) -> tuple[Path, list[str]]:
    damaged: list[str] = []
    for path in stored_checkpoints(run):
        try:
            load_tensors(path)
        except DamagedError as error:
            damaged.append(str(error))
        else:
            return path, damaged
    raise CheckpointError(
        f"{run}: none of its {len(damaged)} checkpoints is whole: {damaged[0] if damaged else 'there is none'}"
    )


def _best_of(run: Path, listen: Listener) -> float | None:
    if not (run / BEST).is_file():
        return None
    try:
        return load_tensors(run / BEST)[1].validation_dice
    except CheckpointError as error:
        listen(Caution(f"{error}\nit is replaced after the next validation"))
        return None
