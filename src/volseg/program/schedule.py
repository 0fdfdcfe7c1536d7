"""The ways in which `segment` runs the U-Net within a memory limit, fastest first, and the arithmetic of each."""

from __future__ import annotations

from enum import StrEnum

from volseg.config import ModelConfig
from volseg.networks.coverage import why_not_covered
from volseg.networks.unet import unet


class Schedule(StrEnum):
    """A way to run the network forward; all have the same bits (`models.streamed_unet`).

    IN_PLACE   each level holds one tensor
    RECOMPUTE  the finest level is computed again for each pass over the image, and never held
    SPILL      as IN_PLACE, in files of a scratch folder
    LAYERS     layer by layer with torch's tensors: networks that the fused layers do not cover
    """

    IN_PLACE = "in-place"
    RECOMPUTE = "recompute"
    SPILL = "spill"
    LAYERS = "layers"

    @property
    def in_memory(self) -> bool:
        """Whether all tensors are in memory."""
        return self is not Schedule.SPILL

    @property
    def finest_held(self) -> int:
        """The finest level whose tensors are held."""
        return 1 if self is Schedule.RECOMPUTE else 0


IN_PLACE, RECOMPUTE, SPILL, LAYERS = Schedule.IN_PLACE, Schedule.RECOMPUTE, Schedule.SPILL, Schedule.LAYERS


def schedules_of(model: ModelConfig, kernels: bool = True) -> list[Schedule]:
    """The schedules that a network can be run by, fastest first.

    kernels  the processors run those of the fused layers
    """
    if not covers(model) or not kernels:
        return [LAYERS]
    return [IN_PLACE, RECOMPUTE, SPILL] if model.levels else [IN_PLACE, SPILL]


_TIMES_AGAIN = {"encoder 0.1": 5, "encoder 0.2": 4, "decoder 0.1": 3, "decoder 0.2": 2}
"""How often RECOMPUTE computes the layers of the finest level."""


def layer_costs(model: ModelConfig, schedule: Schedule) -> dict[str, float]:
    """Products for a plane of each layer's output, up to a factor that all share: what the time is spent on."""
    costs = {}
    for level, width in enumerate(model.widths):
        above = (model.in_channels or 1, *model.widths)[level]
        inputs = {"encoder": (above, width)}
        if level < model.levels:
            inputs["decoder"] = (2 * width, width)
        for part, counts in inputs.items():
            for number, count in enumerate(counts, start=1):
                costs[f"{part} {level}.{number}"] = count * width / 4**level
    if schedule is RECOMPUTE:
        costs = {label: cost * _TIMES_AGAIN.get(label, 1) for label, cost in costs.items()}
    return costs


def covers(model: ModelConfig) -> bool:
    """Whether the fused layers take a network of this kind."""
    return not why_not_covered(unet(model))


def level_of(label: str) -> int:
    """Of a layer, such as "decoder 1.2"."""
    return int(label.split()[1].split(".")[0])
