"""Small worlds for end-to-end tests: data sets, models and scans of a few thousand voxels."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from volseg.config import Config, ModelConfig, TrainingConfig
from volseg.distributed.communicator import SerialCommunicator
from volseg.models.stored import WEIGHTS, ModelCard, save_tensors
from volseg.models.unet import UNet
from volseg.training.keeping import stored_checkpoints
from volseg.volumes.generation import Recipe, generate_dataset
from volseg.volumes.intensity import ChannelScheme, Normalization

SHAPE = (13, 18, 15)  # no side is a multiple of 4
MODEL = ModelConfig(base_channels=4, levels=2)
LABELS = {"background": 0, "class_1": 1, "class_2": 2}
SERIAL = SerialCommunicator()


def tiny_config(**training: object) -> Config:
    """A U-Net of 4, 8 and 16 channels, trained on all cases."""
    return Config(MODEL, TrainingConfig(**({"epochs": 2, "validation": 0} | training)))  # type: ignore[arg-type]


def tiny_dataset(folder: Path, *, cases: int = 2, shape: tuple[int, int, int] = SHAPE, format: str = "nifti") -> Path:
    """A generated data set; for one process."""
    generate_dataset(folder, Recipe(shape=shape, cases=cases, seed=3), SERIAL, format=format)  # type: ignore[arg-type]
    return folder


def untrained_run(
    run: Path, *, channels: tuple[str, ...] = ("CT",), classes: int = 3, seed: int = 0, activation: str = "leaky_relu"
) -> Path:
    """A run folder with random weights, as far as `segment` needs one."""
    torch.manual_seed(seed)
    model = UNet(replace(MODEL, activation=activation).for_data(len(channels), classes))
    fixed = Normalization(-200.0, 300.0, 20.0, 150.0)
    schemes = tuple(ChannelScheme(name, fixed if name == "CT" else None) for name in channels)
    labels = {"background": 0} | {f"class_{n}": n for n in range(1, classes)}
    run.mkdir()
    card = ModelCard(Config(model.config), labels, schemes, (1.0, 1.0, 1.0), 0)
    save_tensors(run / WEIGHTS, model.state_dict(), card)
    return run


def ct_like(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Smooth int16 blobs in the range of soft tissue, [D, H, W]."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 200, tuple(-(-n // 4) for n in shape))
    fine = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[: shape[0], : shape[1], : shape[2]]
    return (fine + rng.normal(0, 20, shape)).astype(np.int16)


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """[D, H, W] as a NIfTI file whose (i, j, k) are W, H, D, by nibabel."""
    nib.save(nib.Nifti1Image(array.T, np.eye(4) if affine is None else affine), path)
    return path


def losses(run: Path) -> np.ndarray:
    """The loss column of a run's log.csv."""
    with (run / "log.csv").open(newline="") as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def newest(run: Path) -> Path:
    """The newest checkpoint of a run."""
    return stored_checkpoints(run)[0]


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder and their names."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        if file.is_file():
            total.update(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


def listing(folder: Path) -> dict[str, str]:
    """Every path below `folder`, with a digest of its content: what must not change where nothing may be written."""
    return {
        str(path.relative_to(folder)): digest(path) if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def root_listings(communicator, *folders: Path) -> list[dict[str, str]]:
    """The listings as the root sees them, on every rank: once it has looked, it may go on and change the folders."""
    found = None
    if communicator.is_root:
        found = [listing(folder) for folder in folders]
    return communicator.broadcast(found)
