"""A machine's profile in a few lines."""

from __future__ import annotations

from volseg.machine import gibibytes
from volseg.planning.operations import Family, flops
from volseg.planning.profile import Network, Profile, Setting
from volseg.precision import FLOAT32


def profile_lines(profile: Profile) -> list[str]:
    """What was measured, one line a setting and network."""
    memory = f"{gibibytes(profile.memory)} at {_speed(profile.memory_bandwidth)}"
    lines = [f"{profile.machine}, {profile.cores} cores, {memory}"]
    lines += [_setting_line(setting) for setting in profile.settings]
    return [*lines, _network_line("on one machine", profile.within), _network_line("between machines", profile.between)]


def _setting_line(setting: Setting) -> str:
    rates = []
    for family in (Family.FORWARD, Family.BACKWARD):
        done = [flops(c.family, c.inputs, c.outputs, c.voxels) / c.seconds for c in setting.costs if c.family is family]
        rates.append(f"{family} {min(done) / 1e9:.0f} to {max(done) / 1e9:.0f} GF/s")
    stored = "" if setting.precision is FLOAT32 else f", {setting.precision}"
    return f"{setting.ranks} x {setting.threads} (ranks x threads){stored}: {', '.join(rates)} a rank"


def _network_line(where: str, network: Network) -> str:
    known = "" if network.measured else " (usual, not measured)"
    return f"messages {where}: {network.latency * 1e6:.1f} µs and {_speed(network.bytes_per_second)}{known}"


def _speed(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.1f} GB/s"
