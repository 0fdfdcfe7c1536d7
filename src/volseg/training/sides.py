"""Left and right: where labels differ by side, the patient's sides are not mirrored unless that is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from volseg.config import Config
from volseg.training.job import TrainingJob
from volseg.volumes.label_sides import sided_pairs

MOST_PAIRS = 3  # that are named
SIDES = frozenset({2})
"""The axes along which the patient's left and right lie, where volumes are seen in canonical order."""


def without_mirrored_sides(
    config: Config, labels: Iterable[str], job: TrainingJob, sides: Collection[int] = SIDES
) -> tuple[Config, str | None]:  # fmt: skip
    """The configuration with no mirroring of `sides` where `labels` differ by side; and what to say of it, if anything.

    sides  the axes along which the patient's left and right lie: W where volumes are seen in canonical order, whatever
           the files' order

    Where --flip asks for one of them, or a run goes on that mirrored it, it is mirrored, with a warning.
    """
    flip = config.augmentation.flip
    mirrored = [axis for axis in sorted(sides) if flip[axis]]
    pairs = sided_pairs(labels) if mirrored else []
    if not pairs:
        return config, None
    more = f" and {len(pairs) - MOST_PAIRS} more pairs" if len(pairs) > MOST_PAIRS else ""
    named = ", ".join(f"{left} / {right}" for left, right in pairs[:MOST_PAIRS]) + more
    named_axes = " and ".join("DHW"[axis] for axis in mirrored)
    d, h, w = (0.0 if axis in sides else share for axis, share in enumerate(flip))
    if job.flip_asked or job.proceed:
        others = "".join(axis for axis, share in zip("dhw", (d, h, w), strict=True) if share) or "none"
        when = "--flip asks for it" if job.flip_asked else "the run began so"
        return config, (
            f"labels differ by side ({named}), but volumes are mirrored along {named_axes}, left and right, since "
            f"{when}: the network cannot learn the sides; --flip {others} leaves {named_axes} out"
        )
    quiet = dataclasses.replace(config, augmentation=dataclasses.replace(config.augmentation, flip=(d, h, w)))
    axes = "".join(axis for axis, share in zip("dhw", flip, strict=True) if share)
    return quiet, (
        f"labels differ by side ({named}): mirroring along {named_axes} would swap them, so {named_axes}, left and "
        f"right, is not mirrored; --flip {axes} mirrors it all the same"
    )
