"""Small data sets as people have them: nnU-Net's and the Decathlon's folders, ingested volumes, planted faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

SIDES = (12, 10, 8)  # D, H, W
NAMES = {"background": 0, "liver": 1, "spleen": 2}
SPACING = (2.0, 1.0, 1.0)


def affine(spacing: tuple[float, float, float] = SPACING) -> np.ndarray:
    """RAS+, `spacing` along D, H, W."""
    return np.diag([*reversed(spacing), 1.0])


def labels(seed: int, shape: tuple[int, int, int] = SIDES) -> np.ndarray:
    """[D, H, W] uint8: a box of liver and one of spleen, somewhere."""
    found = np.zeros(shape, np.uint8)
    d, h, w = np.random.default_rng(seed).integers(0, 3, 3)
    found[d + 1 : d + 7, h + 1 : h + 6, w : w + 3] = 1
    found[d + 2 : d + 6, h + 1 : h + 5, w + 3 : w + 5] = 2
    return found


def image(seed: int, shape: tuple[int, int, int] = SIDES) -> np.ndarray:
    """[D, H, W] int16 in which both organs can be seen."""
    noise = np.random.default_rng([seed, 1]).normal(0, 20, shape)
    return (np.array([-100, 60, 140])[labels(seed, shape)] + noise).astype(np.int16)


def save(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> Path:
    """[D, H, W] or, several channels, [C, D, H, W] as a NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = (2, 1, 0) if array.ndim == 3 else (3, 2, 1, 0)
    nib.save(nib.Nifti1Image(array.transpose(order), affine(spacing)), path)
    return path


def describe(folder: Path, **description: object) -> Path:
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def nnunet_folder(folder: Path, cases: int = 3, channels: tuple[str, ...] = ("CT",)) -> Path:
    """imagesTr/case_N_0000.nii.gz, labelsTr/case_N.nii.gz, and a dataset.json with keys that volseg has no use for."""
    for seed in range(cases):
        for channel in range(len(channels)):
            save(folder / "imagesTr" / f"case_{seed}_{channel:04d}.nii.gz", image(seed) * (channel + 1))
        save(folder / "labelsTr" / f"case_{seed}.nii.gz", labels(seed))
    return describe(
        folder, channel_names={str(n): name for n, name in enumerate(channels)}, labels=NAMES, numTraining=cases,
        file_ending=".nii.gz", overwrite_image_reader_writer="SimpleITKIO",
    )  # fmt: skip


def decathlon_folder(folder: Path, cases: int = 3, modalities: tuple[str, ...] = ("CT",)) -> Path:
    """imagesTr/liver_N.nii.gz, 4-D where there are several modalities, as dataset.json lists them; macOS's files."""
    listed = []
    for seed in range(cases):
        channels = [image(seed) * (channel + 1) for channel in range(len(modalities))]
        array = channels[0] if len(channels) == 1 else np.stack(channels)
        save(folder / "imagesTr" / f"liver_{seed}.nii.gz", array)
        save(folder / "labelsTr" / f"liver_{seed}.nii.gz", labels(seed))
        (folder / "imagesTr" / f"._liver_{seed}.nii.gz").write_bytes(b"mac")
        listed.append({"image": f"./imagesTr/liver_{seed}.nii.gz", "label": f"./labelsTr/liver_{seed}.nii.gz"})
    return describe(
        folder, name="Liver", tensorImageSize="3D", modality={str(n): name for n, name in enumerate(modalities)},
        labels={str(value): name for name, value in NAMES.items()}, numTraining=cases, numTest=0, training=listed,
        test=[],
    )  # fmt: skip


def change(path: Path, edit) -> None:
    """Apply `edit` to the [W, H, D] voxels of a NIfTI file; it returns an array, or changes the one it gets."""
    stored = nib.load(path)
    array = np.asarray(stored.dataobj).copy()
    edited = edit(array)
    nib.save(nib.Nifti1Image(array if edited is None else edited, stored.affine), path)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def move(path: Path, by: float) -> None:
    """Put a NIfTI file's voxels elsewhere in space, in mm."""
    stored = nib.load(path)
    matrix = stored.affine.copy()
    matrix[0, 3] += by
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), matrix), path)


def copy_case(folder: Path, source: str, name: str) -> None:
    shutil.copy(folder / "imagesTr" / f"{source}_0000.nii.gz", folder / "imagesTr" / f"{name}_0000.nii.gz")
    shutil.copy(folder / "labelsTr" / f"{source}.nii.gz", folder / "labelsTr" / f"{name}.nii.gz")
