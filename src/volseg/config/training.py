"""The settings of a training run: passes, optimizer, held-out cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from volseg.config.ranges import check_range
from volseg.errors import ConfigError


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    epochs         passes over the training cases
    optimizer      adamw or sgd (with Nesterov's momentum)
    momentum       momentum of the optimizer sgd; 0: none
    learning_rate  the largest learning rate of the run
    schedule       how the learning rate falls from its largest value: poly, (1 - step / steps)^0.9 as in nnU-Net;
                   cosine, half a wave down to 0; or constant
    warmup         steps over which the learning rate rises to the largest
    accumulate     cases of a step that a replica takes one after the other; a step is made with the mean gradient of a
                   batch of replicas x accumulate cases
    clip           the largest norm of the gradient of all weights together; a larger one is scaled down. 0: any
    weight_decay   share of each weight that the optimizer takes off, times the learning rate
    ema            decay of an exponential moving average of the weights, such as 0.999, which validation and
                   weights.safetensors then use; 0: none
    class_weights  weights of the classes in the cross-entropy, the background first; empty: all 1
    deep_supervision  the loss is taken at coarser levels of the decoder too (all but the two coarsest resolutions, each
                   with half the weight of the one above it, as nnU-Net)
    batch_dice     the Dice of the loss is that of all cases of a step together, as with nnU-Net's batch_dice, and not
                   the mean of each case's: a class that a case lacks then counts by those that have it. Each case goes
                   forward once more; of use where replicas x accumulate is above 1
    precision      in which tensors are stored: float32, or bfloat16, for half the memory and half the messages
                   (docs/precision.md)
    seed           decides the initial weights and the order of the cases
    validation     number of cases held out, whole volumes, evaluated at the end of epochs; -1: one in eight
    validate_every  epochs from one evaluation of the held-out cases to the next; the last epoch always ends with one
    patience       validations in a row without an improvement after which the run ends, with best.safetensors as its
                   result; 0: any number. At coarser resolutions of a multigrid run none counts
    improvement    what the mean Dice of a validation must rise by, above the best so far, to be one
    folds          parts of a cross-validation, one of which is held out in place of `validation` cases; 0: none. A
                   splits_final.json beside dataset.json, as nnU-Net writes it, then says who is in which
    fold           which of the folds is held out, counted from 0; below `folds`, or the number of folds in that file
    checkpoint_levels  levels of the U-Net (0 is full resolution) that keep half as many tensors for backward, and
                   compute the others again; level 0 does not lower the peak (docs/memory.md)
    keep           how many checkpoints are kept, the last ones
    checkpoint_seconds  seconds between two checkpoints at least; 0: one after each step
    """

    epochs: int = 40
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.99
    learning_rate: float = 1e-2
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    warmup: int = 0
    accumulate: int = 1
    clip: float = 0.0
    weight_decay: float = 1e-5
    ema: float = 0.0
    class_weights: tuple[float, ...] = ()
    deep_supervision: bool = False
    batch_dice: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    validation: int = -1
    validate_every: int = 1
    patience: int = 0
    improvement: float = 0.001
    folds: int = 0
    fold: int = 0
    checkpoint_levels: tuple[int, ...] = ()
    keep: int = 2
    checkpoint_seconds: float = 30.0

    def check(self) -> None:
        """Raise ConfigError where a value is outside its range."""
        check_range(
            "training", self, epochs=(1, 10**6), learning_rate=(1e-8, 10.0), weight_decay=(0.0, 1.0), warmup=(0, 10**6)
        )
        check_range("training", self, seed=(0, 2**62), validation=(-1, 10**6))
        check_range("training", self, patience=(0, 10**6), improvement=(0.0, 1.0))
        check_range("training", self, validate_every=(1, 10**6), folds=(0, 1000), fold=(0, 999))
        if self.folds == 1:
            raise ConfigError("training.folds = 1 would hold out every case; use 2 or more, such as 5, or 0 for none")
        check_range(
            "training", self, accumulate=(1, 10**6), clip=(0.0, 1e9), momentum=(0.0, 0.9999), ema=(0.0, 0.99999)
        )
        for weight in self.class_weights:
            if not 0 <= weight <= 1e6:
                raise ConfigError(f"training.class_weights = {list(self.class_weights)}: {weight} is outside 0..1e6")
        if self.class_weights and not any(self.class_weights):
            raise ConfigError(f"training.class_weights = {list(self.class_weights)}: one must be above 0")
        check_range("training", self, keep=(1, 10**6), checkpoint_seconds=(0.0, 1e9))
