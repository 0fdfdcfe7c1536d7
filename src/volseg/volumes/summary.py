"""What a volume is, in a few facts: for `volseg info`."""

from __future__ import annotations

from typing import Any

import numpy as np

from volseg.geometry import Triple
from volseg.volumes.audit import count_reasons
from volseg.volumes.canonical import nearest_axes
from volseg.volumes.volume import Volume

MOST_LABELS = 256
FEW_LABELS = 16
"""No image has so few values."""
LETTERS = ("LR", "PA", "IS")


def orientation_codes(affine: np.ndarray) -> str:
    """Where D, H and W lead: ``SAR`` where slices go up, rows forward, columns to the right."""
    towards, backwards = nearest_axes(np.asarray(affine, dtype=np.float64)[:3, :3])
    codes = [LETTERS[world][0 if back else 1] for world, back in zip(towards, backwards, strict=True)]
    return "".join(reversed(codes))


def header_facts(volume: Volume) -> dict[str, Any]:
    """What is known without reading a voxel; plain values, ready for JSON. Lengths in mm, axes D, H, W."""
    return {
        "path": str(volume.path),
        "format": volume.format,
        "shape": list(volume.shape),
        "spacing_mm": [float(f"{side:.7g}") for side in volume.space.spacing],
        "orientation_dhw": orientation_codes(volume.space.affine),
        "affine": np.asarray(volume.space.affine, dtype=np.float64).tolist(),
        "dtype": str(volume.dtype),
        "voxel_ml": volume.space.voxel_ml,
        "facts": dict(volume.audit.facts),
        "fixes": list(volume.audit.fixes),
        "dropped": {reason: number for reason, number, _ in count_reasons(volume.audit.dropped)},
        "warnings": list(volume.audit.warnings),
    }


def value_facts(volume: Volume, is_mask: bool = False) -> dict[str, Any]:
    """Smallest and largest finite value, how many are not finite, and for a mask the voxels of each label.

    is_mask  it is known to be one, by the names of its labels

    The volume is read once, a few slices at a time. Else it counts as a mask where its values are whole, not negative,
    at most `MOST_LABELS` different ones below 65536, and lie as labels do (`_Labels.are_labels`): an image of 8 bits
    has few values too. Raises VolumeError where it cannot be read.
    """
    low, high, bad = np.inf, -np.inf, 0
    labels: _Labels | None = _Labels() if volume.dtype.kind in "iu" else None
    for _, values in volume.slabs(_depth(volume.shape)):
        if values.dtype.kind == "f":
            finite = values[np.isfinite(values)]
            bad += values.size - finite.size
        else:
            finite = values
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        if labels is not None and (low < 0 or high > 65535 or not labels.add(values)):
            labels = None
    facts: dict[str, Any] = {"minimum": None, "maximum": None} if low > high else {"minimum": low, "maximum": high}
    facts["not_finite"] = bad
    if labels is not None and (is_mask or labels.are_labels):
        facts["labels"] = {str(label): labels.counts[label] for label in sorted(labels.counts)}
    return facts


class _Labels:
    """Voxels of each value, and how often neighbours along W are alike."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self._alike = self._pairs = 0

    def add(self, values: np.ndarray) -> bool:
        """Take in [d, h, w] values, 0 to 65535; whether they may still be labels."""
        tally = np.bincount(values.ravel().astype(np.int64))
        for label in np.flatnonzero(tally).tolist():
            self.counts[label] = self.counts.get(label, 0) + int(tally[label])
        before, after = values[..., :-1], values[..., 1:]
        foreground = (before != 0) & (after != 0)
        self._pairs += int(np.count_nonzero(foreground))
        self._alike += int(np.count_nonzero(foreground & (before == after)))
        return len(self.counts) <= MOST_LABELS

    @property
    def are_labels(self) -> bool:
        """Whether there are few values, or two in three neighbours in the foreground are alike: noise leaves few so."""
        return len(self.counts) <= FEW_LABELS or 3 * self._alike > 2 * self._pairs


def _depth(shape: Triple) -> int:
    """Slices for about 4 million voxels."""
    return max(1, 4_000_000 // (shape[1] * shape[2]))
