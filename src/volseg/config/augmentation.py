"""The settings of augmentation: how often and how far training volumes are changed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AugmentationConfig:
    """How training volumes are changed, a new way each step."""

    def check(self) -> None:
        """Raise ConfigError where a value is outside its range."""
