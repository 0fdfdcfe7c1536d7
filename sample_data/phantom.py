"""A CT-like phantom of chest and upper belly, in Hounsfield units, with random anatomy.

Coordinates are DICOM's patient axes in mm about the body's middle: x to the left, y to the back, z to the head.
Arrays are D x H x W: z, y, x increasing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPE = (48, 64, 80)
SPACING = (6.5, 5.0, 5.0)  # mm, D, H, W
LABELS = {"background": 0, "lungs": 1, "spine": 2, "liver": 3, "spleen": 4}

AIR, LUNG, FAT, MUSCLE, SKIN = -1000.0, -820.0, -105.0, 55.0, 10.0
LIVER, SPLEEN, KIDNEY, HEART, AORTA, STOMACH = 112.0, 135.0, 175.0, 90.0, 190.0, 15.0
CORTICAL, SPONGY, DISC, CANAL, RIB, COUCH = 620.0, 260.0, 85.0, 20.0, 480.0, -250.0

NOISE_HU = 12.0
SUPERSAMPLING = 2  # along each axis; averaging gives edges their partial volumes


@dataclass(frozen=True)
class Points:
    """A grid of points: x, y, z in mm, broadcasting to D x H x W."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    @classmethod
    def grid(cls, refine: int) -> Points:
        """Centres of the phantom's voxels, each split into `refine` ** 3."""
        z, y, x = (
            ((np.arange(n * refine) + 0.5) / refine - n / 2) * step for n, step in zip(SHAPE, SPACING, strict=True)
        )
        return cls(x[None, None, :], y[None, :, None], z[:, None, None])

    def turned(self, degrees: float) -> Points:
        """The same points seen by a body turned about its long axis."""
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        return Points(c * self.x + s * self.y, c * self.y - s * self.x, self.z)

    def ellipsoid(self, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        """(p - centre)^2 in units of the radii: below 1 inside."""
        parts = zip((self.x, self.y, self.z), centre, radii, strict=True)
        return np.asarray(sum(((p - c) / r) ** 2 for p, c, r in parts))


@dataclass(frozen=True)
class Anatomy:
    """What differs from one body to the next; lengths in mm, `size` factors about 1."""

    width: float
    depth: float
    fat: float
    turn: float
    dome: float
    bend: float
    liver: tuple[float, float, float]
    liver_size: float
    spleen: tuple[float, float, float]
    spleen_size: float
    lung_size: float
    rib_phase: float
    vertebra_phase: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> Anatomy:
        """A body drawn at random, within what the volume holds."""

        def around(centre: tuple[float, float, float], spread: float) -> tuple[float, float, float]:
            x, y, z = (c + rng.uniform(-spread, spread) for c in centre)
            return x, y, z

        return cls(
            width=rng.uniform(148, 168),
            depth=rng.uniform(104, 118),
            fat=rng.uniform(10, 22),
            turn=rng.uniform(-5, 5),
            dome=rng.uniform(-8, 8),
            bend=rng.uniform(-10, 10),
            liver=around((-58, -6, -58), 6),
            liver_size=rng.uniform(0.9, 1.08),
            spleen=around((88, 34, -52), 6),
            spleen_size=rng.uniform(0.88, 1.15),
            lung_size=rng.uniform(0.94, 1.06),
            rib_phase=rng.uniform(0, 28),
            vertebra_phase=rng.uniform(0, 32),
        )


def make_phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(image int16 HU, labels uint8), both of `SHAPE`; the same seed gives the same body and the same noise."""
    rng = np.random.default_rng(np.random.SeedSequence([2024, seed]))
    anatomy = Anatomy.random(rng)
    fine, _ = paint(Points.grid(SUPERSAMPLING), anatomy)
    _, labels = paint(Points.grid(1), anatomy)
    n = SUPERSAMPLING
    d, h, w = SHAPE
    image = fine.reshape(d, n, h, n, w, n).mean(axis=(1, 3, 5))
    noise = rng.standard_normal(SHAPE)
    for axis in (1, 2):  # a reconstruction kernel correlates neighbours within a slice
        noise = (np.roll(noise, 1, axis) + 2 * noise + np.roll(noise, -1, axis)) / 6**0.5
    image += NOISE_HU * noise
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16), labels


def paint(points: Points, a: Anatomy) -> tuple[np.ndarray, np.ndarray]:
    """(HU float64, labels uint8) at `points`, from the outside inwards: what is painted later lies on top."""
    p = points.turned(a.turn)
    outside = _body(p, a)
    shape = np.broadcast_shapes(p.x.shape, p.y.shape, p.z.shape)
    hu = np.full(shape, AIR)
    labels = np.zeros(shape, dtype=np.uint8)

    def fill(where: np.ndarray, value: float | np.ndarray, label: int = 0) -> None:
        hu[where] = np.broadcast_to(value, shape)[where]
        labels[where] = label

    fill(np.broadcast_to((abs(points.y - 136) < 6) & (abs(points.x) < 170), shape), COUCH)
    fill(outside < 0, SKIN)
    fill(outside < -4, FAT)
    wall = outside + a.fat  # the muscular wall begins under the fat
    fill(wall < 0, MUSCLE)
    _ribs(fill, p, a, wall)
    cavity = wall < -16
    fill(cavity & (_below_diaphragm(p, a) < 0), FAT * 0.55)  # bowel and fat, on average
    _belly(fill, p, a, cavity)
    _chest(fill, p, a, cavity)
    _spine(fill, p, a)
    return hu, labels


def _body(p: Points, a: Anatomy) -> np.ndarray:
    """About the distance in mm to the skin: negative inside. The waist is narrower than the chest."""
    waist = 1 - 0.05 * np.cos((p.z - 60) / 75)
    radius = (abs(p.x / (a.width * waist)) ** 2.4 + abs(p.y / (a.depth * waist)) ** 2.4) ** (1 / 2.4)
    return np.asarray((radius - 1) * a.depth)


def _below_diaphragm(p: Points, a: Anatomy) -> np.ndarray:
    """Negative below the two domes of the diaphragm; mm."""
    dome = a.dome - 8 - 55 * ((abs(p.x) - 62) / 110) ** 2 - 50 * ((p.y - 4) / 100) ** 2
    return np.asarray(p.z - dome)


def _ribs(fill, p: Points, a: Anatomy, wall: np.ndarray) -> None:
    slanted = p.z + 0.45 * p.y + a.rib_phase  # ribs run down towards the front
    bone = (wall < -5) & (wall > -14) & (np.mod(slanted, 28) < 11) & (p.z > -95)
    fill(bone & (abs(p.x) > 22), RIB)


def _belly(fill, p: Points, a: Anatomy, cavity: np.ndarray) -> None:
    room = cavity & (_below_diaphragm(p, a) < -4)
    fill(room & (p.ellipsoid((62, -38, -62), (44, 34, 40)) < 1), STOMACH)
    fill(room & (p.ellipsoid((62, -58, -58), (26, 12, 26)) < 1), AIR)  # the stomach's bubble
    for side in (-1, 1):
        fill(room & (p.ellipsoid((side * 62, 56, -112), (25, 21, 46)) < 1), KIDNEY)
    x, y, z = a.liver
    s = a.liver_size
    right = p.ellipsoid((x, y, z), (82 * s, 78 * s, 66 * s))
    left = p.ellipsoid((x + 68, y - 34, z + 14), (62 * s, 34 * s, 34 * s))
    kidney_bed = p.ellipsoid((-62, 56, -112), (29, 25, 50)) > 1
    fill(room & kidney_bed & (np.minimum(right, left) < 1), LIVER, LABELS["liver"])
    x, y, z = a.spleen
    s = a.spleen_size
    spleen = p.ellipsoid((x, y, z), (34 * s, 44 * s, 48 * s)) < 1
    hilum = p.ellipsoid((x - 36, y - 22, z), (30, 30, 40)) > 1
    fill(room & spleen & hilum, SPLEEN, LABELS["spleen"])


def _chest(fill, p: Points, a: Anatomy, cavity: np.ndarray) -> None:
    room = cavity & (_below_diaphragm(p, a) > 4)
    fill(room, MUSCLE)
    for side in (-1, 1):
        s = a.lung_size
        lung = p.ellipsoid((side * 74 * s, 2, 28), (66 * s, 92 * s, 140 * s)) < 1
        vessels = 60 * np.sin(p.x / 5) * np.sin(p.y / 6 + 1) * np.sin(p.z / 8)
        fill(room & lung, LUNG + vessels, LABELS["lungs"])
    fill(room & (p.ellipsoid((22, -30, 22), (56, 46, 52)) < 1), HEART)
    fill((p.x - 20) ** 2 + (p.y - 30) ** 2 + 0 * p.z < 12**2, AORTA)


def _spine(fill, p: Points, a: Anatomy) -> None:
    x = p.x - a.bend * np.cos(p.z / 70)  # a slight scoliosis
    y = p.y - 62 + 6 * np.cos(p.z / 60)
    body = np.hypot(x / 23, y / 19)
    spot = np.mod(p.z + a.vertebra_phase, 32)
    label = LABELS["spine"]
    arch = (np.hypot(x / 20, (y - 24) / 17) < 1) | ((abs(x) < 5) & (y > 15) & (y < 50))
    transverse = (abs(x) < 36) & (abs(y - 20) < 6)
    level = spot < 24
    fill(level & (arch | transverse), CORTICAL * 0.7, label)
    fill((body < 1) & ~level, DISC, label)
    fill((body < 1) & level, CORTICAL, label)
    fill((body < 0.84) & (spot > 2.5) & (spot < 21.5), SPONGY, label)
    fill(np.hypot(x / 10, (y - 25) / 8) + 0 * p.z < 1, CANAL)
