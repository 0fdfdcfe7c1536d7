"""Any part of a gzip file: right in any order, cheap in any order, and safe from what is damaged or made to burst."""

import gzip
import zlib
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volseg.volumes import inflate
from volseg.volumes.inflate import DamagedGzip, SeekableGzip

SIZE = 3_000_000


@pytest.fixture(scope="module")
def contents():
    """Half of it noise, half of it smooth, so that the pieces of the file inflate to very different sizes."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, SIZE // 2, dtype=np.uint8)
    return (noise.tobytes() + bytes(SIZE - len(noise)))[:SIZE]


@pytest.fixture(autouse=True)
def dense_checkpoints(monkeypatch):
    monkeypatch.setattr(inflate, "CHECKPOINT_BYTES", 100_000)


@lru_cache
def members(contents, count):
    cut = -(-len(contents) // count)
    return b"".join(gzip.compress(contents[n : n + cut], 4) for n in range(0, len(contents), cut))


def opened(folder, packed, size=SIZE):
    path = folder / "x.gz"
    path.write_bytes(packed)
    return SeekableGzip(path, size)


def read(reader, offset, length):
    buffer = bytearray(length)
    reader.read(offset, buffer)
    return bytes(buffer)


@pytest.mark.parametrize("count", [1, 7])
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranges=st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 300_000)), min_size=2, max_size=6))
def test_any_ranges_in_any_order(tmp_path_factory, contents, count, ranges):
    reader = opened(tmp_path_factory.getbasetemp(), members(contents, count))
    for offset, length in ranges:
        length = min(length, SIZE - offset)
        assert read(reader, offset, length) == contents[offset : offset + length]
    reader.close()


@pytest.mark.parametrize("count", [1, 7])
def test_forward_reads_inflate_once(tmp_path, contents, count):
    reader = opened(tmp_path, members(contents, count))
    for offset in range(0, SIZE, 50_000):
        read(reader, offset, 50_000)
    reader.check_end()
    reader.check_end()
    assert reader.inflated == SIZE


def test_backward_reads_cost_no_more_than_the_way_from_a_checkpoint(tmp_path, contents):
    reader = opened(tmp_path, members(contents, 3))
    read(reader, 0, SIZE)
    before = reader.inflated
    offsets = list(range(SIZE - 10_000, 0, -10_000))
    for offset in offsets:
        assert read(reader, offset, 10_000) == contents[offset : offset + 10_000]
    each = (reader.inflated - before) / len(offsets)
    assert each < inflate.CHECKPOINT_BYTES + 10_000  # without checkpoints: half of SIZE


def test_checkpoints_are_few_however_long_the_file(tmp_path, contents, monkeypatch):
    monkeypatch.setattr(inflate, "CHECKPOINT_BYTES", 1000)
    reader = opened(tmp_path, members(contents, 2))
    for offset in range(0, SIZE, 5000):
        read(reader, offset, 5000)
    assert len(reader._checkpoints) <= inflate.MOST_CHECKPOINTS + 1


def test_zeros_between_and_after_members_are_passed_over(tmp_path, contents):
    half = SIZE // 2
    packed = gzip.compress(contents[:half]) + bytes(40_000) + gzip.compress(contents[half:]) + bytes(512)
    reader = opened(tmp_path, packed)
    assert read(reader, half - 10, 20) == contents[half - 10 : half + 10]
    read(reader, 0, SIZE)
    reader.check_end()


@pytest.mark.parametrize("cut", [1, 8, 100_000])
def test_a_cut_file_ends_early(tmp_path, contents, cut):
    reader = opened(tmp_path, members(contents, 1)[:-cut])
    if cut > 8:  # more than the checksum and length at the end
        with pytest.raises(EOFError):
            read(reader, 0, SIZE)
    else:
        read(reader, 0, SIZE)
        with pytest.raises(EOFError):
            reader.check_end()


def test_a_wrong_checksum_is_found_after_reads_in_any_order(tmp_path, contents):
    packed = bytearray(members(contents, 1))
    packed[-6] ^= 1
    reader = opened(tmp_path, packed)
    for offset in (2_000_000, 0, 2_900_000):
        read(reader, offset, 1000)
    with pytest.raises(DamagedGzip, match="incorrect data check"):
        reader.check_end()


def test_garbage_after_the_end_is_found(tmp_path, contents):
    reader = opened(tmp_path, members(contents, 1) + b"garbage")
    read(reader, 0, SIZE)
    with pytest.raises(DamagedGzip, match="incorrect header check"):
        reader.check_end()


def test_a_file_that_goes_on_and_on_is_left(tmp_path):
    endless = zlib.compressobj(9, wbits=31)
    packed = b"".join(endless.compress(bytes(1 << 20)) for _ in range(100)) + endless.flush()
    reader = opened(tmp_path, packed, 1000)
    read(reader, 0, 1000)
    with pytest.raises(DamagedGzip, match="goes on for more than 16 MiB"):
        reader.check_end()
    assert reader.inflated <= 1000 + inflate.SPARE


def test_a_read_after_close_begins_anew(tmp_path, contents):
    reader = opened(tmp_path, members(contents, 2))
    read(reader, 0, 1_000_000)
    reader.close()
    assert read(reader, 500_000, 100) == contents[500_000:500_100]
