"""OME-Zarr: what is written, what is read, and stores that are no good."""

import json
import shutil

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.distributed.communicator import SerialCommunicator
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Space
from volseg.volumes.writing import write_volume
from volseg.volumes.zarr.output import shard_side, shard_units

SHAPE = (70, 40, 130)
ARRAY = np.random.default_rng(5).integers(-1000, 1000, SHAPE).astype("i2")
AFFINE = np.array([[0, 0, 2.5, 5], [-0.7, 0, 0, 6], [0, -0.8, 0, 7], [0, 0, 0, 1.0]])


def write(path, array=ARRAY, channels=None, affine=AFFINE, names=()):
    def produce(units):
        mine = units[0]
        return (array if mine.channel is None else array[mine.channel])[mine.box.slices]

    space = Space(array.shape[-3:], affine)
    write_volume(path, space, array.dtype, produce, SerialCommunicator(), channels=channels, names=names)
    return path


def ome(axes="zyx", scale=(1, 1, 1), translation=None, unit="millimeter", version="0.5", outer=None):
    steps = [{"type": "scale", "scale": list(scale)}]
    if translation is not None:
        steps.append({"type": "translation", "translation": list(translation)})
    kinds = {"c": "channel", "t": "time"}
    multiscale = {
        "axes": [{"name": a, "type": kinds.get(a, "space")} | ({"unit": unit} if a in "zyx" else {}) for a in axes],
        "datasets": [{"path": "s0", "coordinateTransformations": steps}],
    }
    if outer:
        multiscale["coordinateTransformations"] = outer
    return (
        {"ome": {"version": version, "multiscales": [multiscale]}}
        if version == "0.5"
        else {"multiscales": [multiscale | {"version": version}]}
    )


def foreign(path, attributes, array=ARRAY, zarr_format=3):
    group = zarr.create_group(str(path), attributes=attributes, zarr_format=zarr_format)
    group.create_array("s0", shape=array.shape, dtype=array.dtype, chunks=(16,) * array.ndim)[:] = array
    return path


def test_round_trip(tmp_path):
    volume = open_volume(write(tmp_path / "scan.zarr"))
    assert volume.dtype == np.int16
    np.testing.assert_array_equal(volume.space.affine, AFFINE)
    box = Box((3, 5, 60), (69, 40, 70))
    np.testing.assert_array_equal(volume.read(box), ARRAY[box.slices])
    np.testing.assert_array_equal(np.concatenate([a for _, a in volume.slabs(32)]), ARRAY)


def test_metadata_is_ome_zarr_05(tmp_path):
    group = zarr.open_group(str(write(tmp_path / "scan.zarr")), mode="r")
    described = group.attrs["ome"]
    assert described["version"] == "0.5"
    (multiscale,) = described["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
    assert {axis["unit"] for axis in multiscale["axes"]} == {"millimeter"}
    (level,) = multiscale["datasets"]
    assert [step["type"] for step in level["coordinateTransformations"]] == ["scale", "translation"]
    assert level["coordinateTransformations"][0]["scale"] == pytest.approx([2.5, 0.8, 0.7])
    array = group[level["path"]]
    np.testing.assert_array_equal(array[:], ARRAY)
    assert array.shards == (64, 64, 64)
    assert array.metadata.dimension_names == ("z", "y", "x")


def test_channels_come_first(tmp_path):
    array = np.stack([ARRAY, -ARRAY]).astype("f4")
    path = write(tmp_path / "p.zarr", array, channels=2, names=["a", "b"])
    group = zarr.open_group(str(path), mode="r")
    np.testing.assert_array_equal(group["0"][:], array)
    assert [axis["name"] for axis in group.attrs["ome"]["multiscales"][0]["axes"]] == ["c", "z", "y", "x"]
    assert group.attrs["volseg"]["channels"] == ["a", "b"]
    with pytest.raises(VolumeError, match="one channel"):
        open_volume(path)


@settings(deadline=None, max_examples=50)
@given(st.tuples(*[st.integers(1, 400)] * 3), st.sampled_from([None, 1, 3]))
def test_units_are_the_shards(shape, channels):
    units, side = shard_units(shape, channels), shard_side(shape)
    assert sum(unit.box.size for unit in units) == np.prod(shape) * (channels or 1)
    assert len({(unit.channel, unit.box.start) for unit in units}) == len(units)
    for unit in units:
        assert all(a % side == 0 for a in unit.box.start)
        assert all(b == min(a + side, n) for a, b, n in zip(unit.box.start, unit.box.stop, shape, strict=True))


def test_large_volumes_have_larger_shards():
    assert shard_side((512, 512, 512)) == 64
    assert shard_side((1024, 1024, 1024)) == 128


def test_a_lost_shard_is_no_air(tmp_path):
    path = write(tmp_path / "scan.zarr", np.zeros(SHAPE, "u1"))
    (path / "0" / "c" / "1" / "0" / "2").unlink()
    with pytest.raises(VolumeError, match="incomplete: 5 of its 6 shards"):
        open_volume(path)


def test_a_damaged_shard_is_named(tmp_path):
    path = write(tmp_path / "scan.zarr")
    shard = path / "0" / "c" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(VolumeError, match="damaged at"):
        open_volume(path).read(Box.whole(SHAPE))


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_reads_others_ome_zarr(tmp_path, version):
    attributes = ome(scale=(2, 0.5, 0.25), translation=(10, 20, 30), version=version)
    volume = open_volume(foreign(tmp_path / "f.zarr", attributes, zarr_format=3 if version == "0.5" else 2))
    assert volume.space.spacing == (2, 0.5, 0.25)
    np.testing.assert_array_equal(volume.space.affine[:3, 3], [30, 20, 10])
    np.testing.assert_array_equal(volume.read(Box((1, 2, 3), (60, 30, 20))), ARRAY[1:60, 2:30, 3:20])


def test_units_and_outer_scale_count(tmp_path):
    attributes = ome(scale=(2, 1, 1), translation=(3, 0, 0), unit="micrometer")
    attributes["ome"]["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [10, 10, 10]}]
    volume = open_volume(foreign(tmp_path / "f.zarr", attributes))
    assert volume.space.spacing == pytest.approx((0.02, 0.01, 0.01))
    assert volume.space.affine[2, 3] == pytest.approx(0.03)


def test_single_channel_and_time_are_dropped(tmp_path):
    attributes = ome(axes="tczyx", scale=(1, 1, 2, 3, 4))
    volume = open_volume(foreign(tmp_path / "f.zarr", attributes, ARRAY[None, None]))
    assert volume.shape == SHAPE
    assert volume.space.spacing == (2, 3, 4)
    np.testing.assert_array_equal(volume.read(Box.whole(SHAPE)), ARRAY)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(("dtype", "read_as"), [("f8", "f4"), ("bool", "u1"), (">i2", "i2"), ("u2", "u2")])
def test_plain_arrays(tmp_path, zarr_format, dtype, read_as):
    array = np.abs(ARRAY).astype(dtype)
    zarr.create_array(str(tmp_path / "a"), data=array, zarr_format=zarr_format)
    volume = open_volume(tmp_path / "a")
    assert (volume.dtype, volume.space.spacing) == (np.dtype(read_as), (1, 1, 1))
    np.testing.assert_array_equal(volume.read(Box.whole(SHAPE)), array.astype(read_as))


def test_refusals(tmp_path):
    zarr.create_array(str(tmp_path / "flat.zarr"), data=ARRAY[0])
    zarr.create_array(str(tmp_path / "complex.zarr"), data=ARRAY.astype("c8"))
    zarr.create_group(str(tmp_path / "group.zarr"))
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    foreign(tmp_path / "xyz.zarr", ome(axes="xyz"))
    foreign(tmp_path / "feet.zarr", ome(unit="foot"))
    for name, word in {
        "flat": "40x130; volseg reads one volume",
        "complex": "complex64",
        "group": "without OME-Zarr metadata",
        "empty": "not a readable zarr",
        "broken": "not a readable zarr",
        "xyz": "axes x, y, z",
        "feet": "is in foot",
    }.items():
        with pytest.raises(VolumeError, match=word):
            open_volume(tmp_path / f"{name}.zarr")


def test_a_store_without_its_last_written_file_is_refused(tmp_path):
    path = write(tmp_path / "scan.zarr")
    assert json.loads((path / "zarr.json").read_text())["node_type"] == "group"
    (path / "zarr.json").unlink()
    with pytest.raises(VolumeError, match="not a readable zarr"):
        open_volume(path)
    shutil.rmtree(path)


@pytest.mark.parametrize("attribute", [{}, {"affine": [1, 2]}, {"affine": None}, "text"])
def test_another_program_s_volseg_attribute_is_refused(tmp_path, attribute):
    with pytest.raises(VolumeError, match="holds no affine"):
        open_volume(foreign(tmp_path / "a.zarr", ome() | {"volseg": attribute}))


def test_what_a_store_does_not_say_is_a_warning(tmp_path):
    assert open_volume(foreign(tmp_path / "whole.zarr", ome())).audit.warnings == ()
    assert open_volume(write(tmp_path / "ours.zarr")).audit.warnings == ()
    unsized = ome()
    del unsized["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    cases = {
        "how large its voxels are; taken to be 1 mm": [
            open_volume(foreign(tmp_path / "unsized.zarr", unsized)),
            open_volume(foreign(tmp_path / "plain.zarr", {}) / "s0"),
        ],
        "no unit of length": [open_volume(foreign(tmp_path / "unit.zarr", ome(unit="")))],
        r"negative scale (-2x1x1)": [open_volume(foreign(tmp_path / "back.zarr", ome(scale=(-2, 1, 1))))],
    }  # fmt: skip
    for words, volumes in cases.items():
        for volume in volumes:
            assert [words in text for text in volume.audit.warnings] == [True], words
    with pytest.raises(VolumeError, match=r"maps no voxel grid"):
        open_volume(foreign(tmp_path / "zero.zarr", ome(scale=(0, 1, 1))))
