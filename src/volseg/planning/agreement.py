"""When a plan came true."""

from __future__ import annotations

_TOLERANCE = 0.1


def off_by_a_tenth(ratio: float) -> bool:
    """Whether what was planned differs from what was measured by more than a tenth, from planned over measured."""
    return not 1 - _TOLERANCE <= ratio <= 1 + _TOLERANCE
