"""Archives of `torch.export` (.pt2) as run folders; beside one, model.json may say how a scan becomes its input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volseg.config import Config, DataConfig
from volseg.errors import CheckpointError, ConfigError
from volseg.importing.job import Imported
from volseg.models.exported import describe_archive, state_from
from volseg.models.origin import Origin
from volseg.models.stored import WEIGHTS, ModelCard, save_tensors
from volseg.networks.description import Network
from volseg.networks.imported import imported_model
from volseg.volumes.intensity import ChannelScheme
from volseg.volumes.regions import Region

SUFFIX = ".pt2"
DESCRIPTION = "model.json"
"""As `volseg export --to torch` writes it; others may write one, with channels, spacing_mm and labels."""


def import_archive(path: Path, folder: Path) -> Imported:
    """Write the network of an archive, and its weights, into `folder`; nothing of the archive is run or unpickled.

    Raises CheckpointError where the archive or its model.json is damaged, or they do not go together; PartitionError
    for an operation that a description has not.
    """
    network, tensors = describe_archive(path)
    beside = path.with_name(DESCRIPTION)
    described = json_of(beside) if beside.is_file() else None
    card = _unknown(network, path) if described is None else _known(network, described, path, beside)
    save_tensors(folder / WEIGHTS, state_from(network, tensors, str(path)), card)
    notes = () if described is not None else (_NOTE,)
    return Imported(card=card, facts={}, notes=notes)


_NOTE = (
    f"no {DESCRIPTION} beside the archive: scans are seen at their own spacing, each channel less its mean and divided "
    "by its deviation, and labels are called class_1, class_2, ...; write one where the network learned otherwise"
)


def json_of(path: Path) -> Any:
    """What a file of JSON holds. Raises CheckpointError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); restore it, or take it away") from None


def _unknown(network: Network, path: Path) -> ModelCard:
    config = Config(model=imported_model(network), data=DataConfig(spacing="own"))
    return ModelCard(
        config=config, labels={"background": 0} | {f"class_{n}": n for n in range(1, network.classes)},
        schemes=tuple(ChannelScheme(f"channel_{n}", None) for n in range(network.in_channels)),
        spacing=(1.0, 1.0, 1.0), step=0, network=network, origin=Origin(tool="torch", source=path.name),
    )  # fmt: skip


def _known(network: Network, values: Any, path: Path, where: Path) -> ModelCard:
    """The card of an archive whose channels, spacing and labels are described."""
    try:
        if not isinstance(values, Mapping):
            raise ValueError("no table")
        schemes = tuple(ChannelScheme.from_json(channel) for channel in values["channels"])
        labels = {str(name): int(value) for name, value in values["labels"].items()}
        regions = tuple(Region.from_json(region) for region in values.get("regions", ()))
        d, h, w = (float(side) for side in values["spacing_mm"])
        origin = Origin.from_json(values.get("origin")) or Origin(tool="torch", source=path.name)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{where}: does not say channels, spacing_mm and labels as volseg export writes them ({error})"
        ) from None
    if (len(schemes), len(regions or labels)) != (network.in_channels, network.classes):
        raise ConfigError(
            f"{where}: describes {len(schemes)} channels and {len(regions or labels)} classes, but the network of "
            f"{path.name} has {network.in_channels} and {network.classes}"
        )
    return ModelCard(
        config=Config(model=imported_model(network)), labels=labels, schemes=schemes, spacing=(d, h, w), step=0,
        network=network, regions=regions, origin=origin,
    )  # fmt: skip
