"""Sizes as users type them: ``64x64x64`` voxels, ``3x1.5x1.5`` mm."""

from __future__ import annotations

import math
import re

from volseg.errors import ConfigError
from volseg.geometry import Triple


def parse_shape(text: str, option: str = "--shape") -> Triple:
    """``64x48x32`` as (64, 48, 32) voxels, D x H x W. Raises ConfigError for anything but three whole sizes."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise ConfigError(f"{option} {text}: give three sizes D x H x W, such as 64x64x64")
    d, h, w = (int(n) for n in text.split("x"))
    return d, h, w


def parse_levels(text: str, option: str = "--checkpoint-levels") -> tuple[int, ...]:
    """``0,1`` as (0, 1); an empty text as none. Raises ConfigError for anything else."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    if not all(word.isdecimal() for word in words):
        raise ConfigError(f"{option} {text}: give levels with commas, such as 0,1; 0 is full resolution")
    return tuple(sorted({int(word) for word in words}))


def parse_axes(text: str, option: str = "--flip") -> tuple[float, ...]:
    """``dh`` as (0.5, 0.5, 0.0): a half for each named axis of D, H, W. Raises ConfigError for anything else."""
    named = "" if text == "none" else text.lower()
    if not (named or text == "none") or set(named) - set("dhw"):
        raise ConfigError(f"{option} {text}: give some of the axes d, h and w, such as dh, or none")
    return tuple(0.5 if axis in named else 0.0 for axis in "dhw")


def parse_duration(text: str, option: str = "--max-time") -> float:
    """``3h50m``, ``90s``, ``1h30m`` or ``5400`` in seconds. Raises ConfigError for anything else."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if total == 0:
        raise ConfigError(f"{option} {text}: give a time such as 3h50m, 90s or 5400 (seconds)")
    return float(total)


def parse_spacing(text: str, option: str = "--spacing") -> tuple[float, float, float]:
    """``1.5`` or ``3x1.5x1.5`` as mm along D, H, W. Raises ConfigError for anything else."""
    words = text.split("x")
    try:
        sides = [float(word) for word in words]
    except ValueError:
        sides = []
    if len(sides) not in (1, 3) or not all(math.isfinite(side) and side > 0 for side in sides):
        raise ConfigError(f"{option} {text}: give one length in mm, or three as D x H x W, such as 3x1.5x1.5")
    d, h, w = sides * 3 if len(sides) == 1 else sides
    return d, h, w


def parse_names(text: str | None) -> tuple[str, ...]:
    """``T1, T2`` as ("T1", "T2"); None as no names."""
    return () if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
