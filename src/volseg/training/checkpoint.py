"""The state of a training run in one file: weights, optimizer, random state, step, and what else belongs to it.

Everything in it is the same on all ranks, so a run continues on any other number of them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from volseg.errors import CheckpointError
from volseg.models.stored import AVERAGED, RANDOM_STATE, ModelCard, load_into, load_tensors, save_tensors
from volseg.models.unet import DEEP_HEADS, UNet
from volseg.training.averaging import AveragedWeights


def save_checkpoint(
    path: Path, model: UNet, optimizer: Optimizer, card: ModelCard, averaged: AveragedWeights
) -> None:  # fmt: skip
    """Write the state, whole or not at all. On the root rank."""
    tensors: dict[str, Tensor] = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"{AVERAGED}{name}": tensor for name, tensor in averaged.state().items()}
    tensors[RANDOM_STATE] = torch.get_rng_state()
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{number}.{name}"] = value
    save_tensors(path, tensors, card)


def load_checkpoint(path: Path, model: UNet, optimizer: Optimizer, averaged: AveragedWeights) -> ModelCard:
    """Put model, optimizer, averaged weights and random state back as `save_checkpoint` found them.

    Raises CheckpointError where the checkpoint is missing, damaged, or of another model or optimizer.
    """
    tensors, card = load_tensors(path)
    if card.config.training.optimizer != type(optimizer).__name__.lower():
        raise CheckpointError(
            f"{path}: holds the state of {card.config.training.optimizer}, not of {type(optimizer).__name__.lower()}; "
            "continue with the same --optimizer, or train into another folder"
        )
    if card.config.model != model.config:
        before, now = asdict(card.config.model), asdict(model.config)
        said = ", ".join(f"model.{key} was {before[key]}, now {now[key]}" for key in now if before[key] != now[key])
        raise CheckpointError(
            f"{path}: holds another model: {said}; continue with its own configuration, or train into another folder"
        )
    deep = any(name.startswith(f"model.{DEEP_HEADS}") for name in tensors)
    if deep != any(head.training for head in model.network.heads):
        raise CheckpointError(
            f"{path}: was trained with{'' if deep else 'out'} deep supervision; continue with "
            f"{'--deep-supervision' if deep else '--no-deep-supervision'}, or train into another folder"
        )
    load_into(model, {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}, path)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = tensor
    known = optimizer.state_dict()
    try:
        averaged.load({n.removeprefix(AVERAGED): t for n, t in tensors.items() if n.startswith(AVERAGED)})
        optimizer.load_state_dict({"state": state, "param_groups": known["param_groups"]})
        torch.set_rng_state(tensors[RANDOM_STATE])
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its optimizer state does not fit ({error}); train again") from None
    return card
