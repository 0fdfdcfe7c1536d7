"""The run folder of an imported model, made whole or not at all."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import tomli_w

from volseg import __version__
from volseg.config import config_tables
from volseg.config.stored_run import CONFIG, REPORT
from volseg.errors import ConfigError
from volseg.files import write_text
from volseg.models.stored import ModelCard

_OURS = re.compile(r"config\.toml|report\.json|weights(_fold_\d+|_part_\d+)?\.safetensors|joined\.json|part_\d+")
"""What an import writes, and all that another may replace."""


def check_run_folder(run: Path, overwrite: bool) -> None:
    """Raise ConfigError unless an imported model can be written to `run`; a trained run is never replaced."""
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run}: is a file; give another run folder with -o")
    others = sorted(path.name for path in run.iterdir() if not _OURS.fullmatch(path.name)) if run.is_dir() else []
    if others:
        some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ConfigError(f"{run}: holds {some}, which is no imported model: it is left alone; give another -o")
    if run.is_dir() and any(run.iterdir()) and not overwrite:
        raise ConfigError(f"{run}: exists already; replace it with --overwrite, or give another -o")
    parent = next(p for p in run.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        what = "not writable" if parent.is_dir() else "a file"
        raise ConfigError(f"{run}: {parent} is {what}; give another run folder with -o")


def write_description(folder: Path, card: ModelCard, facts: dict[str, Any]) -> None:
    """What `volseg info` shows: the configuration, and a report of where the model comes from."""
    write_text(folder / CONFIG, tomli_w.dumps(config_tables(card.config)))
    write_text(folder / REPORT, json.dumps({"volseg": __version__, "imported": facts}, indent=2) + "\n")
