"""The network of a plan that the user names, in place of one that the settings describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from volseg.errors import ConfigError

if TYPE_CHECKING:
    from volseg.config import Config
    from volseg.networks.description import Network

_USUAL = "3d_fullres"


def other_network(
    settings: Config, network: str | None, network_args: str | None, plans: Path | None, configuration: str | None
) -> Network | None:
    """The network of `--network` or `--plans`, without heads for training; None where there is neither.

    settings  of whose [model] channels and classes are, where the network does not say; there 0 stands for one channel,
              and two classes

    Raises ConfigError where both are given, an option lacks the other that it goes with, or the network cannot be made.
    """
    if network is not None and plans is not None:
        raise ConfigError("--network and --plans: both say which network to plan; leave out either")
    for option, value, of, there in (
        ("--network-args", network_args, "--network", network), ("--configuration", configuration, "--plans", plans)
    ):  # fmt: skip
        if value is not None and there is None:
            raise ConfigError(f"{option} {value}: goes with {of}; give that, or leave it out")
    if plans is not None:
        return _of_plans(plans, configuration or _USUAL, settings)
    return None if network is None else _of_module(network, network_args, settings)


def _of_plans(path: Path, configuration: str, settings: Config) -> Network:
    """That of nnU-Net's plans.json, turned to a volume's own axes; classes by the dataset.json beside it, if any."""
    from volseg.networks.axes import turned
    from volseg.networks.deep_supervision import without_training_heads
    from volseg.networks.nnunet import nnunet
    from volseg.networks.nnunet_plan import configuration_of
    from volseg.volumes.nnunet_plan import channels_of, classes_of, read_plan, read_plans

    values = read_plans(path)
    beside = path.with_name("dataset.json")
    classes = settings.model.classes or 2
    schemes = configuration_of(values, configuration, str(path)).get("normalization_schemes")
    names: tuple[str, ...] = tuple(f"channel_{n}" for n in range(len(schemes) if isinstance(schemes, list) else 1))
    if beside.is_file():
        try:
            dataset = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{beside}: cannot be read ({error}); restore it, or take it away") from None
        names, classes = channels_of(dataset, str(beside)), classes_of(dataset, beside).logits
    plan = read_plan(values, configuration, names, str(path))
    return turned(without_training_heads(nnunet(plan.architecture, len(names), classes)), plan.transpose)


def _of_module(name: str, arguments: str | None, settings: Config) -> Network:
    """That of a torch module, which is made and exported: torch is loaded for it."""
    from volseg.errors import PartitionError
    from volseg.models.exported import describe
    from volseg.models.user_module import module_named
    from volseg.networks.deep_supervision import without_training_heads

    channels = settings.model.in_channels or 1
    module = module_named(name, arguments, channels, settings.model.classes or 2)
    try:
        return without_training_heads(describe(module, channels))
    except PartitionError as error:
        raise ConfigError(f"--network {name}: {error}") from error
