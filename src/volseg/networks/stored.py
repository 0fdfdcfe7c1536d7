"""The description that a stored model carries, read from the head of its file: no tensor is read, and no torch needed.

A safetensors file begins with the length of its head, 8 bytes, little-endian, and the head, JSON, whose key
``__metadata__`` holds texts (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
from pathlib import Path

from volseg.errors import CheckpointError
from volseg.networks.as_json import network_from_json
from volseg.networks.description import Network

WEIGHTS = "weights.safetensors"
"""The model in a run folder."""

JOINED = "joined.json"
"""In its place where a run folder joins several models (`models.joined`)."""

KEY = "volseg"
"""Of the metadata: what a model says of itself."""

_MOST = 100 * 2**20
"""Bytes of a head, at most, as in the safetensors library."""


def card_text(path: Path) -> str:
    """What the model in a file says of itself, as `ModelCard.as_json` wrote it; nothing of the tensors is checked.

    Raises CheckpointError where there is no such file, or volseg did not write it.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MOST:
                raise ValueError(f"a head of {length} bytes")
            text = json.loads(file.read(length))["__metadata__"][KEY]
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); name a run folder, or a model in it"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(
            f"{path}: is no model of volseg, or damaged; name a run folder, or a model in it"
        ) from None
    return str(text)


def stored_network(path: Path) -> Network | None:
    """The network that a model's file describes; None in a file of a version that wrote no description.

    Raises CheckpointError as `card_text` does, ConfigError where the description is malformed.
    """
    text = card_text(path)
    try:
        values = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: its description is malformed ({error}); train again") from None
    return network_from_json(values["network"], str(path)) if "network" in values else None
