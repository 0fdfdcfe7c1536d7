"""A machine's profile: read back as written, refused where it is none, and the times that follow from it."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from volseg.errors import ConfigError
from volseg.planning.operations import Family, Operation
from volseg.planning.profile import (
    Cost,
    Network,
    Profile,
    Setting,
    built_in_profile,
    find_profile,
    read_profile,
    save_profile,
)
from volseg.precision import BFLOAT16
from volseg.program.kinds import Kind


def cubes(inputs, outputs, nanoseconds, sides=(8, 16, 32)):
    """A convolution that takes so many nanoseconds for a product of channels and voxels, and 1 ms besides."""
    return [
        Cost(Family.FORWARD, inputs, outputs, n**3, 1e-3 + 1e-9 * nanoseconds * inputs * outputs * n**3) for n in sides
    ]


def profile(*costs, ranks=1, threads=1):
    return Profile(
        "a machine", 2, 2**34, 2e10, 1e10, (Setting(ranks, threads, tuple(costs)),), Network(4e-6, 2e9, 5e-6)
    )


def convolution(inputs, outputs, voxels, times=1.0):
    return Operation("encoder 0.1", Kind.CONVOLUTION, Family.FORWARD, 0, inputs, outputs, voxels, times)


def test_what_was_measured_comes_back_exactly():
    setting = profile(*cubes(8, 8, 2), *cubes(16, 16, 1)).settings[0]
    for cost in setting.costs:
        assert setting.seconds(convolution(cost.inputs, cost.outputs, cost.voxels)) == pytest.approx(cost.seconds)
    assert setting.seconds(convolution(8, 8, 512, times=3)) == pytest.approx(3 * setting.costs[0].seconds)


def test_between_and_beyond_what_was_measured():
    setting = profile(*cubes(16, 16, 1)).settings[0]
    small, middle, large, huge = (setting.seconds(convolution(16, 16, n**3)) for n in (16, 24, 32, 128))
    assert small < middle < large
    assert huge == pytest.approx(64 * large)  # in proportion
    # A block far smaller than any that was measured still costs the call.
    assert setting.seconds(convolution(16, 16, 1)) > 0.5e-3


def test_other_channels_take_the_product_of_those_nearby():
    setting = profile(*cubes(16, 16, 1), *cubes(64, 64, 1)).settings[0]
    found = setting.seconds(convolution(32, 32, 32**3))
    assert setting.seconds(convolution(16, 16, 32**3)) < found < setting.seconds(convolution(64, 64, 32**3))
    assert found == pytest.approx(4 * setting.seconds(convolution(16, 16, 32**3)), rel=0.1)


def test_an_unmeasured_family_takes_no_time():
    assert profile(*cubes(8, 8, 1)).settings[0].seconds(
        Operation("other", Kind.HEAD, Family.HEAD, 0, 8, 3, 512)
    ) == 0.0  # fmt: skip


def test_the_costs_of_the_setting_with_as_many_cores_busy():
    settings = [replace(profile(*cubes(8, 8, n)).settings[0], ranks=r, threads=t) for n, (r, t) in enumerate(
        [(1, 1), (1, 36), (36, 1)], start=1)]  # fmt: skip
    machine = replace(profile(*cubes(8, 8, 1)), settings=tuple(settings))
    found = {job: machine.costs(*job) for job in [(1, 1), (36, 1), (1, 36), (4, 9), (30, 1)]}
    assert [(c.setting.ranks, c.setting.threads) for c in found.values()] == [
        (1, 1), (36, 1), (1, 36), (1, 36), (36, 1)]  # fmt: skip
    assert [c.factor for c in found.values()] == [1, 1, 1, 4, 1]  # a quarter of the threads for each of four ranks


def test_what_was_measured_in_a_precision_is_taken_for_it(tmp_path):
    (single,) = profile(*cubes(8, 8, 1)).settings
    half = replace(single, costs=tuple(replace(c, seconds=c.seconds / 2) for c in single.costs), precision=BFLOAT16)
    machine = replace(profile(*cubes(8, 8, 1)), settings=(single, half))
    save_profile(machine, tmp_path / "profile.json")
    found, op = read_profile(tmp_path / "profile.json"), convolution(8, 8, 32**3)
    whole = found.costs(1, 1).seconds(op)
    assert found.costs(1, 1, BFLOAT16).seconds(op) == pytest.approx(whole / 2, rel=1e-3)
    assert replace(machine, settings=(single,)).costs(4, 1, BFLOAT16).setting is single  # nothing was measured in it


def test_what_was_disturbed_does_not_make_small_blocks_slow():
    costs = [Cost(Family.FORWARD, 8, 8, n, s) for n, s in ((8, 2e-3), (64, 5e-3), (512, 1e-3), (4096, 4e-3))]
    setting = profile(*costs).settings[0]
    seconds = [setting.seconds(convolution(8, 8, n)) for n in (1, 8, 64, 512, 4096)]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(seconds))
    assert seconds[2] == pytest.approx(1e-3)


def test_written_and_read_back(tmp_path):
    machine = profile(*cubes(8, 16, 1), ranks=2)
    save_profile(machine, tmp_path / "p.json")
    found = read_profile(tmp_path / "p.json")
    assert found.source == str(tmp_path / "p.json")
    assert replace(found, settings=(), source="") == replace(machine, settings=())
    (before,), (after,) = machine.settings, found.settings
    assert (after.ranks, after.threads) == (2, 1)
    for one, other in zip(before.costs, after.costs, strict=True):
        assert (one.family, one.inputs, one.outputs, one.voxels) == (
            other.family, other.inputs, other.outputs, other.voxels)  # fmt: skip
        assert other.seconds == pytest.approx(one.seconds, rel=1e-3)
    written = json.loads((tmp_path / "p.json").read_text())["settings"][0]["costs"][0]
    assert written["gflops"] == pytest.approx(2 * 27 * 8 * 16 * 512 / written["seconds"] / 1e9, rel=1e-3)


def test_scaled_to_a_machine_of_half_the_speed():
    machine = profile(*cubes(8, 8, 1))
    op = convolution(8, 8, 4096)
    assert machine.scaled(2).settings[0].seconds(op) == pytest.approx(2 * machine.settings[0].seconds(op))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 1, "settings": []}', "\0"])
def test_what_is_no_profile_is_refused(tmp_path, text):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"p\.json: (is no profile of volseg calibrate|cannot be read \(not text\))"):
        read_profile(path)


def test_another_format_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"format": 2}')
    with pytest.raises(ConfigError, match="format 2, not 1; run volseg calibrate again"):
        read_profile(path)


def test_where_a_profile_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VOLSEG_PROFILE", raising=False)
    assert find_profile().source == "built in"
    (tmp_path / "home" / "volseg").mkdir(parents=True)
    save_profile(profile(*cubes(8, 8, 1)), tmp_path / "home" / "volseg" / "profile.json")
    assert find_profile().source == str(tmp_path / "home" / "volseg" / "profile.json")
    save_profile(profile(*cubes(8, 8, 1)), tmp_path / "volseg-profile.json")
    assert find_profile().source == "volseg-profile.json"
    (tmp_path / "volseg-profile.json").write_text("broken")
    assert find_profile().source == str(tmp_path / "home" / "volseg" / "profile.json")
    monkeypatch.setenv("VOLSEG_PROFILE", str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        find_profile()


def test_the_built_in_profile_knows_every_family():
    machine = built_in_profile()
    assert {(s.ranks, s.threads) for s in machine.settings} >= {(1, 1), (2, 1)}
    for setting in machine.settings:
        assert {cost.family for cost in setting.costs} == set(Family)
