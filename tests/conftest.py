"""What all tests share: one thread per process, the real CT, a communicator, and programs run on many ranks.

With VOLSEG_TEST_OUTCOMES set to a folder, each process also notes there what became of each of its tests, so that
`tests/run_suite.py` can add up several runs of several ranks, even where one of them was killed. Machine code of
kernels is kept for the run alone, in the folder VOLSEG_CACHE, which all processes share that the tests start.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import pytest

from run_suite import YIELDING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported anywhere

REPOSITORY = Path(__file__).resolve().parent.parent
# What launchers set; a program that a test starts must not take this test's launcher for its own.
LAUNCHER_PREFIXES = ("PMI", "PMIX", "MPI_LOCAL", "HYD", "OMPI_", "PRTE_", "SLURM_")

_outcomes: TextIO | None = None


def pytest_configure(config: pytest.Config) -> None:
    global _outcomes
    for ranks in (1, 2, 3, 4, 8):  # so that a run may ask for a number of ranks that no collected test has
        config.addinivalue_line("markers", f"parallel[{ranks}]: runs on this many ranks")
    folder = os.environ.pop("VOLSEG_TEST_OUTCOMES", None)
    if "VOLSEG_CACHE" not in os.environ:  # a run of pytest alone, and no process of one
        os.environ["VOLSEG_CACHE"] = tempfile.mkdtemp(prefix="volseg-machine-code-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop("VOLSEG_CACHE"), ignore_errors=True))
    if folder:
        _outcomes = (Path(folder) / f"{os.getpid()}.outcomes").open("w", buffering=1)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """On several ranks a file without a test for so many is not imported: each rank would do so for nothing.

    A test that was asked for by its name is still collected, since pytest calls a name that it does not meet an error.
    """
    ranks = int(os.environ.get("PMI_SIZE") or os.environ.get("OMPI_COMM_WORLD_SIZE") or 1)
    if ranks == 1 or any("::" in name for name in parent.config.args) or _is_for(ranks, module_path.read_text()):
        return None
    return _PassedOver.from_parent(parent, path=module_path)


def _is_for(ranks: int, source: str) -> bool:
    """Whether a test may be for so many ranks: unless all marks of the file say others, in figures."""
    marks = re.findall(r"mark\.parallel(?:\(\[?([\d, ]+)\]?\))?", source)
    return any(not figures or str(ranks) in re.findall(r"\d+", figures) for figures in marks)


class _PassedOver(pytest.File):
    def collect(self) -> list[pytest.Item]:
        return []


def pytest_runtest_logstart(nodeid: str) -> None:
    if _outcomes is not None:
        _outcomes.write(f"unfinished\t{nodeid}\n")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if _outcomes is None:
        return
    if report.failed or report.skipped or report.when == "call":
        _outcomes.write(f"{report.outcome}\t{report.nodeid}\n")
    if report.failed:
        # At once: where the other ranks wait for this one for ever, the run is killed before pytest's summary.
        print(f"\nFAILED {report.nodeid}\n{report.longreprtext}", file=sys.__stderr__, flush=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _outcomes is not None:
        _outcomes.write("finished\t\n")


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real CT scans: VOLSEG_TEST_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("VOLSEG_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "abdomen_ct" / "ct.nii.gz").is_file():
        pytest.skip(f"no real CT at {folder} (VOLSEG_TEST_DATA names another folder)")
    return folder


@pytest.fixture
def communicator(monkeypatch):
    """All ranks of this test run: MPI's where mpiexec started it, a single one otherwise.

    What a test splits from it is given back after it: MPI has room for some two thousand communicators, and all tests
    of so many ranks run in one job.
    """
    from volseg.distributed.communicator import MpiCommunicator, SerialCommunicator
    from volseg.distributed.launchers import under_launcher

    if not under_launcher():
        yield SerialCommunicator()
        return
    from mpi4py import MPI

    made, split = [], MpiCommunicator.split

    def remembered(self, colour, key):
        made.append(split(self, colour, key))
        return made[-1]

    monkeypatch.setattr(MpiCommunicator, "split", remembered)
    yield MpiCommunicator(MPI.COMM_WORLD)
    for one in made:
        one.comm.Free()


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without its launcher's variables, one thread per process, and with `changes`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_PREFIXES)}
    return kept | {"OMP_NUM_THREADS": "1"} | changes


def run_program(
    command: Sequence[str | Path], *, timeout: float = 120.0, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program and everything it starts; all of it is killed, and the test fails, after `timeout` seconds."""
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out, err = _kill(process)
        pytest.fail(f"still running after {timeout:g} s: {' '.join(map(str, command))}\n{out}\n{err}")
    except BaseException:
        _kill(process)
        raise
    return subprocess.CompletedProcess(list(map(str, command)), process.returncode, out, err)


def _kill(process: subprocess.Popen[str]) -> tuple[str, str]:
    # The launcher gets a moment to end its ranks, which may be in other process groups.
    for signal_number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, signal_number)
            return process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            break
    return "", ""


@pytest.fixture
def mpirun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``mpirun(ranks, command, timeout=120, cwd=None, env=None)``: run a command on that many ranks.

    `command` without a program of its own is given to this Python: ``["-m", "volseg", "info"]``, ``[script]``.
    """
    launcher = Path(sys.executable).with_name("mpiexec")
    if not launcher.exists():
        pytest.skip("no mpiexec beside this Python (pip install mpich)")

    def start(ranks: int, command: Sequence[str | Path], timeout: float = 120.0, cwd=None, env=None):
        # Other tests run beside this one, so that its ranks share cores however few they are.
        limits = {"MPIEXEC_TIMEOUT": str(int(timeout) + 5)} | YIELDING | (env or {})
        program = [launcher, "-n", str(ranks), sys.executable, *command]
        return run_program(program, timeout=timeout, cwd=cwd, env=limits)

    return start


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``python(command, timeout=120, cwd=None, env=None)``: the same in a single process without a launcher."""

    def start(command: Sequence[str | Path], timeout: float = 120.0, cwd=None, env=None):
        return run_program([sys.executable, *command], timeout=timeout, cwd=cwd, env=env)

    return start


@pytest.fixture
def shared(tmp_path, communicator):
    """One folder for all ranks, with an untrained run."""
    from tiny import untrained_run

    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            untrained_run(folder / "run")
    return folder


@pytest.fixture
def volseg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:  # fmt: skip
    """``volseg(*arguments)``: what a command line that must succeed prints, run in an empty folder."""
    from volseg.cli.app import run

    monkeypatch.chdir(tmp_path)

    def start(*arguments: object) -> str:
        code = run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return start
