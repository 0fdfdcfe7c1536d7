"""The settings of augmentation: how often and how far training volumes are changed."""

from __future__ import annotations

from dataclasses import dataclass

from volseg.config.ranges import check_range
from volseg.errors import ConfigError

FOLDING = 0.4
"""Largest displacement, in distances of lattice points, at which a cubic B-spline field in three dimensions surely does
not fold space over (Choi and Lee, Injectivity conditions of 2D and 3D uniform cubic B-spline functions, 2000)."""

_PROBABILITIES = (
    "rotate", "scale", "elastic", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"
)  # fmt: skip


@dataclass(frozen=True)
class AugmentationConfig:
    """How training volumes are changed, a new way each step. 0: never.

    flip             probability of mirroring along each axis D, H, W; W is the patient's left and right
    rotate           probability of a rotation
    rotate_degrees   the largest angles of a rotation about the axes D, H, W
    scale            probability of making everything larger or smaller
    scale_range      smallest and largest factor of size
    elastic          probability of a smooth random deformation
    elastic_mm       the largest displacement of the deformation along an axis
    elastic_grid_mm  distance of the points whose displacements are random; between them the deformation is smooth
    noise            probability, for each channel, of Gaussian noise; this and what follows is of the normalised image
    noise_std        the largest standard deviation of the noise
    blur             probability, for each channel, of a Gaussian blur
    blur_range       smallest and largest sigma of the blur, in voxels
    brightness       probability, for each channel, of multiplying the values
    brightness_range smallest and largest factor of the values
    contrast         probability, for each channel, of multiplying the distance from the volume's mean
    contrast_range   smallest and largest factor of the distance from the mean
    low_resolution   probability, for each channel, of simulating a coarser scan
    low_resolution_range  smallest and largest resolution of that coarser scan, as a share of the resolution there is
    gamma            probability, for each channel, of a power of the values between the volume's least and largest
    gamma_inverted   probability, for each channel, of the same on the negative image
    gamma_range      smallest and largest exponent of gamma and gamma_inverted
    """

    flip: tuple[float, ...] = (0.0, 0.0, 0.0)
    rotate: float = 0.0
    rotate_degrees: tuple[float, ...] = (30.0, 30.0, 30.0)
    scale: float = 0.0
    scale_range: tuple[float, ...] = (0.7, 1.4)
    elastic: float = 0.0
    elastic_mm: float = 12.0
    elastic_grid_mm: float = 40.0
    noise: float = 0.0
    noise_std: float = 0.1
    blur: float = 0.0
    blur_range: tuple[float, ...] = (0.5, 1.0)
    brightness: float = 0.0
    brightness_range: tuple[float, ...] = (0.75, 1.25)
    contrast: float = 0.0
    contrast_range: tuple[float, ...] = (0.75, 1.25)
    low_resolution: float = 0.0
    low_resolution_range: tuple[float, ...] = (0.5, 1.0)
    gamma: float = 0.0
    gamma_inverted: float = 0.0
    gamma_range: tuple[float, ...] = (0.7, 1.5)

    @property
    def anything(self) -> bool:
        """Whether volumes are ever changed."""
        return max(self.flip) > 0 or any(getattr(self, name) > 0 for name in _PROBABILITIES)

    def check(self) -> None:
        """Raise ConfigError where a value is outside its range."""
        for name in _PROBABILITIES:
            check_range("augmentation", self, **{name: (0.0, 1.0)})
        check_range("augmentation", self, noise_std=(0.0, 10.0), elastic_mm=(0.0, 1e3), elastic_grid_mm=(1.0, 1e4))
        self._check_list("flip", 3, 0.0, 1.0)
        self._check_list("rotate_degrees", 3, 0.0, 180.0)
        for name, low, high in (
            ("scale_range", 0.25, 4.0),
            ("blur_range", 0.0, 4.0),
            ("brightness_range", 0.01, 100.0),
            ("contrast_range", 0.01, 100.0),
            ("low_resolution_range", 0.1, 1.0),
            ("gamma_range", 0.05, 20.0),
        ):
            self._check_list(name, 2, low, high)
            first, last = getattr(self, name)
            if first > last:
                raise ConfigError(f"augmentation.{name} = {[first, last]} falls; give the smaller one first")
        if self.elastic_mm > FOLDING * self.elastic_grid_mm:
            raise ConfigError(
                f"augmentation.elastic_mm = {self.elastic_mm:g} could fold the volume over: the limit is {FOLDING:g} "
                f"of elastic_grid_mm = {self.elastic_grid_mm:g}; make the one smaller or the other larger"
            )

    def _check_list(self, name: str, count: int, low: float, high: float) -> None:
        values = getattr(self, name)
        if len(values) != count or not all(low <= value <= high for value in values):
            raise ConfigError(f"augmentation.{name} = {list(values)} must be {count} numbers within {low:g}..{high:g}")


PRESETS = {
    "none": AugmentationConfig(),
    "light": AugmentationConfig(
        flip=(0.5, 0.5, 0.5), noise=0.1, brightness=0.15, contrast=0.15, gamma=0.3, gamma_inverted=0.1
    ),
    "full": AugmentationConfig(
        flip=(0.5, 0.5, 0.5), rotate=0.2, scale=0.2, elastic=0.2, noise=0.1, blur=0.2, brightness=0.15, contrast=0.15,
        low_resolution=0.25, gamma=0.3, gamma_inverted=0.1,
    ),
}  # fmt: skip
"""What ``--augment`` stands for. full: nnU-Net's, and elastic deformation; light: what leaves every voxel a voxel."""


def preset(name: str) -> AugmentationConfig:
    """Raises ConfigError where there is none of that name."""
    if name not in PRESETS:
        raise ConfigError(f"--augment {name}: give one of {', '.join(PRESETS)}")
    return PRESETS[name]
