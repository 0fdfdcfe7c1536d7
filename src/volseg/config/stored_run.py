"""What a run folder says of itself, read without torch."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError

CONFIG = "config.toml"
REPORT = "report.json"


def is_run_folder(path: Path) -> bool:
    """Whether it looks like one."""
    return path.is_dir() and (path / CONFIG).is_file()


def run_facts(folder: Path) -> dict[str, Any]:
    """config.toml and, where there is one, report.json of a run folder.

    Raises ConfigError where one of them is damaged.
    """
    facts: dict[str, Any] = {"path": str(folder)}
    report = folder / REPORT
    try:
        facts["config"] = tomllib.loads((folder / CONFIG).read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{folder / CONFIG}: damaged ({error})") from error
    try:
        facts["report"] = json.loads(report.read_text()) if report.is_file() else None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{report}: damaged ({error})") from error
    return facts
