"""Changes of the normalised image: noise, blur, brightness, contrast, a coarser scan, gamma, in nnU-Net's order.

What a change needs to know of the volume (its mean, its least and largest value) is that of the volume as it is stored,
taken through the changes of values before it (`Distribution`): no rank has to ask another one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from volseg.geometry import Box, Triple
from volseg.volumes.gaussian import blur_axis, gaussian_kernel
from volseg.volumes.interpolation import between
from volseg.volumes.noise import Key, normal_noise

LEVELS = 2048
"""Values that are told apart where the distribution of a volume is kept."""


@dataclass(frozen=True)
class Distribution:
    """How often a channel of a volume has which value, normalised.

    values  float64, rising
    counts  int64
    """

    values: np.ndarray
    counts: np.ndarray

    @property
    def mean(self) -> float:
        """Mean value."""
        return float((self.values * self.counts).sum() / self.counts.sum())

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        return float(np.sqrt(((self.values - self.mean) ** 2 * self.counts).sum() / self.counts.sum()))


def distribution(values: np.ndarray, counts: np.ndarray) -> Distribution:
    """Of all values, in at most `LEVELS` groups, so that little is kept of a case; the least and the largest stay.

    values  float64, rising
    counts  int64, none of them 0
    """
    step = -(-len(values) // LEVELS)
    starts = np.arange(0, len(values), step)
    groups = np.add.reduceat(counts, starts)
    means = np.add.reduceat(values * counts, starts) / groups
    means[0], means[-1] = values[0], values[-1]
    return Distribution(means, groups)


@dataclass(frozen=True)
class Appearance:
    """The changes of one channel; each has the value that changes nothing as its default.

    noise           standard deviation
    blur            sigma, voxels
    brightness      factor
    contrast        factor of the distance from the mean
    resolution      share of the resolution
    gamma_inverted  exponent, of the negative image
    gamma           exponent
    """

    noise: float = 0.0
    noise_key: Key = (0, 0)
    blur: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    resolution: float = 1.0
    gamma_inverted: float = 1.0
    gamma: float = 1.0

    @property
    def needs_distribution(self) -> bool:
        """Whether `apply` has to know the volume's values."""
        return self.contrast != 1 or self.gamma != 1 or self.gamma_inverted != 1

    def reach(self, box: Box, view: Triple) -> Box:
        """The voxels of the view that the voxels of `box` are made from."""
        return self._blurred_from(self._coarsened_from(box, view), view)

    def _coarsened_from(self, box: Box, view: Triple) -> Box:
        if self.resolution == 1 or not box.size:
            return box
        ends = [
            (int(lower[0]), int(upper[-1]) + 1)
            for lower, upper, _ in (
                _coarse_axis(n, self.resolution, a, b) for n, a, b in zip(view, box.start, box.stop, strict=True)
            )
        ]
        return _grown(box, [(min(a, x), max(b, y)) for (a, b), x, y in zip(ends, box.start, box.stop, strict=True)])

    def _blurred_from(self, box: Box, view: Triple) -> Box:
        if self.blur == 0 or not box.size:
            return box
        reach = len(gaussian_kernel(self.blur)) // 2
        return _grown(
            box, [(max(0, a - reach), min(n, b + reach)) for n, a, b in zip(view, box.start, box.stop, strict=True)]
        )

    def apply(self, image: np.ndarray, held: Box, box: Box, view: Triple, known: Distribution | None) -> np.ndarray:
        """The changed voxels of `box`; beyond the view its outermost voxels go on.

        image  [d, h, w] float32 of `held`, which has `reach` of the box; it may be changed
        known  of the volume as it is stored; None where nothing needs it
        """
        if self.noise > 0:
            image += np.float32(self.noise) * normal_noise(held, self.noise_key)
        middle = self._coarsened_from(box, view)
        if self.blur > 0:
            source = self._blurred_from(middle, view)
            image = _blurred(image[source.relative_to(held).slices], source, middle, gaussian_kernel(self.blur))
            held = middle
        image = np.ascontiguousarray(image[middle.relative_to(held).slices])
        if self.brightness != 1:
            image *= np.float32(self.brightness)
            known = known and Distribution(known.values * self.brightness, known.counts)
        if self.contrast != 1:
            assert known is not None
            image, known = _contrasted(image, known, self.contrast)
        if self.resolution != 1:
            image = _coarsened(image, middle, box, view, self.resolution)
        if self.gamma_inverted != 1:
            assert known is not None
            negative = Distribution(-known.values[::-1], known.counts[::-1])
            image, changed = _with_gamma(np.negative(image, out=image), negative, self.gamma_inverted)
            np.negative(image, out=image)
            known = Distribution(-changed.values[::-1], changed.counts[::-1])
        if self.gamma != 1:
            assert known is not None
            image, known = _with_gamma(image, known, self.gamma)
        return image


def _grown(box: Box, ends: list[tuple[int, int]]) -> Box:
    (d, f), (h, i), (w, j) = ends
    return Box((d, h, w), (f, i, j))


def _blurred(image: np.ndarray, held: Box, box: Box, kernel: np.ndarray) -> np.ndarray:
    """`box` of the image of `held`; at the view's faces, where `held` ends early, the outermost voxels go on."""
    reach = len(kernel) // 2
    for axis in range(3):
        wanted = np.arange(box.start[axis] - reach, box.stop[axis] + reach) - held.start[axis]
        side = image.shape[axis]
        if wanted[0] < 0 or wanted[-1] >= side:
            image = image.take(np.clip(wanted, 0, side - 1), axis)
        image = blur_axis(image, kernel, axis)
    return image


def _contrasted(image: np.ndarray, known: Distribution, factor: float) -> tuple[np.ndarray, Distribution]:
    mean = known.mean
    image *= np.float32(factor)
    image += np.float32(mean * (1 - factor))
    return image, Distribution(known.values * factor + mean * (1 - factor), known.counts)


def _with_gamma(image: np.ndarray, known: Distribution, exponent: float) -> tuple[np.ndarray, Distribution]:
    """A power of the share between least and largest value; mean and deviation of the volume stay as they were."""
    least, extent = float(known.values[0]), float(known.values[-1] - known.values[0])
    if extent < 1e-7:
        return image, known
    changed = Distribution(np.power((known.values - least) / extent, exponent), known.counts)
    factor = known.deviation / max(changed.deviation, 1e-8)
    image -= np.float32(least)
    image *= np.float32(1 / extent)
    np.maximum(image, np.float32(0), out=image)
    power = np.power(image, np.float32(exponent))
    power -= np.float32(changed.mean)
    power *= np.float32(factor)
    power += np.float32(known.mean)
    return power, Distribution((changed.values - changed.mean) * factor + known.mean, known.counts)


def _coarse_axis(length: int, share: float, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of some voxels of an axis: the voxels whose values the coarse voxels before and after have, and the weight of the
    one after. A coarse voxel has the value of the voxel nearest to its centre."""
    count = max(1, round(length * share))
    place = (np.arange(start, stop, dtype=np.float64) + 0.5) * (count / length) - 0.5
    low = np.clip(np.floor(place), 0, count - 1)
    weight = np.clip(place - low, 0, 1).astype(np.float32)

    def sampled(coarse: np.ndarray) -> np.ndarray:
        return np.clip(np.floor((coarse + 0.5) * (length / count)), 0, length - 1).astype(np.int64)

    return sampled(low), sampled(np.minimum(low + 1, count - 1)), weight


def _coarsened(image: np.ndarray, held: Box, box: Box, view: Triple, share: float) -> np.ndarray:
    """Fewer voxels, each the value of the nearest, and linear interpolation between them."""
    for axis in range(3):
        lower, upper, weight = _coarse_axis(view[axis], share, box.start[axis], box.stop[axis])
        shape = tuple(-1 if n == axis else 1 for n in range(3))
        first = held.start[axis]
        image = between(image.take(lower - first, axis), image.take(upper - first, axis), weight.reshape(shape))
    return image
