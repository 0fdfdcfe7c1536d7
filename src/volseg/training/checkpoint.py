"""The state of a training run in one file: weights, optimizer, random state, step, and what else belongs to it.

Everything in it is the same on all ranks, so a run continues on any other number of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from volseg.errors import CheckpointError
from volseg.models.stored import ModelCard, load_into, load_tensors, save_tensors
from volseg.models.unet import UNet

_NOTHING_MORE: Mapping[str, Tensor] = {}


def save_checkpoint(
    path: Path, model: UNet, optimizer: Optimizer, card: ModelCard, more: Mapping[str, Tensor] = _NOTHING_MORE
) -> None:  # fmt: skip
    """Write the state, whole or not at all. On the root rank.

    more  further tensors by name, such as "averaged.NAME"; `load_checkpoint` returns them as they are
    """
    tensors: dict[str, Tensor] = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors["random_state"] = torch.get_rng_state()
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{number}.{name}"] = value
    save_tensors(path, tensors | dict(more), card)


def load_checkpoint(path: Path, model: UNet, optimizer: Optimizer) -> tuple[ModelCard, dict[str, Tensor]]:
    """Put model, optimizer and random state back as `save_checkpoint` found them; the card, and the further tensors.

    Raises CheckpointError where the checkpoint is missing, damaged, or of another model or optimizer.
    """
    tensors, card = load_tensors(path)
    if card.config.training.optimizer != type(optimizer).__name__.lower():
        raise CheckpointError(
            f"{path}: holds the state of {card.config.training.optimizer}, not of {type(optimizer).__name__.lower()}; "
            "continue with the same --optimizer, or train into another folder"
        )
    if card.config.model != model.config:
        raise CheckpointError(
            f"{path}: holds another model ({card.config.model}) than asked for ({model.config}); "
            "continue with its own configuration, or train into another folder"
        )
    load_into(model, {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}, path)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = tensor
    known = optimizer.state_dict()
    try:
        optimizer.load_state_dict({"state": state, "param_groups": known["param_groups"]})
        torch.set_rng_state(tensors["random_state"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its optimizer state does not fit ({error}); train again") from None
    own = ("model.", "optimizer.", "random_state")
    return card, {name: tensor for name, tensor in tensors.items() if not name.startswith(own)}
