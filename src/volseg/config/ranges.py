"""A value within its range."""

from __future__ import annotations

from typing import Any

from volseg.errors import ConfigError


def check_range(section: str, values: Any, **ranges: tuple[float, float]) -> None:
    """Raise ConfigError where one of `values`' fields is not within its (low, high)."""
    for name, (low, high) in ranges.items():
        value = getattr(values, name)
        if not low <= value <= high:
            raise ConfigError(f"{section}.{name} = {value} is outside {low}..{high}")
