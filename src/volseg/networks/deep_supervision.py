"""Deep supervision: at which levels of the decoder the loss is taken besides the finest, and what each counts.

As nnU-Net (Isensee et al., Nature Methods 2021): all resolutions but the two coarsest, each with half the weight of the
one above it, the weights adding up to 1.
"""

from __future__ import annotations


def deep_levels(levels: int) -> range:
    """The levels with a head of their own besides the finest, of a U-Net of so many halvings."""
    return range(1, max(1, levels - 1))


def loss_weights(deep: int) -> list[float]:
    """Of the loss at full resolution and at the `deep` levels below it."""
    whole = sum(0.5**n for n in range(deep + 1))
    return [0.5**n / whole for n in range(deep + 1)]
