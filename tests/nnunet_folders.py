"""nnU-Net result folders of a few hundred weights, written by hand as its trainer writes them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volseg.models.described import DescribedModule
from volseg.networks.nnunet import Architecture, nnunet
from volseg.networks.nnunet_plan import architecture_of, configuration_of

FEATURES = (4, 8, 12)
KERNELS = ((1, 3, 3), (3, 3, 3), (3, 3, 3))
STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
CT = {"mean": 20.0, "std": 150.0, "percentile_00_5": -200.0, "percentile_99_5": 300.0, "min": -900, "max": 1200}
LABELS = {"background": 0, "liver": 1, "tumour": 2}


def architecture(name: str = "PlainConvUNet", **changes: Any) -> dict[str, Any]:
    """The `architecture` of a newer plan."""
    plain = name == "PlainConvUNet"
    arguments = {
        "n_stages": len(FEATURES), "features_per_stage": list(FEATURES), "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [list(kernel) for kernel in KERNELS], "strides": [list(stride) for stride in STRIDES],
        "n_conv_per_stage" if plain else "n_blocks_per_stage": [2, 2, 2] if plain else [1, 2, 2],
        "n_conv_per_stage_decoder": [2, 2] if plain else [1, 1], "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": arguments | changes,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def old_architecture() -> dict[str, Any]:
    """The same network as an older plan describes it."""
    return {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 12,
        "conv_kernel_sizes": [list(kernel) for kernel in KERNELS],
        "pool_op_kernel_sizes": [list(stride) for stride in STRIDES],
        "n_conv_per_stage_encoder": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2], "num_pool_per_axis": [1, 2, 2],
    }  # fmt: skip


def plans(network: dict[str, Any] | None = None, channels: int = 1, **changes: Any) -> dict[str, Any]:
    """A plans.json with the configurations 3d_fullres, 2d, 3d_lowres and its cascade; `changes` are of the first."""
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [8, 16, 16], "median_image_size_in_voxels": [20.0, 40.0, 40.0], "spacing": [3.0, 1.0, 0.9],
        "normalization_schemes": ["CTNormalization"] * channels, "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    }  # fmt: skip
    full |= {"architecture": architecture()} if network is None else network
    configurations = {
        "3d_fullres": full | changes,
        "2d": {"inherits_from": "3d_fullres", "patch_size": [16, 16]},
        "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [4.0, 2.0, 2.0], "next_stage": "3d_cascade_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    return {
        "dataset_name": "Dataset007_Tiny", "plans_name": "nnUNetPlans", "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2], "configurations": configurations, "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(n): CT for n in range(channels)},
    }  # fmt: skip


def dataset(labels: dict[str, Any] | None = None, channels: tuple[str, ...] = ("CT",), **more: Any) -> dict[str, Any]:
    """A dataset.json."""
    names = {str(n): name for n, name in enumerate(channels)}
    return {"channel_names": names, "labels": labels or LABELS, "file_ending": ".nii.gz", "numTraining": 3, **more}


def as_trained(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with its tensors under all names that modules of nnU-Net list them by."""
    everything = dict(weights)
    for name, tensor in weights.items():
        for part, number in (("conv", 0), ("norm", 1)):
            for leaf in ("weight", "bias"):
                if name.endswith(f".{part}.{leaf}"):
                    everything[f"{name.removesuffix(f'.{part}.{leaf}')}.all_modules.{number}.{leaf}"] = tensor
    repeated = {f"decoder.{name}": tensor for name, tensor in everything.items() if name.startswith("encoder.")}
    return everything | repeated


def checkpoint(weights: dict[str, Tensor], configuration: str = "3d_fullres", **changes: Any) -> dict[str, Any]:
    """What nnU-Net's trainer saves."""
    values = {
        "network_weights": as_trained(weights), "optimizer_state": {"state": {}, "param_groups": []},
        "grad_scaler_state": None, "logging": {"mean_fg_dice": [np.float64(0.5)], "val_losses": [np.float32(-0.25)]},
        "_best_ema": np.float64(0.75), "current_epoch": 1000,
        "init_args": {"configuration": configuration, "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": (0, 1, 2),
    }  # fmt: skip
    return values | changes


def random_weights(of: Architecture, channels: int, classes: int, seed: int) -> dict[str, Tensor]:
    """Weights of a network of nnU-Net under its own names."""
    torch.manual_seed(seed)
    module = DescribedModule(nnunet(of, channels, classes))
    for parameter in module.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return module.state_dict()


def result_folder(
    folder: Path, of_plans: dict[str, Any] | None = None, of_dataset: dict[str, Any] | None = None, *, classes: int = 3,
    folds: tuple[str, ...] = ("0",), configuration: str = "3d_fullres", kept: str = "final", **changes: Any,
) -> Path:  # fmt: skip
    """The folder of a trained configuration in that of a data set; `changes` are of each checkpoint.

    The weights of fold n are those of `random_weights` with the seed n.
    """
    of_plans, of_dataset = of_plans or plans(), of_dataset or dataset()
    trained = folder / "Dataset007_Tiny" / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    trained.mkdir(parents=True)
    (trained / "plans.json").write_text(json.dumps(of_plans))
    (trained / "dataset.json").write_text(json.dumps(of_dataset))
    of = architecture_of(configuration_of(of_plans, "3d_fullres", "plans"), "plans")
    channels = len(of_dataset["channel_names"])
    for fold in folds:
        weights = random_weights(of, channels, classes, 0 if fold == "all" else int(fold))
        (trained / f"fold_{fold}").mkdir()
        values = checkpoint(weights, configuration, **changes)
        torch.save(values, trained / f"fold_{fold}" / f"checkpoint_{kept}.pth")
    return trained


def zipped(folder: Path, target: Path) -> Path:
    """A folder's files in a zip, under the folder's own name, as nnU-Net exports them."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder.parent))
    return target
