"""What nnU-Net's plans.json and dataset.json say of a model: network, spacing, normalisation, classes.

The files of version 2 (github.com/MIC-DKFZ/nnUNet, `plans_handler.py` and `label_handling.py`), whose values are plain.
Axes are the network's: those of the stored array, z first, after `transpose_forward`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError
from volseg.geometry import Triple
from volseg.networks.nnunet import Architecture
from volseg.networks.nnunet_plan import architecture_of, configuration_of
from volseg.text import read_text
from volseg.volumes.dataset.description import parse_labels, parse_regions
from volseg.volumes.intensity import ChannelScheme, Normalization
from volseg.volumes.regions import Region

_SMALLEST_DEVIATION = 1e-8
_RESAMPLED = {"is_seg": False, "order": 3, "order_z": 0}
"""How nnU-Net resamples images unless a plan says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A configuration of a plan.

    configuration  its name, such as 3d_fullres
    architecture   the network
    spacing        mm, on the network's axes, at which it sees a scan
    window         voxels of its patches, on the network's axes
    transpose      the network's axis n is axis ``transpose[n]`` of the stored array
    schemes        how each channel is normalised
    notes          what is done otherwise here, in sentences for the user
    """

    configuration: str
    architecture: Architecture
    spacing: tuple[float, float, float]
    window: Triple
    transpose: Triple
    schemes: tuple[ChannelScheme, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of a data set, as a network of nnU-Net gives them.

    labels   name -> value in a mask, the background first
    regions  what each logit is of, where they are of regions
    """

    labels: dict[str, int]
    regions: tuple[Region, ...] = ()

    @property
    def logits(self) -> int:
        """How many the network gives."""
        return len(self.regions or self.labels)


def read_plans(path: Path) -> dict[str, Any]:
    """What a plans.json that the user names holds. Raises ConfigError where it cannot be read."""
    try:
        plans = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--plans {path}: cannot be read ({error}); give a plans.json of nnU-Net") from None
    if not isinstance(plans, dict):
        raise ConfigError(f"--plans {path}: is no plans.json of nnU-Net")
    return plans


def read_plan(plans: Mapping[str, Any], configuration: str, channels: Sequence[str], where: str) -> Plan:
    """A configuration of a plans.json; `channels` are the names of the image channels, `where` begins the messages.

    Raises ConfigError where it is damaged, and, by name, for what cannot be imported: cascades, 2D configurations,
    networks and normalisations that are not nnU-Net's own.
    """
    values = configuration_of(plans, configuration, where)
    where = f"{where}, {configuration}"
    if values.get("previous_stage"):
        raise ConfigError(
            f"{where}: a cascade, which reads the masks of {values['previous_stage']} beside the scan; cascades cannot "
            "be imported: choose 3d_fullres or 3d_lowres with --configuration"
        )
    architecture = architecture_of(values, where)
    d, h, w = _numbers(where, "spacing", values.get("spacing"))
    window = tuple(int(side) for side in _numbers(where, "patch_size", values.get("patch_size")))
    first, second, third = window
    return Plan(
        configuration=configuration, architecture=architecture, spacing=(d, h, w), window=(first, second, third),
        transpose=_transpose(plans, where), schemes=_schemes(plans, values, channels, where), notes=_notes(values),
    )  # fmt: skip


def channels_of(dataset: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Names of the image channels in a dataset.json. Raises ConfigError where there are none."""
    named = dataset.get("channel_names", dataset.get("modality")) if isinstance(dataset, Mapping) else None
    if not isinstance(named, Mapping) or not named or set(named) != {str(n) for n in range(len(named))}:
        raise ConfigError(f'{where}: channel_names = {named!r}; it must name each channel, such as {{"0": "CT"}}')
    return tuple(str(named[str(n)]) for n in range(len(named)))


def classes_of(dataset: Mapping[str, Any], path: Path) -> Classes:
    """The classes of a dataset.json, whose path begins the messages; its ignore label is none: no network finds it.

    Raises VolumeError as `dataset.description.parse_labels` and `parse_regions` do.
    """
    return Classes(labels=parse_labels(dataset, path), regions=parse_regions(dataset, path))


def _schemes(
    plans: Mapping[str, Any], values: Mapping[str, Any], channels: Sequence[str], where: str
) -> tuple[ChannelScheme, ...]:
    names, masked = values.get("normalization_schemes"), values.get("use_mask_for_norm", [False] * len(channels))
    if not isinstance(names, list | tuple) or len(names) != len(channels) or len(masked) != len(channels):
        raise ConfigError(
            f"{where}: normalization_schemes = {names!r} and use_mask_for_norm = {masked!r} for {len(channels)} "
            f"channels ({', '.join(channels)}); give the dataset.json that belongs to these plans"
        )
    properties = plans.get(
        "foreground_intensity_properties_per_channel", plans.get("foreground_intensity_properties_by_modality", {})
    )
    return tuple(
        _scheme(channel, str(name), bool(mask), properties.get(str(number)), where)
        for number, (channel, name, mask) in enumerate(zip(channels, names, masked, strict=True))
    )


def _scheme(channel: str, name: str, masked: bool, properties: Any, where: str) -> ChannelScheme:
    """A channel's normalisation by the name of nnU-Net's class."""
    match name:
        case "CTNormalization":
            keys = ("percentile_00_5", "percentile_99_5", "mean", "std")
            if not isinstance(properties, Mapping) or not all(_is_number(properties.get(key)) for key in keys):
                raise ConfigError(f"{where}: the plan lacks {', '.join(keys)} of channel {channel}, which a CT needs")
            low, high, mean, std = (float(properties[key]) for key in keys)
            return ChannelScheme(channel, Normalization(low, high, mean, max(std, _SMALLEST_DEVIATION)))
        case "ZScoreNormalization":
            return ChannelScheme(channel, None, method="zscore_nonzero" if masked else "zscore")
        case "RescaleTo01Normalization":
            return ChannelScheme(channel, None, method="rescale")
        case "NoNormalization" | "RGBTo01Normalization":
            largest = 255.0 if name == "RGBTo01Normalization" else 1.0
            return ChannelScheme(channel, Normalization(-math.inf, math.inf, 0.0, largest))
    raise ConfigError(f"{where}: channel {channel} is normalised by {name}, which is not nnU-Net's own")


def _transpose(plans: Mapping[str, Any], where: str) -> Triple:
    order = plans.get("transpose_forward", [0, 1, 2])
    if not isinstance(order, list | tuple) or sorted(order) != [0, 1, 2]:
        raise ConfigError(f"{where}: transpose_forward = {order!r} is no order of the axes 0, 1, 2")
    d, h, w = order
    return d, h, w


def _notes(values: Mapping[str, Any]) -> tuple[str, ...]:
    """What the plan asks of preprocessing that is not done so."""
    notes = []
    preprocessor = values.get("preprocessor_name", "DefaultPreprocessor")
    if preprocessor != "DefaultPreprocessor":
        notes.append(f"the plan preprocesses by {preprocessor}; scans are read as nnU-Net's DefaultPreprocessor does")
    how, options = values.get("resampling_fn_data"), values.get("resampling_fn_data_kwargs") or {}
    usual = all(options.get(key, value) == value for key, value in _RESAMPLED.items())
    if how not in (None, "resample_data_or_seg_to_shape") or not usual or options.get("force_separate_z") is not None:
        notes.append(
            f"the plan resamples by {how} {dict(options)}; scans are resampled by nnU-Net's usual cubic splines"
        )
    architecture = values.get("architecture")
    arguments = architecture.get("arch_kwargs", {}) if isinstance(architecture, Mapping) else {}
    if arguments.get("dropout_op") is not None:
        notes.append("its network has dropout, which is left out: segmenting has none, and fine-tuning trains without")
    return tuple(notes)


def _numbers(where: str, name: str, value: Any) -> tuple[float, float, float]:
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(_is_number(n) and n > 0 for n in value):
        raise ConfigError(f"{where}: {name} = {value!r} must be three numbers above 0")
    d, h, w = (float(n) for n in value)
    return d, h, w


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
