"""Bundles of MONAI's model zoo in the small, written by hand: a network of some hundred weights, random from a seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

NETWORK = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": "@channels", "out_channels": 3, "channels": [4, 6, 8],
    "strides": [2, 2], "num_res_units": 1, "norm": "batch",
}  # fmt: skip
ROI = [16, 24, 16]
SCALED = {
    "_target_": "ScaleIntensityRanged", "keys": "@key", "a_min": -200, "a_max": 300, "b_min": 0, "b_max": 1,
    "clip": True,
}  # fmt: skip
SPACING = {"_target_": "Spacingd", "keys": "@key", "pixdim": "@spacing", "mode": "bilinear"}
ORIENTATION = {"_target_": "Orientationd", "keys": "@key", "axcodes": "RAS"}
LOADING = [{"_target_": "LoadImaged", "keys": "@key"}, {"_target_": "EnsureChannelFirstd", "keys": "@key"}]
INVERTED = {
    "_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "@key", "nearest_interp": False
}  # fmt: skip
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
THRESHOLD = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}


def config(
    transforms: Sequence[Any] = (ORIENTATION, SPACING, SCALED), after: Sequence[Any] = (SOFTMAX, INVERTED, ARGMAX),
    channels: int = 1, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """An inference.json; `changes` are of its top level."""
    return {
        "imports": ["$import os"], "bundle_root": ".", "key": "image", "channels": channels, "spacing": [1.3, 1.1, 2.0],
        "device": "$torch.device('cpu')", "network_def": NETWORK, "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": [*LOADING, *transforms]},
        "inferer": {
            "_target_": "SlidingWindowInferer", "roi_size": ROI, "sw_batch_size": 2, "overlap": 0.5, "device": "@device"
        },
        "postprocessing": {
            "_target_": "Compose", "transforms": [*after, {"_target_": "SaveImaged", "output_dir": "$@bundle_root"}]
        },
    } | changes  # fmt: skip


def metadata(modality: str = "CT", inputs: Sequence[str] = ("image",), outputs: Sequence[str] = ()) -> dict[str, Any]:
    """A metadata.json."""
    outputs = outputs or ("background", "liver", "tumour")
    image = {"modality": modality, "channel_def": {str(n): name for n, name in enumerate(inputs)}}
    pred = {"channel_def": {str(n): name for n, name in enumerate(outputs)}}
    return {
        "name": "Tiny",
        "version": "0.1",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def bundle(
    folder: Path, module: nn.Module, values: dict[str, Any], described: dict[str, Any] | None = None,
    ending: str = "json",
) -> Path:  # fmt: skip
    """The folder of a bundle with the weights of `module`."""
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    text = json.dumps(values)
    if ending != "json":
        import yaml

        text = yaml.safe_dump(values)
    (folder / "configs" / f"inference.{ending}").write_text(text)
    (folder / "configs" / "metadata.json").write_text(json.dumps(described or metadata()))
    torch.save(module.state_dict(), folder / "models" / "model.pt")
    return folder


def with_random_norms(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with weights and running statistics drawn so that logits differ clearly."""
    torch.manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() > 1:
                tensor.normal_(0, 2.0 / tensor[0].numel() ** 0.5)
            else:
                tensor.normal_(0, 0.2)
    return module.eval()
