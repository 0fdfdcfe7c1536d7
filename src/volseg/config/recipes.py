"""Recipes: settings that are known to go together, by name."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import Any

from volseg.config.augmentation import preset
from volseg.config.toml import Config, parse_config
from volseg.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """What a recipe is for, where it comes from, and its values by table; all others have their defaults."""

    purpose: str
    values: dict[str, dict[str, Any]]


_NNUNET: dict[str, dict[str, Any]] = {
    "model": {"norm": "instance", "activation": "leaky_relu", "levels": 4},
    "training": {
        "optimizer": "sgd", "momentum": 0.99, "learning_rate": 1e-2, "schedule": "poly", "warmup": 0,
        "weight_decay": 3e-5, "clip": 12.0, "deep_supervision": True,
    },
    "augmentation": asdict(preset("full")),
}  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        "Small data sets and short runs: AdamW with a polynomial decay, whole volumes, nothing else.", {}
    ),
    "nnunet": Recipe(
        "Long runs, for the best Dice: the training of nnU-Net (Isensee et al., Nature Methods 2021): SGD with "
        "Nesterov's momentum 0.99, learning rate 0.01 with polynomial decay, weight decay 3e-5, gradients clipped at "
        "12, deep supervision, full augmentation, instance norm and leaky ReLU. Its 1000 epochs of 250 patches are "
        "250000 steps; here an epoch is once through the cases, so give the --epochs that your time allows.",
        _NNUNET,
    ),
    "adamw": Recipe(
        "Where SGD is slow to begin, or the batch is one case: AdamW (Loshchilov & Hutter, ICLR 2019) with a warm-up "
        "of the learning rate and a cosine down to 0 (SGDR, ICLR 2017), gradients clipped at 1, and an exponential "
        "moving average of the weights, which smooths the last steps.",
        {
            "training": {
                "optimizer": "adamw", "learning_rate": 3e-3, "schedule": "cosine", "warmup": 50, "weight_decay": 1e-2,
                "clip": 1.0, "ema": 0.99,
            },
        },
    ),
    "residual": Recipe(
        "Where accuracy counts more than time: the residual encoder of nnU-Net's ResEnc presets (Isensee et al., "
        "MICCAI 2024) with the training of recipe nnunet. It needs about 1.4 times the memory and twice the time of "
        "the plain U-Net (docs/recipes.md).",
        _NNUNET | {"model": _NNUNET["model"] | {"encoder": "residual"}},
    ),
}  # fmt: skip
"""By name; the first is what a run has without any."""


def recipe_named(name: str) -> Recipe:
    """Raises ConfigError, with the nearest, where there is none."""
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(RECIPES)}"
        raise ConfigError(f"--recipe {name}: no such recipe; {hint}")
    return RECIPES[name]


def config_of_recipe(name: str) -> Config:
    """The defaults with a recipe's values in their place. Raises ConfigError where there is no such recipe."""
    return parse_config(recipe_named(name).values, f"recipe {name}")
