"""A run that begins with network and weights of an earlier one, for other classes and channels where need be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from volseg.config import Config, DataConfig
from volseg.errors import ConfigError
from volseg.models.adapting import Kept, take_weights
from volseg.models.stored import ModelCard, load_weights
from volseg.models.unet import DEEP_HEADS, UNet
from volseg.networks.adapting import for_data
from volseg.networks.deep_supervision import with_training_heads, without_training_heads
from volseg.networks.description import Network
from volseg.networks.imported import imported_model
from volseg.training.beginning import Beginning, spacing_text
from volseg.volumes.dataset import Dataset


def from_run(run: Path, config: Config, dataset: Dataset) -> tuple[Beginning, str]:
    """The network and weights of an earlier run, for the channels and classes of a data set; what was kept, in words.

    Raises CheckpointError where it cannot be read, ConfigError where it has no channel of the data set.
    """
    tensors, card = load_weights(run)
    channels = _kept([scheme.name for scheme in card.schemes], dataset.channel_names)
    if all(n is None for n in channels):
        raise ConfigError(
            f"{run}: its network sees {', '.join(scheme.name for scheme in card.schemes)}, and {dataset.folder} has "
            f"{', '.join(dataset.channel_names)}: none of them; where they are the same, name them alike (dataset.json "
            "or --channels)"
        )
    classes = list(_kept(card.outputs, dataset.outputs))
    if not (card.regions or dataset.regions):
        classes[0] = 0  # the background is that, whatever it is called
    source = _with_stored_heads(card.described, tensors)
    network = for_data(without_training_heads(source), len(channels), len(classes))
    if card.config.model.architecture == "imported":
        model = imported_model(network)
    else:
        model = replace(card.config.model, in_channels=len(channels), classes=len(classes))

    def fill(module: UNet) -> None:
        take_weights(module, tensors, source, channels=channels, classes=classes, where=str(run))

    begun = Beginning(
        config=replace(config, model=model, data=_spacing(config.data, card)), network=network, fill=fill,
        schemes=tuple(None if n is None else card.schemes[n] for n in channels),
        origin=None if card.origin is None else card.origin.as_trained_on,
    )  # fmt: skip
    said = [f"begins with the network and the weights of {run}, after {card.step} steps"]
    if card.origin is not None and not card.origin.is_our_reading:
        said.append(f"scans are read as {card.origin.tool} reads them")
    said += _of_kept("channels", [scheme.name for scheme in card.schemes], dataset.channel_names, channels)
    said += _of_kept("classes", card.outputs, dataset.outputs, classes)
    return begun, "; ".join(said)


def _spacing(data: DataConfig, card: ModelCard) -> DataConfig:
    """With the spacing that a model learned at, unless another one was asked for."""
    if data.spacing != "auto":
        return data
    spacing = card.seen_at
    return replace(data, spacing="own" if spacing is None else spacing_text(spacing))


def _with_stored_heads(network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """The network with the heads for training that a checkpoint holds, which its description leaves out."""
    return with_training_heads(network) if any(name.startswith(DEEP_HEADS) for name in tensors) else network


def _kept(before: Sequence[str], now: Sequence[str]) -> Kept:
    """By name: the place before of each of those that there are now."""
    places = {name: place for place, name in enumerate(before)}
    return [places.get(name) for name in now]


def _of_kept(what: str, before: Sequence[str], now: Sequence[str], kept: Kept) -> list[str]:
    """What is to be said of channels or classes; nothing where they are the same."""
    if list(kept) == list(range(len(before))):
        return []
    old = {n: name for name, n in zip(now, kept, strict=True) if n is not None}
    text = f"kept the weights of {len(old)} of its {len(before)} {what} ({', '.join(old.values())})"
    new = [name for name, n in zip(now, kept, strict=True) if n is None]
    gone = [name for n, name in enumerate(before) if n not in old]
    parts = [f"{said}: {', '.join(names)}" for said, names in (("new", new), ("left out", gone)) if names]
    return [", ".join([text, *parts])]
