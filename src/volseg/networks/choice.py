"""Which kernels and strides a new run's network gets, and why, in a sentence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from volseg.config import Config, ModelConfig
from volseg.errors import ConfigError
from volseg.geometry import Triple, format_triple, format_triples
from volseg.networks import architectures
from volseg.networks.coverage import why_not_covered
from volseg.networks.description import Network
from volseg.networks.topology import Spacing, is_anisotropic, topology


@dataclass(frozen=True)
class Choice:
    """A network for some data.

    model   with kernels and strides where axes are treated apart, else as it was asked for
    reason  which kernels and strides, and why; empty where there was nothing to choose
    """

    model: ModelConfig
    reason: str = ""


def network_for(model: ModelConfig, spacing: Spacing, shape: Triple) -> Choice:
    """The network for volumes of this spacing (mm, D, H, W) and shape (voxels, D, H, W).

    Kernels and strides that are set, and ``anisotropy = "none"``, are kept. So is a network with all axes alike where
    no spacing is twice another, and where the program has kernels for it (`networks.coverage`) but none for the other
    one, which would take several times the time and memory.
    """
    if not _is_open(model) or not is_anisotropic(spacing):
        return Choice(model)
    kernels, strides = topology(spacing, shape, model.levels, model.kernel_size)
    if not strides or (kernels, strides) == (model.stage_kernels, model.halvings):
        return Choice(model)
    stages = len(kernels)
    apart = replace(
        model, levels=len(strides), kernels=kernels, strides=strides, kernel_size=3, features=model.features[:stages],
        blocks=model.blocks[:stages],
    )  # fmt: skip
    data, shown = f"voxels of {_millimetres(spacing)} mm, {format_triple(shape)} of them", described(apart)
    uncovered = why_not_covered(architectures.described(apart))
    if uncovered and not why_not_covered(architectures.described(model)):
        return Choice(
            model,
            f"{data}: all axes are treated alike; {shown} would suit them, but {uncovered}, which has no fast kernel "
            "(set model.kernels and model.strides to have them nevertheless)",
        )
    fewer = f" in {len(strides)} halvings, as sides would be too short for {model.levels}"
    return Choice(
        apart,
        f"{data}: {shown}{fewer if len(strides) < model.levels else ''}, for an axis is halved while its spacing is "
        "less than twice the finest (--anisotropy none: all axes alike)",
    )


def with_network_for(config: Config, spacing: Spacing, shape: Triple) -> tuple[Config, str]:
    """The configuration with the network of `network_for`, and the reason.

    Where that has fewer halvings than other settings need, such as deep supervision, the network is kept.
    """
    choice = network_for(config.model, spacing, shape)
    suited = replace(config, model=choice.model)
    try:
        suited.check()
    except ConfigError as error:
        if choice.model.levels == config.model.levels:
            raise
        halvings = f"{choice.model.levels} of {config.model.levels} halvings"
        return config, f"all axes are treated alike: else sides would allow {halvings} ({error})"
    return suited, choice.reason


def network_facts(network: Network, reason: str) -> dict[str, Any]:
    """Kernels and strides, and why they are those, as they stand in a report; no reason where nothing was chosen."""
    return {
        "kernels": [list(kernel) for kernel in network.kernels],
        "strides": [list(stride) for stride in network.strides[1:]],
        "reason": reason or None,
    }


def described(model: ModelConfig) -> str:
    """``kernels 1x3x3, 3x3x3 and strides 1x2x2``; empty where neither is set for each resolution."""
    if not model.kernels and not model.strides:
        return ""
    return f"kernels {format_triples(model.stage_kernels)} and strides {format_triples(model.halvings)}"


def _is_open(model: ModelConfig) -> bool:
    """Whether kernels and strides are to be chosen, and can be."""
    named = model.anisotropy == "none" or model.kernels or model.strides
    return not named and model.levels > 0 and model.kernel_size in (3, 5, 7)


def _millimetres(spacing: Spacing) -> str:
    return format_triple(tuple(f"{side:.4g}" for side in spacing))
