"""Networks as nnU-Net's plans describe them: which of its architectures a description is, and that one's arguments."""

from __future__ import annotations

from typing import Any

from volseg.config import ModelConfig
from volseg.errors import ConfigError
from volseg.networks.activations import Activation, activation_named
from volseg.networks.deep_supervision import without_training_heads
from volseg.networks.description import ONES, Convolution, Network, Normalization
from volseg.networks.nnunet import Architecture, Family, nnunet

_CLASSES: dict[Family, str] = {
    "plain": "PlainConvUNet",
    "residual encoder": "ResidualEncoderUNet",
    "residual": "ResidualUNet",
}
_NORMS = {
    "instance": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "batch": "torch.nn.modules.batchnorm.BatchNorm3d",
    "none": None,
}
_MODULE = "dynamic_network_architectures.architectures.unet"


def architecture_in(network: Network) -> Architecture | None:
    """The architecture of nnU-Net that a description is, under nnU-Net's own names; None where it is none of them."""
    convolutions = {node.module: node for node in network.nodes if isinstance(node, Convolution)}
    norms = [node for node in network.nodes if isinstance(node, Normalization) and node.norm != "none"]
    activated = [node for node in network.nodes if isinstance(node, Normalization) and node.activates]
    stages = range(network.deepest + 1)
    residual = any(".blocks." in module for module in convolutions)
    block = ".blocks.{}.conv1.conv" if residual else ".0.convs.{}.conv"
    coarse = "decoder.stages.{}" + (".blocks.{}.conv1.conv" if "decoder.stages.0.blocks.0.conv1.conv" in convolutions
                                    else ".convs.{}.conv")  # fmt: skip

    def count(pattern: str, stage: int) -> int:
        number = 0
        while pattern.format(stage, number) in convolutions:
            number += 1
        return number

    first = [convolutions.get(f"encoder.stages.{stage}{block.format(0)}") for stage in stages]
    if not activated or any(node is None for node in first):
        return None
    family: Family = "plain" if not residual else "residual" if ".blocks." in coarse else "residual encoder"
    known = [node for node in first if node is not None]
    stem = convolutions.get("encoder.stem.convs.0.conv")
    architecture = Architecture(
        family=family, features=tuple(node.channels for node in known), kernels=tuple(node.kernel for node in known),
        strides=network.strides, encoder=tuple(count("encoder.stages.{}" + block, stage) for stage in stages),
        decoder=tuple(count(coarse, step) for step in range(network.deepest)), bias=known[0].bias,
        norm=norms[0].norm if norms else "none", eps=norms[0].eps if norms else 1e-5,
        affine=norms[0].affine if norms else True, activation=Activation(activated[0].activation, activated[0].slope),
        stem=0 if stem is None or stem.channels == known[0].channels else stem.channels,
    )  # fmt: skip
    made = nnunet(architecture, network.in_channels, network.classes)
    same = without_training_heads(made).nodes == without_training_heads(network).nodes
    return architecture if same else None


def architecture_of_ours(model: ModelConfig) -> Architecture:
    """The architecture of nnU-Net that our U-Net of a configuration is, but for names and the order of what it joins.

    Its convolutions have biases, as its up-convolutions have, which ours before a norm have not: they are 0.

    Raises ConfigError, with the setting that would do, where nnU-Net has no such network.
    """
    for name, value, wanted in (
        ("architecture", model.architecture, "unet"),
        ("encoder", model.encoder, "plain"),
        ("down", model.down, "stride"),
        ("up", model.up, "transpose"),
    ):
        if value != wanted:
            raise ConfigError(
                f"model.{name} = {value!r}: nnU-Net has no such network; a run trained with {name} = {wanted!r} can be "
                "exported to it, and this one with --to torch"
            )
    if model.norm == "group":
        raise ConfigError("model.norm = 'group': nnU-Net's plans have none; export it with --to torch")
    stages = model.levels + 1
    return Architecture(
        family="plain", features=model.widths, kernels=model.stage_kernels, strides=(ONES, *model.halvings),
        encoder=(model.convolutions,) * stages, decoder=(model.convolutions,) * model.levels,
        bias=True, norm=model.norm, activation=activation_named(model.activation),
    )  # fmt: skip


def architecture_as_plan(architecture: Architecture) -> dict[str, Any]:
    """The `architecture` of a configuration in a plans.json.

    Raises ConfigError for an activation that nnU-Net cannot name.
    """
    nonlin, options = _activation(architecture.activation)
    counted = "n_conv_per_stage" if architecture.family == "plain" else "n_blocks_per_stage"
    norm = {"eps": architecture.eps, "affine": architecture.affine} if architecture.norm != "none" else None
    arguments: dict[str, Any] = {
        "n_stages": len(architecture.features),
        "features_per_stage": list(architecture.features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [list(kernel) for kernel in architecture.kernels],
        "strides": [list(stride) for stride in architecture.strides],
        counted: list(architecture.encoder),
        "n_conv_per_stage_decoder": list(architecture.decoder),
        "conv_bias": architecture.bias,
        "norm_op": _NORMS[architecture.norm],
        "norm_op_kwargs": norm,
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": nonlin,
        "nonlin_kwargs": options,
    }
    if architecture.stem:
        arguments["stem_channels"] = architecture.stem
    return {
        "network_class_name": f"{_MODULE}.{_CLASSES[architecture.family]}",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _activation(activation: Activation) -> tuple[str, dict[str, Any]]:
    match activation:
        case ("leaky_relu", 0.0):
            return "torch.nn.ReLU", {"inplace": True}
        case ("leaky_relu", slope):
            return "torch.nn.LeakyReLU", {"inplace": True, "negative_slope": slope}
        case ("silu", _):
            return "torch.nn.SiLU", {"inplace": True}
        case ("gelu", _):
            return "torch.nn.GELU", {}
        case ("gelu_tanh", _):
            return "torch.nn.GELU", {"approximate": "tanh"}
    raise ConfigError(f"its activation is {activation.kind}, which nnU-Net's plans have none of; use --to torch")
