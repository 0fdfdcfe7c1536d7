"""The random numbers of one change of one case: the same on every rank, whoever asks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from volseg.config import AugmentationConfig
from volseg.geometry import Box, Triple
from volseg.volumes.augmentation.appearance import Appearance
from volseg.volumes.augmentation.elastic import Elastic, Vector
from volseg.volumes.augmentation.spatial import SpatialMap, spatial_map
from volseg.volumes.noise import Key


@dataclass(frozen=True)
class Draw:
    """How one view of a volume is made.

    space     where its voxels come from
    channels  what becomes of the values, by channel
    """

    space: SpatialMap
    channels: tuple[Appearance, ...]

    @property
    def untouched(self) -> bool:
        """Whether the view is the volume as it is."""
        start, stop = self.space.source_box(Box((0, 0, 0), (1, 1, 1))).start, self.space.view
        return (
            self.space.whole_voxels and self.space.volume == stop and start == (0, 0, 0)
            and all(channel == Appearance() for channel in self.channels)
        )  # fmt: skip

    def reach(self, box: Box) -> Box:
        """The voxels of the view that those of `box` are made from: more than those, where neighbours mix."""
        boxes = [channel.reach(box, self.space.view) for channel in self.channels]
        d, h, w = (min(b.start[n] for b in boxes) for n in range(3))
        e, i, x = (max(b.stop[n] for b in boxes) for n in range(3))
        return Box((d, h, w), (e, i, x))


def draw(
    settings: AugmentationConfig, rng: np.random.Generator, volume: Triple, spacing: Vector, view: Box, channels: int
) -> Draw:
    """A view of a volume of so many channels. Each number is drawn whether it is used or not: settings of one change
    leave the others as they are.

    view  the box of the volume that it shows; it is turned and scaled about the middle of it
    """
    size: Triple = view.shape
    d, h, w = ((a + b - 1) / 2 for a, b in zip(view.start, view.stop, strict=True))
    flips = [bool(u < p) for u, p in zip(rng.random(3), settings.flip, strict=True)]
    turned, angles = rng.random() < settings.rotate, rng.uniform(-1, 1, 3) * settings.rotate_degrees
    scaled, scale = rng.random() < settings.scale, _around_one(rng, settings.scale_range)
    bent, most, key = rng.random() < settings.elastic, rng.random() * settings.elastic_mm, _key(rng)
    elastic = None
    if bent and most > 0:
        elastic = Elastic(
            _vector([most / side for side in spacing]),
            _vector([max(1.0, settings.elastic_grid_mm / side) for side in spacing]),
            key,
        )
    space = spatial_map(
        volume, size, (d, h, w), spacing, flips=(flips[0], flips[1], flips[2]),
        degrees=_vector(angles) if turned else (0.0, 0.0, 0.0), scale=scale if scaled else 1.0, elastic=elastic,
    )  # fmt: skip
    return Draw(space, tuple(_appearance(settings, rng) for _ in range(channels)))


def _appearance(settings: AugmentationConfig, rng: np.random.Generator) -> Appearance:
    chances = rng.random(7)
    noise, key = rng.random() * settings.noise_std, _key(rng)
    blur, resolution = (rng.uniform(low, high) for low, high in (settings.blur_range, settings.low_resolution_range))
    brightness, contrast = _around_one(rng, settings.brightness_range), _around_one(rng, settings.contrast_range)
    inverted, gamma = _around_one(rng, settings.gamma_range), _around_one(rng, settings.gamma_range)
    return Appearance(
        noise=float(noise) if chances[0] < settings.noise else 0.0,
        noise_key=key if chances[0] < settings.noise else (0, 0),
        blur=float(blur) if chances[1] < settings.blur else 0.0,
        brightness=brightness if chances[2] < settings.brightness else 1.0,
        contrast=contrast if chances[3] < settings.contrast else 1.0,
        resolution=float(resolution) if chances[4] < settings.low_resolution else 1.0,
        gamma_inverted=inverted if chances[5] < settings.gamma_inverted else 1.0,
        gamma=gamma if chances[6] < settings.gamma else 1.0,
    )


def _around_one(rng: np.random.Generator, bounds: tuple[float, ...]) -> float:
    """As often below 1 as above, as nnU-Net draws factors; evenly where 1 is not within the bounds."""
    (low, high), (side, share) = bounds, rng.random(2)
    if low < 1 < high:
        low, high = (low, 1.0) if side < 0.5 else (1.0, high)
    return float(low + (high - low) * share)


def _key(rng: np.random.Generator) -> Key:
    a, b = rng.integers(2**63, size=2)
    return int(a), int(b)


def _vector(values: object) -> Vector:
    d, h, w = (float(v) for v in values)  # type: ignore[attr-defined]
    return d, h, w
