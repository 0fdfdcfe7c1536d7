"""Events drawn: plain lines off a terminal, bars on one, also on the terminal that the launcher was started from."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from volseg import messages
from volseg.cli import render
from volseg.cli.render import Lines, Screen, step_time_text, table, time_text
from volseg.events import Caution, Message, Progress
from volseg.machine import gibibytes
from volseg.messages import duration

SCRIPT = """
import time
from volseg.cli.job import job
from volseg.events import Caution, Message, Progress
with job() as running:
    running.listen(Message("a message"))
    for done in range(5):
        running.listen(Progress("work", done, 4, "steps", {"loss": f"{1 / (done + 1):.2f}"}))
        time.sleep(0.05)
    running.listen(Caution("a caution"))
    running.print("a [result] of the root")
"""


def lines_of(events):
    text = io.StringIO()
    lines = Lines(Console(file=text, width=200, highlight=False))
    for event in events:
        lines.update(event)
    return text.getvalue().splitlines()


def test_plain_progress_is_a_line_for_each_tenth_and_the_ends():
    shown = lines_of(Progress("train", step, 1000, "steps") for step in range(1001))
    assert len(shown) == 11
    assert shown[0] == "train   0% (0/1000 steps)"
    assert shown[5].startswith("train  50% (500/1000 steps)  elapsed 0:00  remaining 0:00")
    assert shown[-1].startswith("train 100% (1000/1000 steps)  elapsed 0:00")


def test_plain_progress_speaks_after_a_long_silence(monkeypatch):
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(messages.time, "monotonic", lambda: float(next(clock)))
    shown = lines_of(Progress("train", step, 1_000_000) for step in range(9))
    assert len(shown) == 5  # at the start, then every second event: 40 s apart


def test_time_left_goes_by_the_work_where_steps_differ(monkeypatch):
    clock = iter([0.0, 40.0])
    monkeypatch.setattr(messages.time, "monotonic", lambda: next(clock))
    shown = lines_of([Progress("train", 0, 8, "steps", work=0.0), Progress("train", 4, 8, "steps", work=0.04)])
    assert shown[1] == "train   4% (4/8 steps)  elapsed 0:40  remaining 16:00"
    assert Progress("train", 8, 8, work=0.99).share == 1.0
    assert Progress("train", 2, 8).share == 0.25


def test_bars_go_by_the_work():
    bars = render.Bars(Console(file=io.StringIO(), force_terminal=True, width=100))
    bars.update(Progress("train", 4, 8, "steps", work=0.04))
    (task,) = bars._progress.tasks
    bars.close()
    assert task.percentage == pytest.approx(4)


def test_plain_progress_shows_figures_and_starts_over_for_the_same_task():
    events = [Progress("read", 0, 1), Progress("read", 1, 1, figures={"loss": "0.41", "dice": "0.9"})] * 2
    shown = lines_of(events)
    assert len(shown) == 4
    assert shown[1].endswith("loss 0.41  dice 0.9")


def test_results_and_messages_go_to_different_streams(capsys):
    screen = Screen()
    screen.draw(Message("reading /a/very/long/[path]/" + "x" * 200))
    screen.draw(Caution("spacing is unusual"))
    screen.print("a [bold]result[/bold], as it is")
    screen.print(table("masks", ["label", "ml"], [["liver", 1234.5]]))
    out, err = capsys.readouterr()
    assert err.splitlines() == ["reading /a/very/long/[path]/" + "x" * 200, "warning: spacing is unusual"]
    assert out.splitlines()[0] == "a [bold]result[/bold], as it is"
    assert "1234.5" in out
    assert "\x1b" not in out + err


def test_quiet_keeps_warnings_and_results(capsys):
    screen = Screen(quiet=True, progress=False)
    for event in (Message("a"), Progress("b", 0, 1), Caution("c")):
        screen.draw(event)
    screen.print("d")
    out, err = capsys.readouterr()
    assert (out, err) == ("d\n", "warning: c\n")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0.00 GiB"), (2**30 * 3.216, "3.22 GiB"), (2**30 * 31.2, "31.2 GiB"), (2**40, "1024 GiB")]
)
def test_memory_is_in_gib(count, text):
    assert gibibytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (75, "1:15"), (3599.6, "1:00:00"), (7384, "2:03:04")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def on_a_terminal(command, timeout=30.0):
    """What a command shows on a terminal of 100 columns, as one string."""
    own, its = pty.openpty()
    subprocess.run(["stty", "cols", "100"], stdin=its, check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "HYD", "MPI_"))}
    environment |= {"TERM": "xterm", "MPIEXEC_TIMEOUT": str(int(timeout))}
    process = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True, close_fds=True
    )
    os.close(its)
    shown = b""
    deadline = time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            if select.select([own], [], [], 0.2)[0]:
                try:
                    piece = os.read(own, 65536)
                except OSError:  # Linux: nobody holds the other end any more
                    break
                if not piece:
                    break
                shown += piece
            elif process.poll() is not None:
                break
    finally:
        process.kill()
        process.wait()
        os.close(own)
    return shown.decode(errors="replace")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the launcher's terminal is found on Linux only")
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_terminal_gets_a_bar_with_and_without_a_launcher(tmp_path, ranks):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = Path(sys.executable).with_name("mpiexec")
    if ranks and not launcher.exists():
        pytest.skip("no mpiexec beside this Python (pip install mpich)")
    shown = on_a_terminal([*([launcher, "-n", str(ranks)] if ranks else []), sys.executable, script])
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "━" in plain
    assert "100%" in plain
    assert "loss 0.20" in plain
    assert plain.count("a message") == 1
    assert plain.count("warning: a caution") == 1
    assert plain.count("a [result] of the root") == 1


def test_ranks_without_a_terminal_write_plain_lines(mpirun, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = mpirun(2, [script])
    assert run.returncode == 0
    assert run.stdout == "a [result] of the root\n"
    shown = run.stderr.splitlines()
    assert shown[0] == "a message"
    assert [line.split()[1] for line in shown[1:-1]] == ["0%", "25%", "50%", "75%", "100%"]
    assert shown[-1] == "warning: a caution"


def test_time_is_shown_as_far_as_it_is_seen_in_whole_per_cents():
    shares = {"convolution": 0.806, "waiting for slower ranks": 0.15, "norm": 0.04, "pooling": 0.004}
    line = "time: convolution 81 %, waiting for slower ranks 15 %, norm 4 %"
    assert time_text(shares, None) == line
    assert time_text(shares, 0.1234) == f"{line}; a rank waited for the others 12.3% of the time at most"


@pytest.mark.parametrize(("measured", "planned", "said"), [(0.05, 0.1, 0), (1.0, 1.5, 1), (0.1, 0.3, 0), (1.0, 1.0, 0)])
def test_times_off_plan_are_said_where_they_are_long_enough(measured, planned, said):
    heard = []
    render.warn_of_time(measured, planned, heard.append)
    assert len(heard) == said
    assert all("`volseg calibrate`" in event.text for event in heard)


def test_a_plan_of_a_moment_is_not_held_against_what_took_long():
    assert step_time_text("a step took", 1.42, 0.03) == "a step took 1.42 s"
    assert step_time_text("a step took", 1.42, None) == "a step took 1.42 s"
    assert step_time_text("a step took", 2.0, 1.5) == "a step took 2 s; planned 1.5 s, 0.75 of the measured"
