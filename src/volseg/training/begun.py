"""What a run began with, kept in its folder for the reports of all its parts: which network, by its bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from volseg.files import sha256, write_text
from volseg.models.stored import weights_path
from volseg.text import read_text
from volseg.training.job import NetworkSource

BEGUN = "begun_from.json"
"""In the run folder, where the network was not that of the configuration."""


def write_begun(run: Path, source: NetworkSource | None) -> None:
    """Write `BEGUN`, or remove that of the run before. On the root. Raises as `write_text` does."""
    if source is None:
        (run / BEGUN).unlink(missing_ok=True)
        return
    write_text(run / BEGUN, json.dumps(_facts(source), indent=1) + "\n")


def read_begun(run: Path) -> dict[str, Any] | None:
    """What `write_begun` has written; None where there is nothing, or it cannot be read."""
    try:
        found = json.loads(read_text(run / BEGUN))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _facts(source: NetworkSource) -> dict[str, Any]:
    """The option and its value; of a file that is read, where it lies and its SHA-256."""
    if source.run is not None:
        file = weights_path(source.run)
        return {"from": str(source.run), "weights": str(file.absolute()), "sha256": sha256(file)}
    if source.plans is not None:
        facts = {"plans": str(source.plans.absolute()), "sha256": sha256(source.plans)}
        return facts | {"configuration": source.configuration}
    return {"network": source.module, "network_args": source.arguments}
