"""The network that an nnU-Net plan describes, read from its plain values: nothing is imported by a name in a plan.

Plans have two formats. Newer ones have an `architecture` with the arguments of its class; older ones have the numbers
of `UNet_class_name`, and its other arguments are what the planner of the time set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from volseg.errors import ConfigError
from volseg.geometry import Triple
from volseg.networks.activations import Activation, activation_named
from volseg.networks.description import ONES, NormKind
from volseg.networks.nnunet import Architecture, Family

_FAMILIES: dict[str, Family] = {
    "PlainConvUNet": "plain",
    "ResidualEncoderUNet": "residual encoder",
    "ResidualUNet": "residual",
}
_NORMS: dict[str, NormKind] = {"InstanceNorm3d": "instance", "BatchNorm3d": "batch"}
_KNOWN = {
    "n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage",
    "n_conv_per_stage_decoder", "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin",
    "nonlin_kwargs", "deep_supervision", "block", "stem_channels",
}  # fmt: skip
"""Arguments of the classes that are understood; others must have a value that says nothing (None, False, 0)."""


def configuration_of(plans: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """A configuration of a plan with what it inherits from others.

    Raises ConfigError where the plan has none of that name, is no plan, or its configurations inherit in a circle.
    """
    configurations = plans.get("configurations") if isinstance(plans, Mapping) else None
    if not isinstance(configurations, Mapping):
        raise ConfigError(f"{where}: has no configurations; give the plans.json of nnU-Net version 2")
    merged: dict[str, Any] = {}
    seen: list[str] = []
    parent: str | None = name
    while parent is not None:
        name = parent
        values = configurations.get(name)
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: has no configuration {name!r}; it has {', '.join(map(str, configurations))}")
        if name in seen:
            raise ConfigError(f"{where}: its configurations inherit in a circle: {' from '.join([*seen, name])}")
        seen.append(name)
        merged = {**values, **merged}
        parent = values.get("inherits_from")
    return merged


def architecture_of(configuration: Mapping[str, Any], where: str) -> Architecture:
    """The network of a configuration.

    Raises ConfigError, which names it, for a class, an argument or a value that has no description here: 2D networks,
    squeeze-excitation, bottleneck blocks, even kernels, other norms.
    """
    if len(_list(where, "patch_size", configuration.get("patch_size"))) != 3:
        raise ConfigError(f"{where}: a 2D configuration; volseg runs 3D networks: choose 3d_fullres or 3d_lowres")
    name, arguments = _class_and_arguments(configuration, where)
    if name.rpartition(".")[2] not in _FAMILIES:
        raise ConfigError(
            f"{where}: its network is {name}; of nnU-Net's, {', '.join(_FAMILIES)} can be imported: bring this one as "
            "a torch.export archive (.pt2)"
        )
    return _architecture(_FAMILIES[name.rpartition(".")[2]], arguments, where)


def _class_and_arguments(configuration: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    architecture = configuration.get("architecture")
    if isinstance(architecture, Mapping) and isinstance(architecture.get("arch_kwargs"), Mapping):
        return str(architecture.get("network_class_name")), dict(architecture["arch_kwargs"])
    if "UNet_class_name" not in configuration:
        raise ConfigError(f"{where}: says nothing of its network (no architecture, no UNet_class_name)")
    name = str(configuration["UNet_class_name"])
    counts = _list(where, "n_conv_per_stage_encoder", configuration.get("n_conv_per_stage_encoder"))
    base = _whole(where, "UNet_base_num_features", configuration.get("UNet_base_num_features"))
    most = _whole(where, "unet_max_num_features", configuration.get("unet_max_num_features"))
    return name, {
        "n_stages": len(counts),
        "features_per_stage": [min(base * 2**stage, most) for stage in range(len(counts))],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": configuration.get("conv_kernel_sizes"),
        "strides": configuration.get("pool_op_kernel_sizes"),
        "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage": counts,
        "n_conv_per_stage_decoder": configuration.get("n_conv_per_stage_decoder"),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _architecture(family: Family, arguments: Mapping[str, Any], where: str) -> Architecture:
    _refuse_unknown(arguments, where)
    stages = _whole(where, "n_stages", arguments.get("n_stages"))
    if stages < 2:
        raise ConfigError(f"{where}: n_stages = {stages}; a U-Net has 2 at least")
    counted = "n_conv_per_stage" if family == "plain" else "n_blocks_per_stage"

    def whole(name: str, count: int = stages) -> tuple[int, ...]:
        return tuple(_whole(where, name, value) for value in _each(where, name, arguments.get(name), count))

    def triples(name: str) -> tuple[Triple, ...]:
        return tuple(_triple(where, name, value) for value in _each(where, name, arguments.get(name), stages))

    kernels, strides = triples("kernel_sizes"), triples("strides")
    if any(side % 2 == 0 for kernel in kernels for side in kernel):
        raise ConfigError(f"{where}: kernel_sizes = {list(kernels)}: kernels of even sides cannot be imported")
    if strides[0] != ONES:
        raise ConfigError(f"{where}: strides = {list(strides)}: the first stage must have the resolution of the image")
    norm, eps, affine = _norm(arguments, where)
    stem = arguments.get("stem_channels")
    return Architecture(
        family=family, features=whole("features_per_stage"), kernels=kernels, strides=strides, encoder=whole(counted),
        decoder=whole("n_conv_per_stage_decoder", stages - 1), bias=bool(arguments.get("conv_bias", False)), norm=norm,
        eps=eps, affine=affine, activation=_activation(arguments, where),
        stem=0 if stem is None else _whole(where, "stem_channels", stem),
    )  # fmt: skip


def _refuse_unknown(arguments: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for an argument that changes the network in a way that is not understood."""
    for name, value in arguments.items():
        if name not in _KNOWN and value not in (None, False, 0, 0.0):
            raise ConfigError(f"{where}: its network has {name} = {value!r}, which cannot be imported")
    for name, expected in (("conv_op", "Conv3d"), ("block", "BasicBlockD")):
        value = arguments.get(name)
        if value is not None and str(value).rpartition(".")[2] != expected:
            raise ConfigError(f"{where}: its network has {name} = {value!r}; only {expected} can be imported")


def _norm(arguments: Mapping[str, Any], where: str) -> tuple[NormKind, float, bool]:
    """Kind and eps of the norms, and whether they scale and shift."""
    name, options = arguments.get("norm_op"), arguments.get("norm_op_kwargs") or {}
    if name is None:
        return "none", 1e-5, True
    kind = _NORMS.get(str(name).rpartition(".")[2])
    if kind is None:
        raise ConfigError(f"{where}: norm_op = {name!r}; {' and '.join(_NORMS)} can be imported")
    if kind == "instance" and options.get("track_running_stats"):
        raise ConfigError(f"{where}: norm_op_kwargs.track_running_stats of an instance norm cannot be imported")
    return kind, float(options.get("eps", 1e-5)), bool(options.get("affine", kind == "batch"))


def _activation(arguments: Mapping[str, Any], where: str) -> Activation:
    name, options = arguments.get("nonlin"), arguments.get("nonlin_kwargs") or {}
    match str(name).rpartition(".")[2]:
        case "LeakyReLU":
            return Activation("leaky_relu", float(options.get("negative_slope", 0.01)))
        case "ReLU" | "SiLU" as short:
            return activation_named(short.lower())
        case "GELU":
            return activation_named("gelu_tanh" if options.get("approximate") == "tanh" else "gelu")
    raise ConfigError(f"{where}: nonlin = {name!r}; LeakyReLU, ReLU, SiLU and GELU can be imported")


def _each(where: str, name: str, value: Any, count: int) -> Sequence[Any]:
    """A value for each stage: a list of so many, or one for all."""
    if isinstance(value, int):
        return [value] * count
    values = _list(where, name, value)
    if len(values) != count:
        raise ConfigError(f"{where}: {name} has {len(values)} entries; its network has {count} stages there")
    return values


def _list(where: str, name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: {name} = {value!r} is no list; the plan is damaged, or not of nnU-Net version 2")
    return value


def _triple(where: str, name: str, value: Any) -> Triple:
    d, h, w = (_whole(where, name, side) for side in _each(where, name, value, 3))
    return d, h, w


def _whole(where: str, name: str, value: Any) -> int:
    """A number of 1 to 65536. Raises ConfigError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 65536 or value % 1:
        raise ConfigError(f"{where}: {name} = {value!r} is no whole number of 1 or more; the plan is damaged")
    return int(value)
