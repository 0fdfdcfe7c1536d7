"""What a run folder says of itself, read without torch."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from volseg.config.data import DataConfig
from volseg.config.toml import Config, read_config
from volseg.errors import ConfigError
from volseg.text import read_text

CONFIG = "config.toml"
REPORT = "report.json"
BEFORE_SPACING = Config(data=DataConfig(spacing="own"))
"""What settings mean that a run of an earlier version does not name."""


def is_run_folder(path: Path) -> bool:
    """Whether it looks like one."""
    return path.is_dir() and (path / CONFIG).is_file()


def read_run_config(run: Path) -> Config:
    """What a run was trained with. One of a version that did not ask for a spacing saw each volume at its own.

    Raises ConfigError as `read_config` does.
    """
    return read_config(run / CONFIG, BEFORE_SPACING)


def run_facts(folder: Path) -> dict[str, Any]:
    """config.toml and, where there is one, report.json of a run folder.

    Raises ConfigError where one of them is damaged.
    """
    facts: dict[str, Any] = {"path": str(folder)}
    report = folder / REPORT
    try:
        facts["config"] = tomllib.loads(read_text(folder / CONFIG))
    except ValueError as error:
        raise ConfigError(f"{folder / CONFIG}: damaged ({error})") from error
    try:
        facts["report"] = json.loads(read_text(report)) if report.is_file() else None
    except ValueError as error:
        raise ConfigError(f"{report}: damaged ({error})") from error
    return facts
