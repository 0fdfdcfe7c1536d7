"""The settings of a model and of a training run: one dataclass each, read from and written to TOML."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from volseg.errors import ConfigError

MAX_CHANNELS = 320


@dataclass(frozen=True)
class ModelConfig:
    """A 3D U-Net.

    in_channels    image channels; 0: as many as the data set has
    classes        output classes, the background included; 0: as many as the data set has
    base_channels  channels at full resolution; doubled at each level up to 320
    levels         halvings of the resolution (levels + 1 resolutions)
    kernel_size    side of the convolutions, odd
    norm           instance, group, batch or none
    activation     leaky_relu or relu
    up             transpose (2x2x2 up-convolution), trilinear or nearest (after a 1x1x1 convolution)
    dropout        probability of dropping a channel at the end of each level's convolutions
    """

    in_channels: int = 0
    classes: int = 0
    base_channels: int = 16
    levels: int = 3
    kernel_size: int = 3
    norm: Literal["instance", "group", "batch", "none"] = "instance"
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    up: Literal["transpose", "trilinear", "nearest"] = "transpose"
    dropout: float = 0.0

    @property
    def multiple(self) -> int:
        """What every side of the volume is padded to a multiple of: 2^levels."""
        return int(2**self.levels)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per resolution, finest first."""
        return tuple(min(MAX_CHANNELS, self.base_channels * 2**n) for n in range(self.levels + 1))

    def for_data(self, in_channels: int, classes: int) -> ModelConfig:
        """The model for a data set. Raises ConfigError where the configuration asks for other numbers."""
        for name, asked, found in (("in_channels", self.in_channels, in_channels), ("classes", self.classes, classes)):
            if asked not in (0, found):
                raise ConfigError(
                    f"model.{name} = {asked}, but the data set has {found}; leave it out, or use another data set"
                )
        if classes < 2:
            raise ConfigError(
                "the data set has only one class, the background; name at least one more in dataset.json's labels"
            )
        return dataclasses.replace(self, in_channels=in_channels, classes=classes)

    def check(self) -> None:
        """Raise ConfigError where a value is outside its range."""
        _check_range("model", self, in_channels=(0, 64), classes=(0, 254), base_channels=(1, 320), levels=(0, 8))
        _check_range("model", self, kernel_size=(1, 11), dropout=(0.0, 0.99))
        if self.classes == 1:
            raise ConfigError("model.classes = 1 leaves only the background; use 2 or more, or leave it out")
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"model.kernel_size = {self.kernel_size} is even; use an odd one, such as 3")
        if self.norm == "group" and any(w % min(8, w) for w in self.widths):
            raise ConfigError(
                f"model.norm = 'group' needs channels in multiples of 8, not {self.widths}; set base_channels"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    epochs         passes over the training cases
    optimizer      adamw or sgd (Nesterov momentum 0.99, as nnU-Net)
    learning_rate  the largest; falls to 0 by the polynomial rule (1 - step / steps)^0.9
    warmup         steps over which the learning rate rises to that
    accumulate     cases of a step that a replica takes one after the other; a step is made with the mean gradient of a
                   batch of replicas x accumulate cases
    clip           the largest norm of the gradient of all weights together; a larger one is scaled down. 0: any
    weight_decay   of the optimizer
    seed           of the initial weights and of the order of the cases
    validation     number of cases held out, whole volumes, evaluated at the end of each epoch; -1: one in eight
    checkpoint_levels  levels of the U-Net (0 is full resolution) that keep half as many tensors for backward, and
                   compute the others again; level 0 does not lower the peak (docs/memory.md)
    """

    epochs: int = 40
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-2
    warmup: int = 0
    accumulate: int = 1
    clip: float = 0.0
    weight_decay: float = 1e-5
    seed: int = 0
    validation: int = -1
    checkpoint_levels: tuple[int, ...] = ()

    def check(self) -> None:
        """Raise ConfigError where a value is outside its range."""
        _check_range(
            "training", self, epochs=(1, 10**6), learning_rate=(1e-8, 10.0), weight_decay=(0.0, 1.0), warmup=(0, 10**6)
        )
        _check_range("training", self, seed=(0, 2**62), validation=(-1, 10**6))
        _check_range("training", self, accumulate=(1, 10**6), clip=(0.0, 1e9))


@dataclass(frozen=True)
class Config:
    """Everything a run is made from."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def check(self) -> None:
        """Raise ConfigError where a value is outside its range."""
        self.model.check()
        self.training.check()
        for level in self.training.checkpoint_levels:
            if not 0 <= level <= self.model.levels:
                raise ConfigError(
                    f"training.checkpoint_levels = {level} is no level of this U-Net: 0 (full resolution) to "
                    f"{self.model.levels}"
                )


Section = TypeVar("Section")


def read_config(path: Path) -> Config:
    """The configuration in a TOML file; what it leaves out has its default.

    Raises ConfigError where the file is missing or is not TOML, a key is unknown (naming the nearest), or a value has
    the wrong type or range.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give an existing TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    return parse_config(tables, str(path))


def parse_config(tables: dict[str, Any], where: str) -> Config:
    """The configuration in nested tables, as TOML or JSON give them; see `read_config`."""
    sections = {"model": ModelConfig, "training": TrainingConfig}
    for name in tables:
        if name not in sections:
            raise ConfigError(f"{where}: unknown table [{name}]{_nearest(name, sections)}")
    config = Config(
        _section(ModelConfig, "model", tables.get("model", {}), where),
        _section(TrainingConfig, "training", tables.get("training", {}), where),
    )
    config.check()
    return config


def override(config: Config, **changes: dict[str, Any]) -> Config:
    """`config` with the given values of each section in place of its own; None leaves one as it is.

    Raises ConfigError where the result has a value out of range.
    """
    tables = config_tables(config)
    for section, values in changes.items():
        tables[section] |= {name: value for name, value in values.items() if value is not None}
    return parse_config(tables, "command line")


def config_tables(config: Config) -> dict[str, Any]:
    """The configuration as nested tables, ready for TOML or JSON."""
    return dataclasses.asdict(config)


def _section(kind: type[Section], name: str, table: Any, where: str) -> Section:
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: [{name}] must be a table, not {table!r}")
    hints = get_type_hints(kind)
    values = {}
    for key, value in table.items():
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {name}.{key}{_nearest(key, hints)}")
        values[key] = _value(f"{where}: {name}.{key}", hints[key], value)
    return kind(**values)


def _value(where: str, hint: Any, value: Any) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{where} = {value!r} is not one of {', '.join(get_args(hint))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or not all(type(n) is int for n in value):
            raise ConfigError(f"{where} = {value!r} must be a list of whole numbers")
        return tuple(value)
    if not isinstance(value, hint) or isinstance(value, bool):
        raise ConfigError(f"{where} = {value!r} must be {'a whole number' if hint is int else 'a number'}")
    return value


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def _check_range(section: str, values: Any, **ranges: tuple[float, float]) -> None:
    for name, (low, high) in ranges.items():
        value = getattr(values, name)
        if not low <= value <= high:
            raise ConfigError(f"{section}.{name} = {value} is outside {low}..{high}")
