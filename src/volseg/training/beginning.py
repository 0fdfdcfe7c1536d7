"""What a run begins with in place of the network that its configuration describes: the network of an earlier run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from volseg.config import Config, DataConfig, ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.errors import ConfigError
from volseg.events import Listener, Message
from volseg.models.adapting import Kept, take_weights
from volseg.models.origin import Origin
from volseg.models.stored import ModelCard, load_model, read_card
from volseg.models.unet import UNet
from volseg.networks.adapting import for_data
from volseg.networks.deep_supervision import with_training_heads, without_training_heads
from volseg.networks.description import Network
from volseg.training.job import TrainingJob
from volseg.training.keeping import newest_whole
from volseg.volumes.dataset import Dataset
from volseg.volumes.intensity import ChannelScheme


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """A network with what belongs to it.

    config   the run's, with that network's [model], and the spacing that it learned at unless another was asked for
    network  without heads for training; None: that of the configuration
    fill     puts its weights into the module; None: they are drawn
    schemes  normalisation by channel, where the network has learned with one
    origin   of a network that another tool trained
    path     checkpoint that a run goes on from; None where it begins
    """

    config: Config
    network: Network | None = None
    fill: Callable[[UNet], None] | None = None
    schemes: tuple[ChannelScheme | None, ...] = ()
    origin: Origin | None = None
    path: Path | None = None

    def module(self) -> UNet:
        """The plain torch module, with its first weights; with heads for training where the configuration asks for
        deep supervision.

        Raises ConfigError where it asks for that and the network has no stage for it.
        """
        deep = self.config.training.deep_supervision
        network = self.network if self.network is None or not deep else with_training_heads(self.network)
        if deep and network is not None and network == self.network:
            raise ConfigError(
                "training.deep_supervision: no coarser resolution of this network but its two coarsest is up-sampled, "
                "so there is none to take the loss at; leave it out"
            )
        module = UNet(self.config.model, deep, network)
        if self.fill is not None:
            self.fill(module)
        return module

    def schemes_or(self, own: Sequence[ChannelScheme]) -> tuple[ChannelScheme, ...]:
        """The schemes, by channel; `own` is the data set's, for channels that have none."""
        kept = self.schemes or (None,) * len(own)
        return tuple(scheme or other for scheme, other in zip(kept, own, strict=True))


def begin(job: TrainingJob, dataset: Dataset, communicator: Communicator, listen: Listener) -> Beginning:
    """What the run begins, or goes on, with. Collective.

    Raises VolsegError, on all ranks, where that cannot be read or does not suit the data set.
    """
    config = job.config
    if job.proceed:
        path = newest_whole(job.run, communicator, listen)
        with communicator.together():
            network = without_training_heads(read_card(path).described)
        config = replace(config, model=_suited(config.model, dataset))
        return Beginning(config=config, network=network, path=path)
    if job.begins is None:
        return Beginning(config=replace(config, model=_suited(config.model, dataset)))
    if config.model != ModelConfig():
        listen(Message(f"the network is that of {job.begins}: what the settings say of [model] is not used"))
    with communicator.together():
        begun, said = _from_run(job.begins, config, dataset)
    listen(Message(said))
    return begun


def _suited(model: ModelConfig, dataset: Dataset) -> ModelConfig:
    return model.for_data(len(dataset.channel_names), len(dataset.outputs), bool(dataset.regions))


def _from_run(run: Path, config: Config, dataset: Dataset) -> tuple[Beginning, str]:
    """The network and weights of an earlier run, for the channels and classes of a data set; what was kept, in words.

    Raises CheckpointError where it cannot be read, ConfigError where it has no channel of the data set.
    """
    source, card = load_model(run)
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
    network = for_data(without_training_heads(card.described), len(channels), len(classes))
    model = replace(card.config.model, in_channels=len(channels), classes=len(classes))

    def fill(module: UNet) -> None:
        tensors = source.state_dict()
        take_weights(module, tensors, source.network, channels=channels, classes=classes, where=str(run))

    begun = Beginning(
        config=replace(config, model=model, data=_spacing(config.data, card)), network=network, fill=fill,
        schemes=tuple(None if n is None else card.schemes[n] for n in channels),
        origin=None if card.origin is None else replace(card.origin, window=None, folds=()),
    )  # fmt: skip
    said = [f"begins with the network and the weights of {run}, after {card.step} steps"]
    said += _of_kept("channels", [scheme.name for scheme in card.schemes], dataset.channel_names, channels)
    said += _of_kept("classes", card.outputs, dataset.outputs, classes)
    return begun, "; ".join(said)


def _spacing(data: DataConfig, card: ModelCard) -> DataConfig:
    """With the spacing that a model learned at, unless another one was asked for."""
    if data.spacing != "auto":
        return data
    return replace(data, spacing="own" if card.seen_at is None else "x".join(map(repr, card.seen_at)))


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
