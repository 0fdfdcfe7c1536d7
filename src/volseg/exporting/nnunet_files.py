"""plans.json and dataset.json of a run, as nnU-Net's predictor reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from volseg.errors import ConfigError
from volseg.geometry import Triple, format_triple
from volseg.models.stored import ModelCard
from volseg.volumes.intensity import ChannelScheme

_USUAL_WINDOW = 128
"""Voxels on each axis of the windows of a model that was trained on whole volumes, at most."""

_METHODS = {
    "zscore": ("ZScoreNormalization", False),
    "zscore_nonzero": ("ZScoreNormalization", True),
    "rescale": ("RescaleTo01Normalization", False),
}


def window_for(card: ModelCard, asked: Triple | None) -> tuple[Triple, tuple[str, ...]]:
    """Voxels of the windows that nnU-Net runs the network on, and what is to be said of them.

    asked  by the user; None: those that it was trained on, or for whole volumes 128, less where strides want it

    Raises ConfigError where the network cannot take them.
    """
    multiple = card.described.multiple
    if asked is not None:
        if any(side < m or side % m for side, m in zip(asked, multiple, strict=True)):
            raise ConfigError(
                f"--window {format_triple(asked)}: the network takes multiples of {format_triple(multiple)} voxels"
            )
        return asked, ()
    if card.origin is not None and card.origin.window is not None:
        return card.origin.window, ()
    crop = card.config.data.crop
    wanted = crop if crop else (_USUAL_WINDOW,) * 3
    d, h, w = (max(m, side // m * m) for side, m in zip(wanted, multiple, strict=True))
    if crop:
        return (d, h, w), ()
    note = f"trained on whole volumes, but nnU-Net runs it on windows of {format_triple((d, h, w))}: its norms see less"
    return (d, h, w), (note,)


def plans_json(card: ModelCard, architecture: dict[str, Any], window: Triple, configuration: str) -> dict[str, Any]:
    """The plan: one configuration, and what preprocessing needs."""
    origin, channels = card.origin, len(card.schemes)
    transpose = [0, 1, 2] if origin is None or origin.order != "stored" else list(origin.transpose)
    cubic = origin is not None and origin.cubic
    image = {"is_seg": False, "order": 3 if cubic else 1, "order_z": 0, "force_separate_z": None if cubic else False}
    back = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None if cubic else False}
    names = [_scheme(scheme) for scheme in card.schemes]
    values = {
        "data_identifier": f"nnUNetPlans_{configuration}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(window),
        "median_image_size_in_voxels": list(window),
        "spacing": list(card.spacing),
        "normalization_schemes": [name for name, _ in names],
        "use_mask_for_norm": [masked for _, masked in names],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": image,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": back | {"is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": back,
        "batch_dice": False,
        "architecture": architecture,
    }
    return {
        "dataset_name": "Dataset000_volseg",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(card.spacing),
        "original_median_shape_after_transp": list(window),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": transpose,
        "transpose_backward": [int(n) for n in np.argsort(transpose)],
        "configurations": {configuration: values},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(number): _intensities(card.schemes[number]) for number in range(channels)
        },
    }


def dataset_json(card: ModelCard) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The data set, and what is to be said of its labels and its order of axes.

    Raises ConfigError for regions that nnU-Net would take for labels.
    """
    notes = []
    if card.origin is None or card.origin.order != "stored":
        notes.append(
            "nnU-Net does not turn scans: give it scans whose stored axes are canonical, as `volseg ingest` writes"
        )
    if card.regions and all(len(region.values) == 1 for region in card.regions):
        raise ConfigError(
            "each of its regions is of one label, which nnU-Net takes for classes of a softmax; use --to torch"
        )
    rising = sorted(card.labels.items(), key=lambda item: item[1])
    labels: dict[str, Any] = {name: number for number, (name, _) in enumerate(rising)}
    if card.regions:
        labels = {"background": 0} | {region.name: list(region.values) for region in card.regions}
    elif changed := [f"{name} {value} is {labels[name]}" for name, value in rising if labels[name] != value]:
        notes.append(f"nnU-Net numbers labels without gaps: in its masks {', '.join(changed)}")
    background = {"background": 0} if "background" not in labels else {}
    dataset = {
        "channel_names": {str(number): scheme.name for number, scheme in enumerate(card.schemes)},
        "labels": {**background, **labels},
        "numTraining": 0,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    if card.regions:
        dataset["regions_class_order"] = [region.written for region in card.regions]
    return dataset, tuple(notes)


def _scheme(scheme: ChannelScheme) -> tuple[str, bool]:
    """The name of nnU-Net's class, and whether it takes voxels other than zero alone."""
    rule = scheme.fixed
    if rule is None:
        if scheme.method not in _METHODS or scheme.span != (0.0, 1.0):
            raise ConfigError(
                f"{scheme.name}: is normalised by {scheme.method} to {scheme.span}, which nnU-Net has not; export it "
                "with --to torch"
            )
        return _METHODS[scheme.method]
    if np.isfinite(rule.low):
        return "CTNormalization", False
    return ("RGBTo01Normalization" if rule.std == 255 else "NoNormalization"), False


def _intensities(scheme: ChannelScheme) -> dict[str, float]:
    """What CTNormalization reads; of other channels nothing."""
    rule = scheme.fixed
    if rule is None or not np.isfinite(rule.low):
        return {"mean": 0.0, "std": 1.0, "percentile_00_5": 0.0, "percentile_99_5": 1.0}
    return {"mean": rule.mean, "std": rule.std, "percentile_00_5": rule.low, "percentile_99_5": rule.high}
