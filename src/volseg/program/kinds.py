"""Kinds of work, by which time is measured, planned and reported."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """Kinds of work. HALO, REDUCTION and MOVING are packing, sending and waiting together."""

    CONVOLUTION = "convolution"
    UP = "up-convolution"
    NORM = "norm"
    POOLING = "pooling"
    HEAD = "head and loss"
    HALO = "halo"
    REDUCTION = "reduction"
    MOVING = "moving blocks"
    FILES = "input and output"
    LABELS = "components and statistics"
    AUGMENTATION = "augmentation"
    OPTIMIZER = "optimizer"
    OTHER = "other"


COMMUNICATING = (Kind.HALO, Kind.REDUCTION, Kind.MOVING)
"""Kinds that are communication; all others are computing."""
