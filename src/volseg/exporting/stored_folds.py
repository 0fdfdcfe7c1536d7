"""The models of a run: one, or one of each fold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from volseg.errors import CheckpointError
from volseg.models.stored import WEIGHTS, ModelCard, fold_path, load_tensors


def models_of(run: Path) -> Iterator[tuple[int, dict[str, Tensor], ModelCard]]:
    """Number of the fold (0 where there is one model alone), weights and card of each model, one after another.

    Raises CheckpointError where one is missing or damaged.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder; `volseg train` or `volseg import` makes one")
    tensors, card = load_tensors(run / WEIGHTS)
    folds = () if card.origin is None else card.origin.folds
    yield folds[0] if folds else 0, tensors, card
    for fold in folds[1:]:
        tensors, card = load_tensors(fold_path(run, fold, folds))
        yield fold, tensors, card
