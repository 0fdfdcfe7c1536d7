"""Left and right: where labels differ by side, the patient's sides are not mirrored unless that is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from volseg.config import Config
from volseg.training.job import TrainingJob
from volseg.volumes.label_sides import sided_pairs

MOST_PAIRS = 3  # that are named


def without_mirrored_sides(config: Config, labels: Iterable[str], job: TrainingJob) -> tuple[Config, str | None]:
    """The configuration with no mirroring along W where `labels` differ by side; and what to say of it, if anything.

    Training sees volumes in canonical order, so W is the patient's left and right whatever the files' order. Where
    --flip asks for W, or a run goes on that mirrored it, it is mirrored, with a warning.
    """
    d, h, w = config.augmentation.flip
    pairs = sided_pairs(labels) if w else []
    if not pairs:
        return config, None
    more = f" and {len(pairs) - MOST_PAIRS} more pairs" if len(pairs) > MOST_PAIRS else ""
    named = ", ".join(f"{left} / {right}" for left, right in pairs[:MOST_PAIRS]) + more
    if job.flip_asked or job.proceed:
        others = "".join(axis for axis, share in zip("dh", (d, h), strict=True) if share) or "none"
        when = "--flip asks for it" if job.flip_asked else "the run began so"
        return config, (
            f"labels differ by side ({named}), but volumes are mirrored along W, left and right, since {when}: the "
            f"network cannot learn the sides; --flip {others} leaves W out"
        )
    quiet = dataclasses.replace(config, augmentation=dataclasses.replace(config.augmentation, flip=(d, h, 0.0)))
    axes = "".join(axis for axis, share in zip("dhw", (d, h, w), strict=True) if share)
    return quiet, (
        f"labels differ by side ({named}): mirroring along W would swap them, so W, left and right, is not mirrored; "
        f"--flip {axes} mirrors it all the same"
    )
