"""What a forward pass of the fused U-Net leaves for its backward."""

from __future__ import annotations

from dataclasses import dataclass, field

from volseg.geometry import Triple
from volseg.nn.fused.layer import Held, Output, Workplace
from volseg.partition.layout import Layout


@dataclass
class Tape:
    """The image, and each layer's output by its name.

    works            where the tensors of each level lie that this rank takes part in, finest first
    layouts, bricks  of each level, finest first
    pooled           what a level reads of the one above, by the level above
    spread           the output of a level that has a grid of its own, on the grid of the level above
    """

    works: list[Workplace]
    layouts: list[Layout]
    bricks: list[Triple]
    image: Held
    outputs: dict[str, Output] = field(default_factory=dict)
    pooled: dict[int, Held] = field(default_factory=dict)
    spread: dict[int, Held] = field(default_factory=dict)

    def output(self, level: int) -> Output:
        """What a level gives to the one above."""
        deepest = level + 1 == len(self.layouts)
        return self.outputs[f"encoder {level}.2" if deepest else f"decoder {level}.2"]

    def above(self, level: int) -> Held:
        """What the up-convolution to `level` reads, on the grid of `level`."""
        spread = self.spread.get(level + 1)
        return self.output(level + 1).held if spread is None else spread

    def before(self, level: int) -> Layout:
        """The layout of `level` on the grid of the level above it."""
        return self.layouts[level - 1].at_level(1)
