"""A trained model on disk: safetensors with a JSON description, nothing that is executed when it is opened.

`weights.safetensors` is what `segment` needs and opens with no MPI at all; its tensors have the plain module's names,
whatever grid they were trained on. A checkpoint (`training/keeping.py`) has the optimizer's state besides, to go on
from. safetensors notices a file that is too short, but not a bit that flipped; so each file carries a checksum.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volseg import __version__
from volseg.config import Config, config_tables, parse_config
from volseg.config.stored_run import BEFORE_SPACING
from volseg.errors import CheckpointError, ConfigError, first_line
from volseg.files import replacing
from volseg.models.origin import Origin
from volseg.models.unet import UNet, training_heads
from volseg.networks.architectures import described
from volseg.networks.as_json import network_as_json, network_from_json
from volseg.networks.deep_supervision import without_training_heads
from volseg.networks.description import Network
from volseg.networks.stored import JOINED, KEY, card_text
from volseg.networks.stored import WEIGHTS as WEIGHTS
from volseg.volumes.intensity import ChannelScheme
from volseg.volumes.label_table import LabelTable
from volseg.volumes.regions import Region, mask_type

SCHEMA = 1
_FOLD = "weights_fold_{}.safetensors"
BEST = "best.safetensors"
CHECKPOINT = "checkpoint.safetensors"  # of a run that an earlier version began
AVERAGED = "averaged."
"""What the names of averaged weights begin with in a checkpoint."""
RANDOM_STATE = "random_state"
"""A tensor that checkpoints have, and no model."""
_CHECKSUM = "checksum"
_KEYS_BEFORE = {"schema", "volseg", "config", "labels", "channels", "spacing_mm", "step", "batch"}  # without checksums


class DamagedError(CheckpointError):
    """A stored model is not what was written: cut short, changed, or no such file at all."""


@dataclass(frozen=True)
class ModelCard:
    """What a stored model says of itself.

    labels   name -> value, background first
    schemes  normalisation of each image channel
    spacing  (D, H, W) in mm, canonical order, that the network learned at; where each volume kept its own, their
             median. Where `origin` reads scans in stored order, it is of the network's axes
    spacing_chosen  False where the version that wrote it trained at volumes' own spacing, but segmented at their median
    step     optimizer steps taken
    batch    cases that each was made with
    validation_dice  mean foreground Dice of the held-out cases with these weights; None where it was not measured
    network  as it is described; None where the version that wrote it stored no description: what the configuration says
    finest_from  the step from which a multigrid run that was lengthened stays at the finest resolution; None: as its
                 configuration says
    regions  what each logit is of, where they are of overlapping regions; empty: each is of a label, and the largest
             wins
    origin   of an imported model; None: volseg trained it
    """

    spacing_chosen: bool = field(default=True, kw_only=True)
    network: Network | None = field(default=None, kw_only=True, compare=False)
    regions: tuple[Region, ...] = field(default=(), kw_only=True)
    origin: Origin | None = field(default=None, kw_only=True)
    config: Config
    labels: dict[str, int]
    schemes: tuple[ChannelScheme, ...]
    spacing: tuple[float, float, float]
    step: int
    batch: int = 1
    validation_dice: float | None = None
    finest_from: int | None = None

    @property
    def described(self) -> Network:
        """The network: as it was stored, or where it was not, as the configuration says."""
        return self.network or described(self.config.model)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what each logit is of: the regions, or the labels, background first."""
        if self.regions:
            return tuple(region.name for region in self.regions)
        return LabelTable(self.labels).ordered

    @property
    def mask_type(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """What masks are stored as (`volumes.regions.mask_type`)."""
        return mask_type(len(self.labels), self.regions)

    @property
    def seen_at(self) -> tuple[float, float, float] | None:
        """The spacing at which the network is to see a volume; None: the volume's own."""
        return None if self.config.data.spacing == "own" and self.spacing_chosen else self.spacing

    def as_json(self) -> str:
        """The text kept in the file's metadata."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "volseg": __version__,
                "config": config_tables(self.config),
                "labels": self.labels,
                "channels": [scheme.as_json() for scheme in self.schemes],
                "spacing_mm": list(self.spacing),
                "step": self.step,
                "batch": self.batch,
                "validation_dice": self.validation_dice,
                "finest_from": self.finest_from,
                "network": network_as_json(self.described),
                **({"regions": [region.as_json() for region in self.regions]} if self.regions else {}),
                **({} if self.origin is None else {"origin": self.origin.as_json()}),
            }
        )

    @classmethod
    def from_json(cls, text: str, path: Path) -> ModelCard:
        """The inverse of `as_json`. Raises CheckpointError for another schema or a malformed description."""
        try:
            values = json.loads(text)
            if values["schema"] != SCHEMA:
                raise CheckpointError(
                    f"{path}: written with schema {values['schema']} by volseg {values.get('volseg')}; this is volseg "
                    f"{__version__}, which reads schema {SCHEMA}: use that version, or train again"
                )
            d, h, w = (float(side) for side in values["spacing_mm"])
            labels = {str(name): int(value) for name, value in values["labels"].items()}
            schemes = tuple(ChannelScheme.from_json(channel) for channel in values["channels"])
            chosen = "spacing" in values["config"].get("data", {})
            config = parse_config(values["config"], str(path), BEFORE_SPACING)
            regions = tuple(Region.from_json(region) for region in values.get("regions", ()))
            outputs = len(regions or labels)
            if (config.model.in_channels, config.model.classes) != (len(schemes), outputs):
                raise ValueError(
                    f"{config.model.in_channels} channels and {config.model.classes} classes, but it describes "
                    f"{len(schemes)} and {outputs}"
                )
            score, finest_from = values.get("validation_dice"), values.get("finest_from")
            network = network_from_json(values["network"], str(path)) if "network" in values else None
            return cls(
                config, labels, schemes, (d, h, w), int(values["step"]), int(values.get("batch", 1)),
                None if score is None else float(score), None if finest_from is None else int(finest_from),
                spacing_chosen=chosen, network=network, regions=regions, origin=Origin.from_json(values.get("origin")),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise CheckpointError(f"{path}: its description is malformed ({error}); train again") from None


def fold_path(run: Path, fold: int, folds: Sequence[int]) -> Path:
    """The weights file of a fold of an imported run, whose `Origin.folds` are `folds`.

    The first fold's is `WEIGHTS`, which `segment` reads where nobody asks for folds. Raises CheckpointError for a fold
    that the run does not have.
    """
    if fold not in folds:
        there = ", ".join(str(number) for number in folds) or "one set of weights alone"
        raise CheckpointError(f"{run}: has no fold {fold}; it has {there}")
    return run / (WEIGHTS if fold == folds[0] else _FOLD.format(fold))


def read_card(path: Path) -> ModelCard:
    """The card of a stored model, without a look at its tensors. Raises CheckpointError."""
    return ModelCard.from_json(card_text(path), path)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write tensors and card, whole or not at all. Raises VolsegError where the folder cannot be written."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    description = json.loads(card.as_json())
    description[_CHECKSUM] = checksum(plain, description)
    with replacing(path) as temporary:  # one entry only: safetensors writes several in any order
        save_file(plain, str(temporary), metadata={KEY: json.dumps(description)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], ModelCard]:
    """Tensors and card of a file that `save_tensors` wrote.

    Raises CheckpointError where it is missing, of another schema, or was not written by volseg; DamagedError where it
    is not what was written. Files of versions without checksums are taken as they are.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; `volseg train` makes one, or name its run folder with --model")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path}: damaged or no safetensors file ({error}); restore it, or train again") from None
    except Exception as error:  # a header that is valid JSON and makes no sense
        raise DamagedError(f"{path}: damaged ({first_line(error)}); restore it, or train again") from None
    if KEY not in metadata:
        raise DamagedError(
            f"{path}: a safetensors file, but not written by volseg; give a run folder of `volseg train`"
        )
    _check(path, tensors, metadata[KEY])
    return tensors, ModelCard.from_json(metadata[KEY], path)


def weights_of(model: UNet) -> dict[str, Tensor]:
    """What `segment` needs of a model: all but the heads that only training has."""
    return _without(training_heads(model.network), model.state_dict())


def _without(modules: tuple[str, ...], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors but for those of modules."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(modules)}


def checksum(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    """CRC-32 over the description and each tensor's name, type, shape and bytes, in the order of the names.

    It finds every change of up to 32 bits in a row, and any other but for one in four thousand million.
    """
    total = zlib.crc32(json.dumps(description).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        if tensor.numel():
            total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"crc32:{total:08x}"


def _check(path: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    """Raise DamagedError unless tensors and description are those that were written, whatever the schema."""
    try:
        description = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise DamagedError(f"{path}: damaged: its description is malformed ({error}); train again") from None
    written = description.pop(_CHECKSUM, None)
    if written is None and description.keys() <= _KEYS_BEFORE:
        return
    found = checksum(tensors, description)
    if found != written:
        raise DamagedError(
            f"{path}: damaged: its checksum is {found}, but {written} was written; restore it, or train again"
        )


def load_into(model: UNet, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill `model` from `tensors`. Raises CheckpointError where they do not fit it."""
    try:
        model.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        first = str(error).partition("\n\t")[2].partition("\n")[0] or str(error)
        raise CheckpointError(f"{path}: its tensors do not fit its own description ({first}); train again") from None


def load_weights(run: Path) -> tuple[dict[str, Tensor], ModelCard]:
    """Weights of a run folder (or of its weights or checkpoint file), by the names of the plain module, and their card.

    A checkpoint's are the averaged ones, where there are such, and those of heads for training are among them.

    Raises CheckpointError.
    """
    if not run.exists():
        raise CheckpointError(
            f"{run}: no such run; train one first with: volseg train -o {run}, or name it with --model"
        )
    tensors, card = load_tensors(weights_path(run))
    if RANDOM_STATE not in tensors:
        return tensors, card
    own, averaged = (  # a checkpoint, with the optimizer's state besides
        {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        for prefix in ("model.", AVERAGED)
    )
    return own | averaged, card


def load_model(run: Path) -> tuple[UNet, ModelCard]:
    """The trained model of a run folder (or of its weights or checkpoint file), on this process alone: no MPI.

    It is without the heads that only training has.

    Raises CheckpointError.
    """
    tensors, card = load_weights(run)
    model = UNet(card.config.model, described=without_training_heads(card.described))
    load_into(model, _without(training_heads(card.described), tensors), weights_path(run))
    model.eval()
    return model, card


def weights_path(run: Path) -> Path:
    """The file that a run folder's model lies in; a file is that itself.

    Raises CheckpointError where the folder joins several models.
    """
    if (run / JOINED).is_file():
        raise CheckpointError(f"{run}: joins several models; name one of them, such as {run / 'part_1'}")
    return run / WEIGHTS if run.is_dir() else run
