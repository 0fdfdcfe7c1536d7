"""What a run of the network keeps for one that goes on after an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from volseg.geometry import Box
from volseg.nn.kernels.rows import Affine


class Journal(Protocol):
    """What is kept of a run for one that goes on after an interruption."""

    def affines(self) -> dict[str, Affine]:
        """Coefficients of the finest level's layers, by label, as far as they are known."""

    def fill_coarse(self, box: Box, out: Tensor) -> None:
        """The raw output of the coarse levels in a box of level 1, where "coarse" is known.

        out  [d, h, w, C] float32, which is filled
        """

    def keep(self, affines: dict[str, Affine]) -> None:
        """Keep coefficients. Collective."""

    def keep_coarse(self, box: Box, slabs: Iterator[Tensor]) -> None:
        """Keep the raw output of the coarse levels: this rank's box of level 1, float32 planes. Collective."""
