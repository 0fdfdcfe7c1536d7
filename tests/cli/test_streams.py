"""Whatever becomes of what is printed, the job goes on; only a result that is lost is a failure."""

import contextlib
import io
import os
import signal
import subprocess
import sys

import pytest

from conftest import clean_environment
from volseg.cli import streams
from volseg.cli.streams import Outlet, secure_streams

JOB = """
import sys, time
from pathlib import Path
from volseg.cli.job import job
from volseg.cli.streams import secure_streams
from volseg.events import Caution, Message
secure_streams()
with job() as work:
    for n in range(40):
        work.listen(Message(f"message {n}"))
        if "slowly" in sys.argv:
            time.sleep(0.02)
    work.listen(Caution("a caution"))
    work.tell("how it went")
    work.communicator.barrier()
    if work.communicator.is_root:
        Path(sys.argv[1]).write_text("done")
"""


def shell(command, folder, **environment):
    """Run a command line of bash with `volseg` and `job` as programs; its result."""
    script = folder / "job.py"
    script.write_text(JOB)
    python = sys.executable
    functions = f'volseg() {{ {python} -m volseg "$@"; }}; job() {{ {python} {script} "$@"; }}; mpijob() '
    functions += f'{{ {os.path.dirname(python)}/mpirun -n 2 {python} {script} "$@"; }}; set -o pipefail; '
    return subprocess.run(
        ["bash", "-c", functions + command], cwd=folder, env=clean_environment() | environment, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip


def test_what_cannot_be_written_is_dropped_and_remembered_where_it_was_a_result():
    with open("/dev/full", "wb") as full:
        outlet = Outlet(full.fileno())
        outlet.forgiving = True
        assert outlet.write(b"a message") == 9
        assert outlet.lost is None
        outlet.forgiving = False
        assert outlet.write(b"a result") == 8
        assert "No space" in str(outlet.lost)


def test_a_reader_who_left_is_no_failure():
    reading, writing = os.pipe()
    os.close(reading)
    outlet = Outlet(writing)
    assert outlet.write(b"a result") == 8
    assert outlet.lost is None
    os.close(writing)
    assert outlet.write(b"another") == 7  # nor is a stream that is closed
    assert outlet.lost is None


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("ascii", rb"5 mm3 Gr\xf6\xdfe \u809d \udcff"), ("latin-1", b"5 mm\xb3 Gr\xf6\xdfe \\u809d \\udcff")],
)
def test_letters_that_an_encoding_lacks_stay_legible(encoding, written):
    raw = io.BytesIO()
    before = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__, signal.getsignal(signal.SIGHUP)
    try:
        secure_streams()
    finally:
        sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__, hangup = before
        signal.signal(signal.SIGHUP, hangup)
    text = io.TextIOWrapper(raw, encoding=encoding, errors="volseg.legible")
    text.write("5 mm³ Größe 肝 \udcff")  # the last of a file name that is no UTF-8
    text.flush()
    assert raw.getvalue() == written


@pytest.mark.parametrize(
    "redirected",
    [">/dev/full 2>/dev/full", "<&- 2>&- >&-", "2>&1 | head -1"],
)
def test_a_job_outlives_its_streams(tmp_path, redirected):
    ended = shell(f"job out {redirected}", tmp_path)
    assert (ended.returncode, (tmp_path / "out").read_text()) == (0, "done")
    assert ended.stderr == ""


@pytest.mark.parametrize("redirected", ["2>/dev/full", "slowly 2>&1 | head -2"])
def test_two_ranks_outlive_what_their_launcher_writes_to(tmp_path, redirected):
    """It ends the job where it cannot write, so it is handed nothing then."""
    ended = shell(f"mpijob out {redirected}", tmp_path)
    assert (ended.returncode, (tmp_path / "out").read_text()) == (0, "done"), ended.stderr


def test_a_result_that_is_lost_is_an_error_unless_its_reader_left(tmp_path):
    ended = shell("volseg plan-partition --shape 32x32x32 --json >/dev/full", tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == "error: standard output: No space left on device; free some space or write elsewhere\n"
    ended = shell("volseg plan-partition --shape 32x32x32 | head -1", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    ended = shell("volseg init-config -o run.toml >/dev/full", tmp_path)  # the file is the result
    assert (ended.returncode, ended.stderr) == (0, "")


def test_help_is_printed_whatever_the_encoding(tmp_path):
    ended = shell("volseg train --help", tmp_path, PYTHONIOENCODING="ascii")
    assert ended.returncode == 0
    assert "--max-time" in ended.stdout


def test_a_job_outlives_its_terminal(tmp_path):
    """The terminal is closed: SIGHUP, and errors for who writes to it."""
    script = tmp_path / "job.py"
    script.write_text(JOB)
    main, side = os.openpty()
    job = subprocess.Popen(
        [sys.executable, script, tmp_path / "out", "slowly"], stdin=side, stdout=side, stderr=side,
        env=clean_environment(), start_new_session=True,
    )  # fmt: skip
    os.close(side)
    assert os.read(main, 1)  # it speaks
    job.send_signal(signal.SIGHUP)
    os.close(main)
    assert job.wait(timeout=60) == 0
    assert (tmp_path / "out").read_text() == "done"


def test_a_reader_who_does_not_read_is_waited_for_once(monkeypatch):
    """Of a stream that does not wait, as asyncio's and node's; not at each of a run's messages."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    waited = []
    monkeypatch.setattr(streams.select, "select", lambda *arguments: waited.append(arguments[3]) or ([], [], []))
    outlet = streams.Outlet(writing)
    for _ in range(3):
        assert outlet.write(b"message\n") == 8
    assert waited == [streams._PATIENCE_SECONDS, 0.0, 0.0]
    os.read(reading, 65536)
    outlet.write(b"message\n")
    assert outlet._patience == streams._PATIENCE_SECONDS
    os.close(reading)
    os.close(writing)
