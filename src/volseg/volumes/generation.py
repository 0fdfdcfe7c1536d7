"""Synthetic data sets on disk: random scenes of ellipsoids in nnU-Net's layout."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.errors import ConfigError, VolumeError
from volseg.events import Listener, Progress, ignore
from volseg.files import flush_to_disk
from volseg.geometry import Box, Triple
from volseg.volumes.dataset import DESCRIPTION, IMAGES, LABELS, image_name, write_dataset_json
from volseg.volumes.output import Unit
from volseg.volumes.synthetic import Scene
from volseg.volumes.trial import check_room
from volseg.volumes.volume import Space
from volseg.volumes.writing import write_volume
from volseg.volumes.zarr.label_image import foreign_entries, label_images

Format = Literal["nifti", "zarr"]
VOXEL_BYTES = 2  # at least, compressed: noise in float32, and labels
FILE_ENDING: dict[str, str] = {"nifti": ".nii.gz", "zarr": ".zarr"}
CHANNEL = "synthetic"
_CASE = re.compile(r"ellipsoids_\d{3,}(_0000)?(\.nii\.gz|\.zarr)")


@dataclass(frozen=True)
class Recipe:
    """What a synthetic data set is made of; see `Scene.random` for the parts of a scene.

    shape        (D, H, W) voxels of every case
    cases        how many
    ellipsoids   fewest and most in a case, inclusive
    classes      foreground labels
    noise        standard deviation; neighbouring classes are 2 apart
    blur         sigma of the point spread in voxels
    bias         largest relative shading
    spacing      voxel sides in mm, D, H, W
    """

    shape: Triple = (64, 64, 64)
    cases: int = 8
    ellipsoids: tuple[int, int] = (2, 6)
    classes: int = 2
    noise: float = 0.2
    blur: float = 0.7
    bias: float = 0.15
    seed: int = 0
    spacing: tuple[float, float, float] = field(default=(1.0, 1.0, 1.0))

    def scene(self, case: int) -> Scene:
        """Case number `case`. Raises ConfigError where the recipe is out of range."""
        return Scene.random(
            self.shape,
            seed=self.seed,
            case=case,
            ellipsoids=self.ellipsoids,
            classes=self.classes,
            noise=self.noise,
            blur=self.blur,
            bias=self.bias,
        )

    @property
    def space(self) -> Space:
        """The grid of every case: its first voxel at the origin, RAS+."""
        d, h, w = self.spacing
        return Space(self.shape, np.diag([w, h, d, 1.0]))


def generate_dataset(
    out: str | Path,
    recipe: Recipe,
    communicator: Communicator,
    *,
    format: Format = "nifti",
    overwrite: bool = False,
    listen: Listener = ignore,
) -> None:
    """Write the data set `recipe` into the folder `out`. Collective; the same bytes on any number of ranks.

    The folder appears when it is complete: it is written beside `out` under a hidden name and renamed by the root.

    Raises ConfigError for a recipe out of range; VolumeError where `out` is there already (with `overwrite`: unless
    all that it holds is a data set that this wrote, which is replaced) or cannot be written.
    """
    out = Path(out)
    if recipe.cases < 1:
        raise ConfigError(f"cases {recipe.cases}: give 1 or more")
    scenes = [recipe.scene(case) for case in range(recipe.cases)]  # every argument is checked before a file is made
    partial = _begin(out, recipe, communicator, overwrite)
    try:
        _write_cases(partial, recipe, scenes, FILE_ENDING[format], communicator, listen)
        communicator.on_root(lambda: _finish(partial, out))
    except BaseException:
        if communicator.is_root:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_cases(
    folder: Path, recipe: Recipe, scenes: Sequence[Scene], ending: str, communicator: Communicator, listen: Listener
) -> None:
    digits = max(3, len(str(len(scenes) - 1)))
    listen(Progress("generate", 0, len(scenes), "cases"))
    for number, scene in enumerate(scenes):
        name = f"ellipsoids_{number:0{digits}d}"
        files = (
            (folder / IMAGES / image_name(name, 0, ending), np.dtype(np.float32), scene.render_image),
            (folder / LABELS / f"{name}{ending}", np.dtype(np.uint8), scene.render_labels),
        )
        for path, dtype, render in files:
            write_volume(path, recipe.space, dtype, _producer(render, communicator), communicator)
        listen(Progress("generate", number + 1, len(scenes), "cases"))
    labels = {"background": 0} | {f"class_{k}": k for k in range(1, recipe.classes + 1)}
    communicator.on_root(
        lambda: write_dataset_json(
            folder, channel_names=(CHANNEL,), labels=labels, cases=len(scenes), file_ending=ending
        ),
    )


def _producer(
    render: Callable[[Box], np.ndarray], communicator: Communicator
) -> Callable[[list[Unit | None]], np.ndarray | None]:
    """Each rank renders its own unit; nothing needs to be exchanged."""

    def produce(units: list[Unit | None]) -> np.ndarray | None:
        unit = units[communicator.rank]
        return None if unit is None else render(unit.box)

    return produce


def _begin(out: Path, recipe: Recipe, communicator: Communicator, overwrite: bool) -> Path:
    """The hidden folder to write into, made by the root."""
    partial = out.with_name(communicator.on_root(lambda: f".{out.name}.{secrets.token_hex(4)}.partial"))

    def make() -> None:
        _check_target(out, overwrite)
        there = next(parent for parent in out.absolute().parents if parent.is_dir())
        check_room({there / out.name: recipe.cases * math.prod(recipe.shape) * VOXEL_BYTES})
        try:
            for folder in (IMAGES, LABELS):
                (partial / folder).mkdir(parents=True)
        except OSError as error:
            raise VolumeError(f"{out}: cannot be made: {error.strerror}; choose a folder you can write to") from error

    communicator.on_root(make)
    return partial


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir() or ((out / DESCRIPTION).exists() and not (out / DESCRIPTION).is_file()):
        raise VolumeError(f"{out}: is there already and no folder of a data set: it is left alone; give another name")
    foreign = sorted(str(path.relative_to(out)) for path in _foreign(out))
    if foreign:
        some = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise VolumeError(
            f"{out}: holds {some}, which `volseg generate` did not write, so it is left alone; give another name, or "
            "move that away"
        )
    if not overwrite:
        raise VolumeError(f"{out}: is there already; give another name, or --overwrite to replace it")


def _foreign(out: Path) -> Iterator[Path]:
    """What a folder holds that no data set of `generate_dataset` does."""
    for path in out.iterdir():
        if path.name in (IMAGES, LABELS) and path.is_dir() and not path.is_symlink():
            for file in path.iterdir():
                if not _CASE.fullmatch(file.name):
                    yield file
                elif file.is_dir():
                    yield from (file / name for name in (*foreign_entries(file), *label_images(file)))
        elif path.name != DESCRIPTION or not _describes_ours(path):
            yield path


def _describes_ours(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return list(content["channel_names"].values()) == [CHANNEL]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _finish(partial: Path, out: Path) -> None:
    """Give the folder its name; what was there is moved aside first, so that a failure loses neither."""
    for path in (partial / IMAGES, partial / LABELS, partial):
        flush_to_disk(path)
    aside = out.with_name(f"{partial.name}.old")
    replaced = out.exists()
    try:
        if replaced:
            os.replace(out, aside)
        os.replace(partial, out)
    except OSError as error:
        if replaced and aside.exists() and not out.exists():
            os.replace(aside, out)
        raise VolumeError(f"{out}: cannot be written: {error.strerror}; choose a folder you can write to") from error
    if replaced:
        shutil.rmtree(aside, ignore_errors=True)
