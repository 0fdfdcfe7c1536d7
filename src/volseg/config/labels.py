"""Labels as a user wants them, made from the values that files hold: ``[labels]`` of a configuration."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError
from volseg.text import read_text

IGNORED, BACKGROUND = "ignore", "background"
EXAMPLE = "liver = [5, 6]"
LARGEST = 2**15 - 1


@dataclass(frozen=True)
class LabelsConfig:
    """Which values of the label files make which label.

    rows  (name, values) of each label, in the order in which they become 1, 2, ...; a value may be the name that the
          data set has for it. What no label names is background; ``ignore`` names what does not count at all.
          Empty: the data set's labels are taken as they are
    """

    rows: tuple[tuple[str, tuple[int | str, ...]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rows)

    def as_table(self) -> dict[str, list[int | str]]:
        """Name -> values, as TOML has it."""
        return {name: list(values) for name, values in self.rows}


NO_MAP = LabelsConfig()
"""Labels are taken as they are."""


def labels_of_table(table: Any, where: str) -> LabelsConfig:
    """The map in a table name -> value or list of values. `where` is for messages.

    Raises ConfigError where a value is none, stands in two labels, or a name is that of the background.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: [labels] must be a table such as {EXAMPLE}, not {table!r}")
    named = {str(name): value for name, value in table.items()}
    for name in [name for name in named if name.lower() == BACKGROUND]:
        if named.pop(name) not in (0, [0]):
            raise ConfigError(f"{where}: labels.{name} is what no other label names; leave it out")
    rows = tuple((name, _values(f"{where}: labels.{name}", value)) for name, value in named.items())
    homes: dict[int | str, str] = {}
    for name, values in rows:
        for value in values:
            if value in homes:
                raise ConfigError(
                    f"{where}: labels.{homes[value]} and labels.{name} both have {value!r}; a voxel has one label: "
                    "leave it in one of them"
                )
            homes[value] = name
    if rows and all(name.lower() == IGNORED for name, _ in rows):
        raise ConfigError(f"{where}: [labels] has no label to learn; name one, such as {EXAMPLE}")
    return LabelsConfig(rows)


def read_label_map(texts: Sequence[str]) -> LabelsConfig:
    """The map that a command line gives: a file, or ``NAME=5,6`` once for each label.

    A file is JSON, or TOML with a table ``[labels]``, such as a run's config.toml; so is a run's folder.
    Raises ConfigError where it cannot be read, or as `labels_of_table`.
    """
    if len(texts) == 1 and "=" not in texts[0]:
        return _read(Path(texts[0]))
    table: dict[str, list[int | str]] = {}
    for text in texts:
        name, sign, values = text.partition("=")
        if not sign or not name.strip() or name.strip() in table:
            raise ConfigError(f"--label-map {text}: give a file, or NAME=5,6 once for each label")
        parts = [part.strip() for part in values.split(",")]
        table[name.strip()] = [int(part) if part.isdecimal() else part for part in parts if part]
    return labels_of_table(table, "--label-map")


def _read(path: Path) -> LabelsConfig:
    file = path / "config.toml" if path.is_dir() else path
    try:
        text = read_text(file)
        table = tomllib.loads(text).get("labels", {}) if file.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'--label-map {path}: cannot be read ({error}); give JSON such as {{"liver": [5, 6]}}, TOML with a table '
            "[labels], or NAME=5,6"
        ) from None
    found = labels_of_table(table, str(file))
    if not found:
        raise ConfigError(f"--label-map {path}: holds no [labels], such as {EXAMPLE}")
    return found


def _values(where: str, value: Any) -> tuple[int | str, ...]:
    several = value if isinstance(value, (list, tuple)) else [value]
    for one in several:
        if not (type(one) is int and 1 <= one <= LARGEST) and not (isinstance(one, str) and one):
            raise ConfigError(
                f"{where} = {value!r}: {one!r} is no label value of 1 to {LARGEST}, nor the name of a label; 0 is the "
                "background"
            )
    if not several:
        raise ConfigError(f"{where} has no value; give some, such as {EXAMPLE}, or leave it out")
    return tuple(dict.fromkeys(several))
