"""Sizes as users type them: ``64x64x64`` voxels, ``3x1.5x1.5`` mm."""

from __future__ import annotations

import math
import re

from volseg.errors import ConfigError
from volseg.geometry import Triple

_UNITS = {
    "d": 86400.0, "day": 86400.0, "h": 3600.0, "hr": 3600.0, "hour": 3600.0,
    "m": 60.0, "min": 60.0, "minute": 60.0, "s": 1.0, "sec": 1.0, "second": 1.0,
}  # fmt: skip


def sides_named(text: str) -> list[str]:
    """``64x48x32``, ``64 x 48 x 32``, ``64×48×32`` or ``64,48,32`` as its words."""
    return re.split(r"\s*[xX×*,]\s*|\s+", text.strip())


def parse_shape(text: str, option: str = "--shape") -> Triple:
    """``64x48x32`` as (64, 48, 32) voxels, D x H x W. Raises ConfigError for anything but three whole sizes."""
    words = sides_named(text)
    if len(words) != 3 or not all(re.fullmatch(r"[1-9]\d*", word) for word in words):
        raise ConfigError(f"{option} {text}: give three sizes D x H x W, such as 64x64x64")
    d, h, w = (int(word) for word in words)
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
    """A time in seconds. Raises ConfigError for anything else than

    - ``3h50m``, ``90s``, ``1.5h``, ``2 days``, ``1h30`` (a last number is of the next smaller unit: minutes)
    - ``5400``: seconds
    - as Slurm writes them: ``01:00:00``, ``30:00`` (minutes and seconds), ``1-12:00:00``, ``1-12:30``, ``1-12``
    """
    plain = text.strip().lower()
    seconds = _clock(plain)
    if seconds is None:
        seconds = _with_units(plain)
    if seconds is None or not 0 < seconds < 1e9:
        raise ConfigError(f"{option} {text}: give a time such as 3h50m, 90s, 1-12:00:00 or 5400 (seconds)")
    return seconds


def _clock(text: str) -> float | None:
    """Days, hours, minutes and seconds with ``-`` and ``:``; None for another text."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d\d?))?(?::(\d\d?))?", text)
    if match is None or (match[1] is None and match[3] is None):
        return None
    days, first, *others = match.groups()
    parts = [int(part) for part in (first, *others) if part is not None]
    if any(part > 59 for part in parts[1:]):
        return None
    if days is None and len(parts) == 2:  # minutes and seconds, as Slurm has it
        return 60.0 * parts[0] + parts[1]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return 86400.0 * int(days or 0) + 3600.0 * hours + 60.0 * minutes + seconds


def _with_units(text: str) -> float | None:
    """Numbers with units, the larger ones first; None for another text."""
    if re.fullmatch(r"\d+", text):
        return float(text)
    total, before = 0.0, math.inf
    for number, word in re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text):
        unit = _UNITS.get(word if word in _UNITS else word.removesuffix("s"))
        if not word and before in (3600.0, 60.0):
            unit = before / 60
        if unit is None or unit >= before:
            return None
        total, before = total + float(number) * unit, unit if word else 0.0
    rest = re.sub(r"\d+(?:\.\d+)?\s*[a-z]*\s*", "", text)
    return None if rest or not text else total


def parse_spacing(text: str, option: str = "--spacing") -> tuple[float, float, float]:
    """``1.5`` or ``3x1.5x1.5`` as mm along D, H, W. Raises ConfigError for anything else."""
    words = sides_named(text.strip().removesuffix("mm"))
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


def parse_memory(text: str, option: str = "--memory") -> int:
    """``24GiB``, ``512 MiB``, ``24`` (GiB) or ``24g`` (GiB) in bytes. Raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(ib|b|)", text.strip(), re.IGNORECASE)
    size = 0
    if match:
        prefix, end = match[2].lower(), match[3].lower()
        power = "kmgt".index(prefix) + 1 if prefix else 0 if end else 3
        size = int(float(match[1]) * (1000 if end == "b" and prefix else 1024) ** power)
    if not match or size < 1 or (not match[2] and match[3].lower() == "ib"):
        raise ConfigError(f"{option} {text}: give an amount such as 24GiB or 512MiB")
    return size
