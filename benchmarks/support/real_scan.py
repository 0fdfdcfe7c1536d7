"""Data sets to train on that are made of one real scan."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from volseg.volumes.dataset import write_dataset_json


def one_scan(source: Path, folder: Path) -> None:
    """A data set of a scan and its copy, in the order in which `splits_final.json` holds out the copy."""
    from scipy.ndimage import affine_transform

    image, label = nib.load(source / "ct.nii.gz"), nib.load(source / "labels.nii.gz")
    values, classes = np.asarray(image.dataobj, np.float32), np.asarray(label.dataobj).astype(np.uint8)
    angle, shrink = np.deg2rad(8), 1 / 0.93
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) * shrink
    middle = (np.array(values.shape) - 1) / 2
    offset = middle - turn @ middle
    turned = affine_transform(values, turn, offset, order=1, mode="nearest")
    turned += np.random.default_rng(0).normal(0, 15, turned.shape)
    copies = {
        "scan": (values, classes),
        "turned": (turned, affine_transform(classes, turn, offset, order=0, mode="constant")),
    }
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case, (voxels, mask) in copies.items():
        nib.save(nib.Nifti1Image(voxels.astype(np.int16), image.affine), folder / f"imagesTr/{case}_0000.nii.gz")
        nib.save(nib.Nifti1Image(mask, image.affine), folder / f"labelsTr/{case}.nii.gz")
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["scan"], "val": ["turned"]}] * 2))
    labels = {"background": 0} | {f"class {n}": n for n in range(1, int(classes.max()) + 1)}
    write_dataset_json(folder, channel_names=("CT",), labels=labels, cases=2, file_ending=".nii.gz")
