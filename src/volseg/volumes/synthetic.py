"""A synthetic scene of ellipsoids that can be evaluated on any box of voxels, each box by itself.

A voxel's value depends only on its global index: shapes are tested point by point, the blur is a sum in one fixed
order over a margin, the bias field is a product of whole-axis tables, and the noise comes from a counter-based
generator keyed by the place. So any way of cutting the volume gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Self

import numpy as np

from volseg.errors import ConfigError
from volseg.geometry import Box, Triple
from volseg.volumes.gaussian import blur_axis, gaussian_kernel
from volseg.volumes.noise import normal_noise

RADII = (0.12, 0.30)  # semi-axes as a fraction of the volume's sides
CONTRAST = 2.0  # intensity from one class to the next
PLACEMENT_TRIES = 64  # places tried before an ellipsoid is made smaller
PLACEMENT_ROUNDS = 40  # times it is made smaller before the scene counts as full

_Vector = tuple[float, float, float]
_Matrix = tuple[_Vector, _Vector, _Vector]


@dataclass(frozen=True)
class Ellipsoid:
    """The points p (voxels, D, H, W) with ``|matrix (p - centre)| <= 1``; `half_extents` is its bounding box."""

    label: int
    centre: _Vector
    matrix: _Matrix
    half_extents: _Vector

    @classmethod
    def placed(cls, label: int, centre: _Vector, radii: _Vector, rotation: _Matrix, shape: Triple) -> Self:
        """An ellipsoid given in the unit cube (`centre`, `radii` as fractions, rotated there), scaled to `shape`.

        Scaling an ellipsoid by the sides gives an ellipsoid, so thin volumes get shapes as thin as themselves.
        """
        rows = [tuple(rotation[axis][i] / (radii[axis] * shape[i]) for i in range(3)) for axis in range(3)]
        extents = [shape[i] * sum((rotation[axis][i] * radii[axis]) ** 2 for axis in range(3)) ** 0.5 for i in range(3)]
        voxels = [c * n - 0.5 for c, n in zip(centre, shape, strict=True)]
        return cls(label, _vector(voxels), (_vector(rows[0]), _vector(rows[1]), _vector(rows[2])), _vector(extents))

    @property
    def centre_voxel(self) -> Triple:
        """The voxel nearest to the centre."""
        d, h, w = (round(c) for c in self.centre)
        return d, h, w

    @property
    def bounds(self) -> Box:
        """A box that holds every voxel of it."""
        start = [int(np.floor(c - e)) for c, e in zip(self.centre, self.half_extents, strict=True)]
        stop = [int(np.ceil(c + e)) + 1 for c, e in zip(self.centre, self.half_extents, strict=True)]
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def inside(self, box: Box) -> np.ndarray:
        """Which voxels of `box` it covers: bool, of the box's shape."""
        z, y, x = (
            np.arange(a, b, dtype=np.float64) - c for a, b, c in zip(box.start, box.stop, self.centre, strict=True)
        )
        squared = np.zeros(box.shape)
        for along_d, along_h, along_w in self.matrix:  # spelled out: a BLAS product's bits depend on its size
            term = (along_d * z)[:, None, None] + ((along_h * y)[:, None] + (along_w * x)[None, :])[None]
            squared += term * term
        return np.asarray(squared <= 1.0)

    def covers(self, voxel: Triple) -> bool:
        """Whether it covers one voxel."""
        return bool(self.inside(Box(voxel, (voxel[0] + 1, voxel[1] + 1, voxel[2] + 1))).item())


@dataclass(frozen=True)
class Scene:
    """Ellipsoids on a dark ground, imaged with a blur, a shading field and noise. Later ellipsoids cover earlier ones.

    shape       (D, H, W) of the volume it is cut to
    intensity   by label; `intensity[0]` is the ground
    blur        sigma of the Gaussian point spread, voxels; 0 is none
    bias        largest relative deviation of the multiplicative shading; 0 is none
    noise       standard deviation of the white Gaussian noise
    """

    shape: Triple
    ellipsoids: tuple[Ellipsoid, ...]
    intensity: tuple[float, ...]
    blur: float
    bias: float
    noise: float
    bias_phases: _Vector
    noise_key: tuple[int, int]

    @classmethod
    def random(
        cls, shape: Triple, *, seed: int, case: int, ellipsoids: tuple[int, int] = (1, 6), classes: int = 2,
        noise: float = 0.2, blur: float = 0.7, bias: float = 0.15,
    ) -> Self:  # fmt: skip
        """Case `case` of the data set `seed`: the same arguments give the same scene, whatever the other cases.

        The number of ellipsoids is uniform over the inclusive range `ellipsoids`; every one of `classes` labels is
        there where the number allows. Semi-axes are `RADII` of the sides, at random rotations.

        Raises ConfigError for arguments out of range or more ellipsoids than the volume can hold.
        """
        _check(shape, seed, case, ellipsoids, classes, noise, blur, bias)
        geometry, noise_stream = np.random.SeedSequence([seed, case]).spawn(2)
        rng = np.random.Generator(np.random.Philox(geometry))
        count = int(rng.integers(ellipsoids[0], ellipsoids[1] + 1))
        labels = [int(k) + 1 for k in rng.permutation(classes)][:count]
        labels += [int(k) for k in rng.integers(1, classes + 1, size=count - len(labels))]
        placed: list[Ellipsoid] = []
        for label in labels:
            placed.append(_place(rng, label, shape, placed))
        phases = rng.uniform(0.0, 2.0 * pi, size=3)
        key = noise_stream.generate_state(2, np.uint64)
        return cls(
            shape, tuple(placed), class_intensities(classes), blur, bias, noise, _vector(phases),
            (int(key[0]), int(key[1])),
        )  # fmt: skip

    def render(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """(image float32, labels uint8) of `box`, bit for bit what cutting it from the whole volume gives."""
        return self.render_image(box), self.render_labels(box)

    def render_labels(self, box: Box) -> np.ndarray:
        """Labels of `box`, uint8; it may reach beyond the volume, where the ellipsoids simply go on."""
        labels = np.zeros(box.shape, dtype=np.uint8)
        for ellipsoid in self.ellipsoids:
            common = box.intersect(ellipsoid.bounds)
            if common.size:
                view = labels[common.relative_to(box).slices]
                view[ellipsoid.inside(common)] = ellipsoid.label
        return labels

    def render_image(self, box: Box) -> np.ndarray:
        """Intensities of `box`, float32."""
        kernel = gaussian_kernel(self.blur)
        margin = len(kernel) // 2
        wide = Box(
            (box.start[0] - margin, box.start[1] - margin, box.start[2] - margin),
            (box.stop[0] + margin, box.stop[1] + margin, box.stop[2] + margin),
        )
        image: np.ndarray = np.asarray(self.intensity, dtype=np.float32)[self.render_labels(wide)]
        for axis in range(3):
            image = blur_axis(image, kernel, axis)
        if self.bias:
            image *= self._shading(box)
        if self.noise:
            image += np.float32(self.noise) * normal_noise(box, self.noise_key)
        return image

    def _shading(self, box: Box) -> np.ndarray:
        """1 + bias x a mean of low-order cosines over the volume: smooth, and exactly separable."""
        tables = []
        for axis, (n, phase) in enumerate(zip(self.shape, self.bias_phases, strict=True)):
            wave = [cos(pi * (i + 0.5) / n + phase) for i in range(box.start[axis], box.stop[axis])]
            tables.append(np.asarray(wave, dtype=np.float32))
        z, y, x = tables
        field = z[:, None, None] * np.float32(1 / 3) + (y[:, None] + x[None, :])[None] * np.float32(1 / 3)
        return np.asarray(np.float32(1.0) + np.float32(self.bias) * field)


def class_intensities(classes: int) -> tuple[float, ...]:
    """Ground 0, then 2, -2, 4, -4, ...: `CONTRAST` apart, ten times the default noise.

    Two classes lie on either side of the ground, so that the blurred edge of one does not look like the other. The
    contrast also keeps noise apart from a class in a case of one ellipsoid, once intensities are scaled case by case.
    """
    return (0.0, *(CONTRAST * ((k + 1) // 2) * (1 if k % 2 else -1) for k in range(1, classes + 1)))


def _place(rng: np.random.Generator, label: int, shape: Triple, before: list[Ellipsoid]) -> Ellipsoid:
    """A random ellipsoid, mostly inside the volume, that hides no earlier one's centre voxel."""
    scale = 1.0
    for _ in range(PLACEMENT_ROUNDS):
        for _ in range(PLACEMENT_TRIES):
            radii = _vector(np.maximum(scale * rng.uniform(*RADII, size=3), [1.0 / n for n in shape]))
            rotation = _random_rotation(rng)
            extents = [sum((rotation[a][i] * radii[a]) ** 2 for a in range(3)) ** 0.5 for i in range(3)]
            # Up to a tenth of its extent may stick out: a volume's face cuts through organs as well.
            low = [min(0.9 * e, 0.5) for e in extents]
            centre = _vector([a + rng.uniform() * (1.0 - 2.0 * a) for a in low])
            candidate = Ellipsoid.placed(label, centre, radii, rotation, shape)
            voxel = candidate.centre_voxel
            if all(voxel != e.centre_voxel and not candidate.covers(e.centre_voxel) for e in before):
                return candidate
        scale *= 0.85
    raise ConfigError(
        f"{len(before) + 1} ellipsoids do not fit into {shape[0]}x{shape[1]}x{shape[2]} voxels; "
        "give fewer ellipsoids or a larger shape"
    )


def _random_rotation(rng: np.random.Generator) -> _Matrix:
    """A rotation drawn uniformly: that of a normalised Gaussian quaternion (Shoemake, Graphics Gems III)."""
    a, b, c, d = (float(q) for q in rng.standard_normal(4))
    length = (a * a + b * b + c * c + d * d) ** 0.5
    a, b, c, d = a / length, b / length, c / length, d / length
    return (
        (1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)),
        (2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)),
        (2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)),
    )


def _vector(values: object) -> _Vector:
    d, h, w = (float(v) for v in values)  # type: ignore[attr-defined]
    return d, h, w


def _check(
    shape: Triple,
    seed: int,
    case: int,
    ellipsoids: tuple[int, int],
    classes: int,
    noise: float,
    blur: float,
    bias: float,
) -> None:
    if min(shape) < 4:
        raise ConfigError(f"shape {'x'.join(map(str, shape))}: every side needs at least 4 voxels to hold an ellipsoid")
    if seed < 0 or case < 0:
        raise ConfigError(f"seed {seed}, case {case}: both must be 0 or more")
    if not 1 <= ellipsoids[0] <= ellipsoids[1]:
        raise ConfigError(f"ellipsoids {ellipsoids[0]}:{ellipsoids[1]}: give FEWEST:MOST with 1 <= FEWEST <= MOST")
    if not 1 <= classes <= 255:
        raise ConfigError(f"classes {classes}: the limit is 1 to 255 (labels are stored in 8 bits)")
    for name, value, limit in (("noise", noise, 100.0), ("blur", blur, 8.0), ("bias", bias, 0.9)):
        if not 0.0 <= value <= limit:
            raise ConfigError(f"{name} {value}: give a value from 0 to {limit:g}")
