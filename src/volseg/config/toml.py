"""The configuration as TOML and as nested tables."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from volseg.config.augmentation import AugmentationConfig
from volseg.config.data import DataConfig
from volseg.config.labels import LabelsConfig, labels_of_table
from volseg.config.model import ModelConfig
from volseg.config.multigrid import MultigridConfig
from volseg.config.training import TrainingConfig
from volseg.errors import ConfigError
from volseg.geometry import Triple
from volseg.text import read_text


@dataclass(frozen=True)
class Config:
    """Everything a run is made from."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    multigrid: MultigridConfig = field(default_factory=MultigridConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)

    def check(self) -> None:
        """Raise ConfigError where a value is outside its range, or two do not go together."""
        for section in SECTIONS:
            getattr(self, section).check()
        for level in self.training.checkpoint_levels:
            if not 0 <= level <= self.model.levels:
                raise ConfigError(
                    f"training.checkpoint_levels = {level} is no level of this U-Net: 0 (full resolution) to "
                    f"{self.model.levels}"
                )
        weights, classes = self.training.class_weights, self.model.classes
        if weights and classes and len(weights) != classes:
            raise ConfigError(
                f"training.class_weights = {list(weights)}: {len(weights)} weights for {classes} classes; give one for "
                "each, the background first, or leave it out"
            )
        described = self.model.architecture == "imported"  # beside its weights; what it lacks, it says itself
        if self.training.deep_supervision and self.model.levels < 3 and not described:
            raise ConfigError(
                f"training.deep_supervision: with model.levels = {self.model.levels} there is no coarser level to take "
                "the loss at; use 3 levels or more, or leave it out"
            )


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "training": TrainingConfig,
    "data": DataConfig,
    "augmentation": AugmentationConfig,
    "multigrid": MultigridConfig,
}
"""The tables of a configuration that are settings, in the order of a file."""

LABELS = "labels"
"""The table whose keys are the user's own."""

Section = TypeVar("Section")


def read_config(path: Path, base: Config | None = None) -> Config:
    """The configuration in a TOML file; what it leaves out is that of `base`, by default the defaults.

    Raises ConfigError where the file is missing or is not TOML, a key is unknown (naming the nearest), or a value has
    the wrong type or range.
    """
    try:
        tables = tomllib.loads(read_text(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give an existing TOML file") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    return parse_config(tables, str(path), base)


def parse_config(tables: dict[str, Any], where: str, base: Config | None = None) -> Config:
    """The configuration in nested tables, as TOML or JSON give them; see `read_config`."""
    base = base or Config()
    for name, value in tables.items():
        if name not in SECTIONS and name != LABELS:
            what = f"table [{name}]" if isinstance(value, dict) else f"key {name} outside of the tables"
            raise ConfigError(f"{where}: unknown {what}{_home_of(name) or _nearest(name, (*SECTIONS, LABELS))}")
    sections = {name: _section(getattr(base, name), name, tables.get(name, {}), where) for name in SECTIONS}
    labels = labels_of_table(tables[LABELS], where) if LABELS in tables else base.labels
    config = Config(**sections, labels=labels)
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
    """The configuration as nested tables, ready for TOML or JSON; [labels] only where there are some."""
    tables = {name: dataclasses.asdict(getattr(config, name)) for name in SECTIONS}
    return tables | ({LABELS: config.labels.as_table()} if config.labels else {})


def _section(base: Section, name: str, table: Any, where: str) -> Section:
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: [{name}] must be a table, not {table!r}")
    hints = get_type_hints(type(base))
    values = {}
    for key, value in table.items():
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {name}.{key}{_home_of(key) or _nearest(key, hints)}")
        values[key] = _value(f"{where}: {name}.{key}", hints[key], value)
    changed: Section = dataclasses.replace(base, **values)  # type: ignore[type-var]
    return changed


def _value(where: str, hint: Any, value: Any) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{where} = {value!r} is not one of {', '.join(get_args(hint))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        if get_origin(kind) is tuple:
            return _triples(where, value)
        allowed = (int, float) if kind is float else (int,)
        if not isinstance(value, (list, tuple)) or not all(type(n) in allowed for n in value):
            raise ConfigError(f"{where} = {value!r} must be a list of {_PLURALS[kind]}, such as {_EXAMPLES[kind]}")
        return tuple(kind(n) for n in value)
    if type(value) is not hint:
        raise ConfigError(f"{where} = {value!r} must be {_NAMES[hint]}")
    return value


def _triples(where: str, value: Any) -> tuple[Triple, ...]:
    """A list of three whole numbers each."""
    if not isinstance(value, (list, tuple)) or not all(_is_triple(one) for one in value):
        raise ConfigError(
            f"{where} = {value!r} must be a list of three whole numbers each, such as [[1, 2, 2], [2, 2, 2]]"
        )
    return tuple((d, h, w) for d, h, w in value)


def _is_triple(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(type(n) is int for n in value)


_NAMES: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_EXAMPLES: dict[Any, str] = {int: "[64, 64, 64]", float: "[0.5, 0.5, 0.5]"}
_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers"}


def _home_of(key: str) -> str:
    """Which tables know a key that stands elsewhere."""
    homes = [f"[{name}]" for name, kind in SECTIONS.items() if key in get_type_hints(kind)]
    return f"; it belongs in {' or '.join(homes)}" if homes else ""


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
