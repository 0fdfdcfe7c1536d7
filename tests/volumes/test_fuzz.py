"""Damaged and hostile files: each ends in a volume that reads or a VolsegError, soon and in little memory.

`tests/damage/` damages small real files, its `fuzz.py` reads them in a process of its own. A failure names its
case: ``PYTHONPATH=tests python tests/damage/fuzz.py --only FAMILY --case NUMBER`` makes it again.
VOLSEG_FUZZ=20000 runs more.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import zarr
from pydicom.data import get_testdata_file

from damage.fuzz import EVERY, MEMORY_BYTES
from volseg.errors import VolumeError
from volseg.volumes.reading import open_volume

PROGRAM = Path(__file__).resolve().parent.parent / "damage" / "fuzz.py"
CASES = int(os.environ.get("VOLSEG_FUZZ", "40")) * (1 if "VOLSEG_FUZZ" in os.environ else len(EVERY))


@pytest.mark.timeout(120 + CASES // 2)
def test_damaged_files_end_in_a_volume_or_a_volseg_error(python):
    done = python(
        [PROGRAM, "--cases", str(CASES)], timeout=100 + CASES / 2, env={"PYTHONPATH": str(PROGRAM.parent.parent)}
    )
    assert done.returncode == 0, done.stderr[-3000:]  # a hang or a crash: the case named last is to blame
    result = json.loads(done.stdout.splitlines()[-1])
    listed = "\n".join(f"{f['case']}: {f['error']}\n    {f['at']}" for f in result["failures"][:20])
    assert not result["failures"], (
        f"{len(result['failures'])} of {CASES} cases (slowest {result['slowest']}):\n{listed}"
    )
    assert result["memory"] <= MEMORY_BYTES, (
        f"peak memory grew by {result['memory']} bytes, most in {result['largest']}"
    )
    for family in EVERY:  # a family that only ever does one of the two tests nothing of the other
        assert result["outcomes"].get(f"{family} refused"), family
        assert result["outcomes"].get(f"{family} volume"), family


@pytest.mark.parametrize(
    "multiscale",
    [
        {"axes": 7, "datasets": [{"path": "0"}]},
        {"axes": [{}, {}, {}], "datasets": [{"path": "0"}]},
        {"axes": ["z", 1.5, "x"], "datasets": [{"path": "0"}]},
        {"datasets": [{"path": "0", "coordinateTransformations": [{}]}]},
        {"datasets": [{"path": ""}]},
    ],
)
def test_malformed_zarr_metadata(tmp_path, multiscale):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    group.create_array("0", shape=(4, 5, 6), dtype="int16")
    group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    with pytest.raises(VolumeError, match=r"malformed|not a readable"):
        open_volume(tmp_path / "a.zarr")


def test_a_file_of_zeros_is_given_up_soon(tmp_path):
    """Read as DICOM it is two million elements, for which pydicom takes half a minute."""
    (tmp_path / "zeros.dcm").write_bytes(bytes(128) + b"DICM" + bytes(20_000_000))
    start = time.process_time()
    with pytest.raises(VolumeError, match="a header of more than"):
        open_volume(tmp_path)
    assert time.process_time() - start < 10


def test_a_file_that_a_dicomdir_misses_is_told(tmp_path):
    """The lost slice may be the last one, which leaves no gap."""
    source = Path(str(get_testdata_file("CT_small.dcm"))).parent / "dicomdirtests"
    shutil.copy(source / "DICOMDIR", tmp_path)
    shutil.copytree(source / "98892001" / "CT5N", tmp_path / "98892001" / "CT5N")
    (tmp_path / "98892001" / "CT5N" / "3353").unlink()
    volume = open_volume(tmp_path / "DICOMDIR")
    assert volume.shape == (4, 16, 16)
    assert any("files of the DICOMDIR are missing" in warning for warning in volume.audit.warnings)


def test_a_zarr_of_more_chunks_than_anyone_reads(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(8, 10, 2**31 - 1), chunks=(4, 5, 6), dtype="int16")
    with pytest.raises(VolumeError, match=r"1431655768 chunks .*, limit 4194304; is its metadata damaged\?"):
        open_volume(tmp_path / "a.zarr")


def test_an_empty_zarr(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(8, 0, 12), chunks=(4, 5, 6), dtype="int16")
    with pytest.raises(VolumeError, match="an empty array, 8x0x12"):
        open_volume(tmp_path / "a.zarr")
