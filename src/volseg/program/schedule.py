"""The ways in which `segment` runs a network within a memory limit, fastest first."""

from __future__ import annotations

from enum import StrEnum

from volseg.errors import ConfigError
from volseg.networks.coverage import can_recompute, why_not_covered
from volseg.networks.description import Network
from volseg.precision import FLOAT32, Precision


class Schedule(StrEnum):
    """A way to run the network forward; all have the same bits (`models.streamed`).

    IN_PLACE   each level holds one tensor
    RECOMPUTE  the finest level is computed again for each pass over the image, and never held
    SPILL      as IN_PLACE, in files of a scratch folder
    LAYERS     layer by layer with torch's tensors: networks that the program does not cover
    """

    IN_PLACE = "in-place"
    RECOMPUTE = "recompute"
    SPILL = "spill"
    LAYERS = "layers"

    @property
    def in_memory(self) -> bool:
        """Whether all tensors are in memory."""
        return self is not Schedule.SPILL


IN_PLACE, RECOMPUTE, SPILL, LAYERS = Schedule.IN_PLACE, Schedule.RECOMPUTE, Schedule.SPILL, Schedule.LAYERS


def schedules_of(network: Network) -> list[Schedule]:
    """The schedules that a network can be run by, fastest first."""
    if why_not_covered(network):
        return [LAYERS]
    return [IN_PLACE, RECOMPUTE, SPILL] if can_recompute(network) else [IN_PLACE, SPILL]


def check_precision(network: Network, precision: Precision) -> None:
    """Raise ConfigError where a network runs layer by layer, in float32, and is to be stored otherwise."""
    reason = why_not_covered(network)
    if precision is not FLOAT32 and reason:
        raise ConfigError(
            f"--precision {precision}: this network runs layer by layer, in float32, as {reason}; use --precision "
            f"{FLOAT32}"
        )
