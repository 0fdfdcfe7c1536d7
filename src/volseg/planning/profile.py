"""What a machine was measured to do: seconds of operations by shape, and of messages. `volseg calibrate` makes it."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import resources
from itertools import pairwise
from math import exp, log, log2
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError
from volseg.files import write_text
from volseg.planning.operations import Family, Operation, flops
from volseg.precision import FLOAT32, Precision
from volseg.text import read_text

FORMAT = 1
FILE = "volseg-profile.json"
BUILT_IN = "profile_built_in.json"

_NEAREST = 4
"""Pairs of channels that the time of a pair that was not measured is taken from."""


@dataclass(frozen=True)
class Cost:
    """The time of one operation that was measured. Channels and voxels as in `Operation`."""

    family: Family
    inputs: int
    outputs: int
    voxels: int
    seconds: float


@dataclass(frozen=True)
class Setting:
    """Costs with so many ranks of so many threads at work on the machine at once: cores share caches and memory.

    precision  in which tensors were stored
    """

    ranks: int
    threads: int
    costs: tuple[Cost, ...]
    precision: Precision = FLOAT32

    def seconds(self, operation: Operation) -> float:
        """How long an operation takes."""
        key = operation.family, operation.inputs, operation.outputs, operation.voxels
        if key not in self._known:
            self._known[key] = self._find(*key)
        return operation.times * operation.effort * self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[Family, int, int, int], float]:
        return {}

    @cached_property
    def _curves(self) -> dict[Family, dict[tuple[int, int], list[tuple[int, float]]]]:
        """By family and channels, seconds over voxels."""
        found: dict[Family, dict[tuple[int, int], dict[int, float]]] = {}
        for cost in self.costs:
            curve = found.setdefault(cost.family, {}).setdefault((cost.inputs, cost.outputs), {})
            curve[cost.voxels] = cost.seconds
        return {f: {pair: _rising(c) for pair, c in curves.items()} for f, curves in found.items()}

    def _find(self, family: Family, inputs: int, outputs: int, voxels: int) -> float:
        curves = self._curves.get(family, {})
        if not curves:
            return 0.0
        if (inputs, outputs) in curves:
            curve = curves[inputs, outputs]
            if curve[0][0] <= voxels:
                return _along(curve, voxels)
        # From pairs of channels nearby: the time of a product, or of a channel's voxel, weighted by distance. A pair
        # that was measured for larger blocks only is one of them: how time falls with the block, others know.
        near = []
        for (a, b), curve in curves.items():
            beyond = max(0.0, log2(curve[0][0] / voxels), log2(voxels / curve[-1][0]) - 3)
            distance = log2(inputs / a) ** 2 + log2(outputs / b) ** 2 + beyond**2
            near.append((distance, _along(curve, voxels) / (a * b)))
        near = sorted(near)[:_NEAREST]
        weights = [1 / (distance + 0.05) ** 2 for distance, _ in near]
        mean = sum(w * log(unit) for w, (_, unit) in zip(weights, near, strict=True)) / sum(weights)
        return exp(mean) * inputs * outputs


def _rising(seconds: dict[int, float]) -> list[tuple[int, float]]:
    """A curve by voxels; what took longer than something larger was disturbed, and takes as long as that."""
    curve: list[tuple[int, float]] = []
    for voxels in sorted(seconds, reverse=True):
        curve.append((voxels, min(seconds[voxels], curve[-1][1]) if curve else seconds[voxels]))
    return curve[::-1]


def _along(curve: list[tuple[int, float]], voxels: int) -> float:
    """Seconds at so many voxels, straight in logarithms between those that were measured, in proportion above them."""
    first, last = curve[0], curve[-1]
    if voxels >= last[0]:
        return last[1] * voxels / last[0]
    if voxels <= first[0]:
        # Small blocks are mostly the overhead of a call, which does not shrink with them: a straight line.
        each = (curve[1][1] - first[1]) / (curve[1][0] - first[0]) if len(curve) > 1 else first[1] / first[0]
        return max(first[1] - each * (first[0] - voxels), first[1] * voxels / first[0])
    for below, above in pairwise(curve):
        if voxels <= above[0]:
            return float(below[1] * (voxels / below[0]) ** _slope(below, above))
    raise AssertionError("not reached")


def _slope(below: tuple[int, float], above: tuple[int, float]) -> float:
    return log(above[1] / below[1]) / log(above[0] / below[0])


@dataclass(frozen=True)
class Costs:
    """A setting, for a job with another number of threads."""

    setting: Setting
    factor: float

    def seconds(self, operation: Operation) -> float:
        """How long an operation takes."""
        return self.setting.seconds(operation) * self.factor


@dataclass(frozen=True)
class Network:
    """Messages by the alpha-beta model (Hockney): `latency` + bytes / `bytes_per_second`.

    latency           seconds of a message between two ranks
    bytes_per_second  of messages between neighbours, while all ranks send
    reduction         seconds of a small sum over all ranks for each doubling of their number
    measured          whether it was; else it is what is usual
    """

    latency: float
    bytes_per_second: float
    reduction: float
    measured: bool = True


BETWEEN_MACHINES = Network(2e-6, 12e9, 3e-6, measured=False)
"""Of a machine on a 100 Gbit/s fabric (Omni-Path, InfiniBand EDR), where nobody measured: 12 GB/s for all its ranks."""


@dataclass(frozen=True)
class Profile:
    """A machine.

    machine           its processor, in words
    cores, memory     of it; memory in bytes
    memory_bandwidth  bytes read and written a second by all cores together
    copy_bandwidth    the same by one core
    settings          costs of operations
    within, between   messages on one machine, and between machines
    volseg, date      when it was measured
    source            file that it was read from
    """

    machine: str
    cores: int
    memory: int
    memory_bandwidth: float
    copy_bandwidth: float
    settings: tuple[Setting, ...]
    within: Network
    between: Network = BETWEEN_MACHINES
    volseg: str = ""
    date: str = ""
    source: str = field(default="", compare=False)

    def costs(self, ranks: int, threads: int, precision: Precision = FLOAT32) -> Costs:
        """What operations cost with so many ranks of so many threads at work on a machine.

        From the setting that had about as many cores busy, and of those about as many threads a rank; where it had
        more threads or fewer, as if the kernels gained from each of them. Where nothing was measured in a precision,
        what was in float32 stands for it.
        """
        found = [one for one in self.settings if one.precision is precision]
        found = found or [one for one in self.settings if one.precision is FLOAT32] or list(self.settings)

        def distance(one: Setting) -> tuple[float, float]:
            busy = abs(log2(one.ranks * one.threads / (ranks * threads)))
            return round(busy, 6), abs(log2(one.threads / threads))

        nearest = min(found, key=distance)
        return Costs(nearest, nearest.threads / threads)

    def scaled(self, factor: float) -> Profile:
        """The same machine, on which every operation takes `factor` times as long."""
        settings = tuple(
            replace(s, costs=tuple(replace(c, seconds=c.seconds * factor) for c in s.costs)) for s in self.settings
        )
        return replace(self, settings=settings)


def save_profile(profile: Profile, path: Path) -> None:
    """Write it as JSON, whole or not at all."""
    content: dict[str, Any] = {"format": FORMAT, **asdict(profile)}
    del content["source"]
    for setting in content["settings"]:
        for cost in setting["costs"]:
            done = flops(cost["family"], cost["inputs"], cost["outputs"], cost["voxels"])
            cost["seconds"] = float(f"{cost['seconds']:.4g}")
            if done:
                cost["gflops"] = float(f"{done / cost['seconds'] / 1e9:.4g}")
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_profile(path: Path) -> Profile:
    """A profile that `save_profile` wrote. Raises ConfigError where there is none, or another format."""
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise ConfigError(f"{path}: cannot be read ({why}); make a profile with volseg calibrate") from None
    return parse_profile(text, str(path))


def parse_profile(text: str, where: str) -> Profile:
    """See `read_profile`."""
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ConfigError(f"{where}: is of format {content['format']}, not {FORMAT}; run volseg calibrate again")
        settings = tuple(_parse_setting(s) for s in content["settings"])
        if not settings or any(cost.seconds <= 0 for s in settings for cost in s.costs):
            raise ValueError("no costs")
        return Profile(
            str(content["machine"]),
            int(content["cores"]),
            int(content["memory"]),
            float(content["memory_bandwidth"]),
            float(content["copy_bandwidth"]),
            settings,
            Network(**content["within"]),
            Network(**content["between"]),
            str(content["volseg"]),
            str(content["date"]),
            where,
        )
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: is no profile of volseg calibrate ({error}); make one") from None


def _parse_setting(content: dict[str, Any]) -> Setting:
    costs = tuple(
        Cost(Family(c["family"]), int(c["inputs"]), int(c["outputs"]), int(c["voxels"]), float(c["seconds"]))
        for c in content["costs"]
    )
    precision = Precision(content.get("precision", FLOAT32))
    return Setting(int(content["ranks"]), int(content["threads"]), costs, precision)


def built_in_profile() -> Profile:
    """That of the machine volseg was developed on."""
    text = resources.files("volseg.planning").joinpath(BUILT_IN).read_text(encoding="utf-8")
    return parse_profile(text, "built in")


def profile_places() -> list[Path]:
    """Where a profile is looked for when none is named, in this order."""
    home = Path(os.environ.get("XDG_CONFIG_HOME", "") or Path.home() / ".config")
    return [Path(FILE), home / "volseg" / "profile.json"]


def find_profile(path: Path | None = None) -> Profile:
    """The profile at `path`; else that of VOLSEG_PROFILE, of the folder, of the user; else the one built in.

    Raises ConfigError where it is named, by `path` or VOLSEG_PROFILE, and cannot be read; others are passed by.
    """
    named = path or (Path(os.environ["VOLSEG_PROFILE"]) if os.environ.get("VOLSEG_PROFILE") else None)
    if named is not None:
        return read_profile(named)
    for place in profile_places():
        if place.is_file():
            with contextlib.suppress(ConfigError):
                return read_profile(place)
    return built_in_profile()
