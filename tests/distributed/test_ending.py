"""The last message reaches its reader before the job is aborted."""

import os
import threading
import time

import pytest

from volseg.distributed import ending


def test_waits_until_the_pipe_is_read():
    reading, writing = os.pipe()
    os.write(writing, b"rank 1: error: slice 7 is damaged\n")
    taken = []

    def read() -> None:
        time.sleep(0.3)
        taken.append(os.read(reading, 100))

    thread = threading.Thread(target=read)
    thread.start()
    ending._await_reader(writing)
    assert taken == [b"rank 1: error: slice 7 is damaged\n"]
    thread.join()
    os.close(reading)
    os.close(writing)


def test_does_not_wait_for_ever_for_a_reader(monkeypatch):
    monkeypatch.setattr(ending, "READER_LIMIT", 0.2)
    reading, writing = os.pipe()
    os.write(writing, b"unread")
    begin = time.monotonic()
    ending._await_reader(writing)
    assert 0.1 < time.monotonic() - begin < 10
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("kind", ["file", "closed"])
def test_nothing_to_wait_for(tmp_path, kind):
    with open(tmp_path / "errors.txt", "w") as file:
        descriptor = file.fileno()
        if kind == "file":
            file.write("kept")
            ending._await_reader(descriptor)
    if kind == "closed":
        ending._await_reader(descriptor)
