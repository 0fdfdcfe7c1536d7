"""The network of a run: kernels and strides that suit its training cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from volseg.config import Config
from volseg.geometry import Triple
from volseg.networks.choice import with_network_for
from volseg.training.job import TrainingJob
from volseg.volumes.crops import crop_shape
from volseg.volumes.resampling import Spacing


def with_network(
    job: TrainingJob, config: Config, spacing: Spacing, shapes: Sequence[Triple]
) -> tuple[Config, str]:  # fmt: skip
    """The configuration with the network for these cases, and why it is that; a run that goes on keeps its own, and one
    that begins with a network what came with it.

    spacing  mm, D, H, W, at which the network sees the cases, or the median of their own
    shapes   voxels, D, H, W, of the training cases at that spacing
    """
    settled = job.proceed or job.begins is not None
    return (config, "") if settled else with_network_for(config, spacing, _seen(config, shapes))


def _seen(config: Config, shapes: Sequence[Triple]) -> Triple:
    """The median shape of what a step sees of a case."""
    d, h, w = (int(side) for side in np.median([crop_shape(one, config.data.crop) for one in shapes], axis=0))
    return d, h, w
