"""What a run folder says of itself, read without torch."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from volseg.config.data import DataConfig
from volseg.config.toml import Config, read_config
from volseg.errors import ConfigError
from volseg.text import read_text

CONFIG = "config.toml"
REPORT = "report.json"
DATA = "data.json"
"""Where the data set lies that a run is trained on, and how it was described."""

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


@dataclass(frozen=True)
class OwnData:
    """The data set of a run, as the options of `volseg train` name it."""

    dataset: str
    labels: str | None = None
    label_names: str | None = None
    channel_names: tuple[str, ...] = ()

    def as_json(self) -> str:
        """What `DATA` holds."""
        return json.dumps(asdict(self), indent=1) + "\n"


def own_data(run: Path) -> OwnData:
    """The data set that a run was trained on. Raises ConfigError where it does not say, or that is not there."""
    again = f"name it: volseg train DATASET -o {run} --continue"
    own = _read_own_data(run)
    if own is None:
        raise ConfigError(f"{run}: does not say which data set it was trained on; {again}")
    if not Path(own.dataset).exists():
        raise ConfigError(f"{run}: was trained on {own.dataset}, which is not there; where it lies elsewhere, {again}")
    return own


def _read_own_data(run: Path) -> OwnData | None:
    try:
        values = json.loads((run / DATA).read_text(encoding="utf-8"))
        return OwnData(**values | {"channel_names": tuple(values["channel_names"])})
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:  # a run of a version that kept it in its report alone
        return OwnData(str(json.loads((run / REPORT).read_text(encoding="utf-8"))["dataset"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
