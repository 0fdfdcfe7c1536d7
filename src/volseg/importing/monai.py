"""MONAI bundles as run folders: the network of their configuration, its weights, how they read a scan, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from volseg.config import Config, DataConfig
from volseg.errors import CheckpointError, ConfigError, PartitionError, first_line
from volseg.geometry import Triple
from volseg.importing.checkpoints import read_checkpoint, tensors_in
from volseg.importing.job import Imported
from volseg.importing.monai_config import BundleConfig, arguments_of, parsed, target_of
from volseg.importing.monai_labels import Classes, classes_of, format_of
from volseg.importing.monai_reading import output_of, reading_of
from volseg.importing.sources import Source
from volseg.models.described import DescribedModule
from volseg.models.exported import describe, state_for
from volseg.models.origin import Origin, Weighting
from volseg.models.stored import WEIGHTS, ModelCard, save_tensors
from volseg.models.user_module import monai_network
from volseg.networks.axes import along, turned
from volseg.networks.description import Network
from volseg.networks.imported import imported_model

_CONFIGS = ("inference", "evaluate", "train")
_ENDINGS = (".json", ".yaml", ".yml")
_NETWORKS = (
    "AttentionUnet", "BasicUNet", "BasicUNetPlusPlus", "DynUNet", "HighResNet", "SegResNet", "SegResNetDS",
    "SegResNetDS2", "SegResNetVAE", "SwinUNETR", "UNet", "UNETR", "VNet",
)  # fmt: skip
"""The classes of `monai.networks.nets` that a bundle may name."""
_ALIASES = {"Unet": "UNet", "DynUnet": "DynUNet", "BasicUnet": "BasicUNet", "AttentionUNet": "AttentionUnet"}
_WEIGHTS = "models/model.pt"
_BACKWARDS: Triple = (2, 1, 0)
"""MONAI's arrays run along x, y, z, and a volume's along z, y, x."""


def bundle_root(names: Sequence[str]) -> str | None:
    """The folder, with a slash at its end where it has a name, of the bundle among files; None where there is none."""
    for name in names:
        path = PurePosixPath(name)
        if path.parent.name == "configs" and path.stem in (*_CONFIGS, "metadata") and path.suffix in _ENDINGS:
            return name.removesuffix(f"configs/{path.name}")
    return None


def import_monai(source: Source, root: str, folder: Path) -> Imported:
    """Write the weights of the bundle below `root` into `folder`.

    Raises VolsegError, by name, for what cannot be imported.
    """
    config, metadata = _configs(source, root)
    name, arguments = _network_def(config)
    channels = _channels(arguments, metadata)
    inferer = _inferer(config)
    reading, output = reading_of(config, channels, inferer.roi), output_of(config)
    module = monai_network(name, arguments, f"{config.where}: network_def")
    _fill(module, source, root, name)
    network, weights, transpose = _described(module, channels, config.where)
    classes = classes_of(metadata, channels, network.classes, output.regions)
    weights = _reordered(network, weights, classes)
    size = None if inferer.roi is None else along(inferer.roi, _BACKWARDS) if transpose == (0, 1, 2) else inferer.roi
    origin = Origin(
        tool="monai", source=f"{metadata.get('name') or source.path.stem}, {name}", window=size, step=inferer.step,
        order=reading.order, transpose=transpose, above=reading.above, first=reading.pixdim is not None,
        late=reading.late, back="logits" if reading.pixdim is None else output.back, weighting=inferer.weighting,
        edge=inferer.edge,
    )  # fmt: skip
    spacing = (1.0, 1.0, 1.0) if reading.pixdim is None else reading.pixdim[::-1]
    if reading.order == "stored" and transpose != (0, 1, 2):  # that of the network's axes
        spacing = spacing[::-1]
    data = DataConfig(spacing="own") if reading.pixdim is None else DataConfig()
    card = ModelCard(
        config=Config(model=imported_model(network), data=data), labels=classes.labels,
        schemes=reading.schemes(classes.channels), spacing=spacing, step=0, network=network, regions=classes.regions,
        origin=origin,
    )  # fmt: skip
    save_tensors(folder / WEIGHTS, weights, card)
    facts = {"network": name, "version": str(metadata.get("version", "")), "task": str(metadata.get("task", ""))}
    return Imported(card=card, facts=facts, notes=(*output.notes, *classes.notes))


def _configs(source: Source, root: str) -> tuple[BundleConfig, Mapping[str, Any]]:
    """The configuration that says how the network is run, and metadata.json, which may be missing."""
    names = set(source.names)
    candidates = [f"{root}configs/{stem}{ending}" for stem in _CONFIGS for ending in _ENDINGS]
    chosen = next((name for name in candidates if name in names), None)
    if chosen is None:
        raise ConfigError(
            f"{source.path}: a MONAI bundle without configs/inference.json, which says how its network is run (or "
            "evaluate or train, .yaml too)"
        )
    metadata = f"{root}configs/metadata.json"
    return (
        parsed(source.text(chosen), source.where(chosen)),
        source.json(metadata) if metadata in names else {},
    )


def _network_def(config: BundleConfig) -> tuple[str, dict[str, Any]]:
    """The class of the network, by the allow-list, and its arguments."""
    key = next((key for key in ("network_def", "network", "net") if target_of(config.table(key))), None)
    if key is None:
        raise ConfigError(
            f"{config.where}: has no network_def with a _target_; write there which class of monai.networks.nets the "
            "network is, and its arguments"
        )
    table = config.table(key)
    name = _ALIASES.get(target_of(table), target_of(table))
    whole = str(table["_target_"])
    if name not in _NETWORKS or whole not in (target_of(table), *(_full(whole),)):
        raise ConfigError(
            f"{config.where}: {key} is a {whole}; known are, of monai.networks.nets, {', '.join(_NETWORKS)}. Export "
            "another network with torch.export (.pt2), and describe in model.json how scans are read"
        )
    arguments = arguments_of(config.resolved(dict(table), key))
    return name, arguments


def _full(target: str) -> str:
    """The target, where it lies in MONAI; else nothing."""
    return target if target.startswith("monai.networks.nets.") else ""


def _channels(arguments: Mapping[str, Any], metadata: Mapping[str, Any]) -> int:
    """Of the image: as the network's arguments say, else the metadata, else one."""
    channels = arguments.get("in_channels", format_of(metadata, "inputs", "image").get("num_channels", 1))
    return channels if isinstance(channels, int) and channels > 0 else 1


@dataclass(frozen=True, kw_only=True)
class _Inferer:
    """How the network goes over a volume. `roi` is along x, y, z; None: the whole at once."""

    roi: Triple | None
    step: float = 0.5
    weighting: Weighting = "constant"
    edge: bool = False


def _inferer(config: BundleConfig) -> _Inferer:
    """Raises ConfigError for another way than windows or the whole."""
    path = "inferer" if target_of(config.table("inferer")) else "validate#inferer"
    name = target_of(config.table(path))
    if name in ("SimpleInferer", ""):
        return _Inferer(roi=None)
    if name not in ("SlidingWindowInferer", "SlidingWindowInfererAdapt"):
        raise ConfigError(f"{config.where}: its inferer is {name}; known are SlidingWindowInferer and SimpleInferer")
    size = config.argument(path, "roi_size")
    sides = [size] * 3 if isinstance(size, int) else size
    overlap, mode = config.argument(path, "overlap", 0.25), config.argument(path, "mode", "constant")
    padding, value = config.argument(path, "padding_mode", "constant"), config.argument(path, "cval", 0)
    wide = config.argument(path, "sigma_scale", 0.125)
    ok = isinstance(sides, list) and len(sides) == 3 and all(isinstance(n, int) and n > 0 for n in sides)
    ok = ok and isinstance(overlap, int | float) and 0 <= overlap < 1 and mode in ("constant", "gaussian")
    if not ok or padding not in ("constant", "replicate") or value or wide != 0.125:
        raise ConfigError(
            f"{config.where}: its inferer has roi_size {size}, overlap {overlap}, mode {mode}, padding_mode {padding}, "
            f"cval {value}, sigma_scale {wide}; known are three sides, one overlap below 1, constant or gaussian, "
            "constant or replicate, 0 and 0.125"
        )
    x, y, z = sides
    weighting: Weighting = "gaussian" if mode == "gaussian" else "constant"
    return _Inferer(roi=(x, y, z), step=1 - overlap, weighting=weighting, edge=padding == "replicate")


def _fill(module: nn.Module, source: Source, root: str, name: str) -> None:
    """Load the weights of the bundle into the module. Raises CheckpointError where they are missing or others."""
    file = f"{root}{_WEIGHTS}"
    where = source.where(file)
    if file not in source.names:
        scripted = f"{root}models/model.ts" in source.names
        remedy = (
            "models/model.ts is a program, which is not run; where you trust it: "
            "torch.save(torch.jit.load('model.ts').state_dict(), 'model.pt')"
            if scripted
            else "download it with the bundle (python -m monai.bundle download)"
        )
        raise CheckpointError(f"{where}: is missing; {remedy}")
    with source.local(file) as path:
        values = read_checkpoint(path, where)
        for key in ("model", "state_dict", "network"):
            if isinstance(values, Mapping) and isinstance(values.get(key), Mapping):
                values = values[key]
        tensors = tensors_in(values, where)
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            first = str(error).partition("\n\t")[2].partition("\n")[0] or first_line(error)
            raise CheckpointError(f"{where}: its weights are not those of the {name} of network_def: {first}") from None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values()):
        raise CheckpointError(f"{where}: holds values that are NaN or infinite; the training went wrong")
    module.eval()


def _described(module: nn.Module, channels: int, where: str) -> tuple[Network, dict[str, Tensor], Triple]:
    """The description of the network, its weights, and along which axes of a volume its own run.

    They are turned to a volume's own order, in which scans are read fastest, where that gives the same logits.
    """
    try:
        network = describe(module, channels)
        weights = state_for(network, module)
    except PartitionError as error:
        raise ConfigError(f"{where}: network_def: {error}") from error
    axes = along((0, 1, 2), _BACKWARDS)
    other = turned(network, _BACKWARDS)
    permuted = {
        name: tensor.permute(0, 1, *(2 + axis for axis in axes)).contiguous() if tensor.dim() == 5 else tensor
        for name, tensor in weights.items()
    }
    if _same(module, network, other, permuted, channels):
        return other, permuted, (0, 1, 2)
    return network, weights, _BACKWARDS


@torch.no_grad()
def _same(
    module: nn.Module, network: Network, other: Network, weights: Mapping[str, Tensor], channels: int
) -> bool:  # fmt: skip
    """Whether the turned network gives what the module does, for a small volume of random numbers."""
    sides = tuple(n * times for n, times in zip(network.multiple, (1, 2, 3), strict=True))
    x = torch.rand(1, channels, *sides, generator=torch.Generator().manual_seed(0))
    twin = DescribedModule(other).eval()
    try:
        twin.load_state_dict(weights)
        expected, got = module(x), twin(x.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
    except (RuntimeError, ValueError):
        return False
    if not isinstance(expected, Tensor) or expected.shape != got.shape:
        return False
    return bool(torch.allclose(expected, got, rtol=1e-3, atol=1e-4))


def _reordered(network: Network, weights: dict[str, Tensor], classes: Classes) -> dict[str, Tensor]:
    """The weights with the channels of the logits in the order of the classes."""
    order = list(classes.order)
    if order == sorted(order):
        return weights
    changed = dict(weights)
    for part in ("weight", "bias"):
        name = f"{network.head.module}.{part}"
        if name in changed:
            changed[name] = changed[name][order].contiguous()
    return changed
