"""The settings of a training run that `train` takes by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from volseg.errors import ConfigError
from volseg.geometry import Triple, format_triple

if TYPE_CHECKING:
    from volseg.config import Config

FOLDS = 5
"""Where only `fold` is given, as in nnU-Net."""


class Settings(TypedDict, total=False):
    """What overrides the configuration's values of those names (`volseg.config`); None overrides nothing.

    multigrid  the number of resolutions
    augment    "none", "light" or "full"
    flip       how often D, H and W are mirrored, 0 to 1; or which are half of the time: "dh", "none". Without it W is
               not mirrored where labels differ by side (left and right)
    crop       (D, H, W) voxels, or "256x256x256", of a random crop of each volume a step
    fold       which part is held out; without folds one of 5, as in nnU-Net
    spacing    "auto", "own", "median", or mm: (3, 1.5, 1.5), "3x1.5x1.5"
    precision  "float32" or "bfloat16"; "auto": that of the configuration, or of the run that goes on
    """

    accumulate: int | None
    multigrid: int | None
    cycle: str | None
    epochs: int | None
    learning_rate: float | None
    schedule: str | None
    warmup: int | None
    optimizer: str | None
    momentum: float | None
    weight_decay: float | None
    clip: float | None
    ema: float | None
    deep_supervision: bool | None
    batch_dice: bool | None
    base_channels: int | None
    levels: int | None
    anisotropy: str | None
    norm: str | None
    checkpoint_levels: tuple[int, ...] | str | None
    augment: str | None
    flip: tuple[float, ...] | str | None
    crop: Triple | str | None
    validation: int | None
    validate_every: int | None
    patience: int | None
    folds: int | None
    fold: int | None
    spacing: str | tuple[float, float, float] | None
    seed: int | None
    keep: int | None
    checkpoint_seconds: float | None
    precision: str | None


OF_THE_NETWORK = ("base_channels", "levels", "anisotropy", "norm")
_TRAINING = (
    "accumulate", "epochs", "learning_rate", "schedule", "warmup", "optimizer", "momentum", "weight_decay", "clip",
    "ema", "deep_supervision", "batch_dice", "validation", "validate_every", "patience", "folds", "fold", "seed",
    "keep", "checkpoint_seconds", "precision",
)  # fmt: skip


def overridden(config: Config, settings: Settings) -> Config:
    """The configuration with settings in place of its own values.

    Raises ConfigError for a value that is out of range or malformed, TypeError for a name that is no setting.
    """
    from volseg.config import override, preset
    from volseg.sizes import parse_axes, parse_levels, parse_shape

    value: dict[str, Any] = dict.fromkeys(Settings.__annotations__)
    unknown = settings.keys() - value.keys()
    if unknown:
        raise TypeError(f"train() got an unexpected keyword argument {min(unknown)!r}")
    value |= settings
    if value["folds"] is None and value["fold"] is not None and not config.training.folds:
        value["folds"] = FOLDS
    if value["precision"] == "auto":
        value["precision"] = None
    training = {name: value[name] for name in _TRAINING}
    config = override(
        config,
        model={name: value[name] for name in OF_THE_NETWORK},
        training=training | {"checkpoint_levels": parsed(value["checkpoint_levels"], parse_levels)},
        data={"spacing": _spacing(value["spacing"]), "crop": parsed(value["crop"], parse_shape, "--crop")},
        multigrid={"levels": value["multigrid"], "cycle": value["cycle"]},
    )
    if value["augment"] is not None:
        config = replace(config, augmentation=preset(value["augment"]))
    return override(config, augmentation={"flip": parsed(value["flip"], parse_axes)})


def parsed(value: Any, parse: Callable[..., Any], *option: str) -> Any:
    """What a command's text stands for; other values as they are, for the configuration to judge."""
    return parse(value, *option) if isinstance(value, str) else value


def _spacing(value: Any) -> Any:
    """The configuration's text for a spacing; "native" is what `segment` calls "own"."""
    from volseg.sizes import parse_spacing

    named = value in ("auto", "own", "median", "native")
    if isinstance(value, str) and not named and not re.fullmatch(r"[\d.]+x[\d.]+x[\d.]+", value):
        try:
            value = parse_spacing(value)
        except ConfigError:
            raise ConfigError(f"--spacing {value}: give own, median, auto, or mm such as 1 or 3x1.5x1.5") from None
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = (value,) * 3
    if isinstance(value, list | tuple):
        return format_triple(tuple(f"{side:.10g}" for side in value))
    return "own" if value == "native" else value
