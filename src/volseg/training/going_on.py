"""What may change where a run goes on, and what a change does to its curve."""

from __future__ import annotations

from typing import Any

from volseg.config import Config, config_tables
from volseg.errors import CheckpointError
from volseg.models.stored import ModelCard
from volseg.planning.multigrid import finest_for_good
from volseg.training.job import TrainingJob
from volseg.training.optimization import learning_rate
from volseg.volumes.dataset import Dataset

QUIET = {
    "training": {
        "epochs", "keep", "checkpoint_seconds", "validate_every", "checkpoint_levels",
        "patience", "improvement",
        "accumulate",  # with --replicas it is the batch, which must be the same
    }
}  # fmt: skip
"""Settings that leave the steps up to here as they would have been, or that have words of their own."""


def check_same_run(card: ModelCard, config: Config, dataset: Dataset, job: TrainingJob) -> None:
    """Raise CheckpointError where a run would go on with other data than it began with."""
    before, now = card.config.training, config.training
    for what, old, new in (
        ("labels", card.labels, dataset.labels),
        ("regions", card.regions, dataset.regions),
        ("the table [labels]", card.config.labels.as_table(), config.labels.as_table()),
        ("channels", tuple(scheme.name for scheme in card.schemes), dataset.channel_names),
        ("training.seed", before.seed, now.seed),
        ("training.validation", before.validation, now.validation),
        ("training.folds", before.folds, now.folds),
        ("training.fold", before.fold, now.fold),
        ("data.spacing", card.config.data.spacing, config.data.spacing),
    ):
        if old != new:
            raise CheckpointError(
                f"{job.run}: was trained with {what} {old}, but {job.dataset} or the options give {new}; "
                "continue with the run's own, or train into another folder"
            )


def check_same_batch(card: ModelCard, job: TrainingJob) -> None:
    """Raise CheckpointError where a run would go on with larger or smaller steps than it began with."""
    if card.batch == job.batch:
        return
    fits = card.batch % job.replicas == 0
    options = f"--accumulate {card.batch // job.replicas}" if fits else f"--replicas 1 --accumulate {card.batch}"
    raise CheckpointError(
        f"{job.run}: was trained with {card.batch} cases a step, but --replicas {job.replicas} and training.accumulate "
        f"{job.config.training.accumulate} give {job.batch}; continue with {options}, or train into another folder"
    )


def changes(stored: ModelCard, config: Config, in_epoch: int) -> list[str]:
    """What is to be said of a run that goes on with other settings than those of its checkpoint, a text each.

    in_epoch  steps of an epoch
    """
    said = []
    before, now = config_tables(stored.config), config_tables(config)
    different = [
        f"{table}.{name}: {_shown(before[table][name])} -> {_shown(value)}"
        for table, values in now.items()
        for name, value in values.items()
        if name not in QUIET.get(table, ()) and before[table][name] != value
    ]
    if different:
        said.append("goes on with other settings than it began with: " + "; ".join(different))
    old, new = stored.config.training, config.training
    if old.epochs != new.epochs and stored.step:
        last = learning_rate(old, stored.step - 1, old.epochs * in_epoch)
        following = learning_rate(new, stored.step, new.epochs * in_epoch) if stored.step < new.epochs * in_epoch else 0
        if following > 1.001 * last and stored.step >= new.warmup:
            said.append(
                f"the learning rate rises from {last:.3g} to {following:.3g}: with {new.epochs} epochs in place of "
                f"{old.epochs} it falls later; for less of a jump give a smaller --learning-rate"
            )
    return said


def finest_from(stored: ModelCard, config: Config, in_epoch: int) -> int | None:
    """`ModelCard.finest_from` of a run that goes on: more epochs do not send it back to coarser volumes.

    Where [multigrid] is another one than the run's, its stages are those of the new one.
    """
    if stored.config.multigrid != config.multigrid:
        return None
    if stored.finest_from is not None or stored.config.training.epochs == config.training.epochs:
        return stored.finest_from
    return finest_for_good(config.multigrid, stored.config.training.epochs * in_epoch, stored.step)


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
