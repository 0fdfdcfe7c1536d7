"""The shell around the commands: help, version, usage errors, what is imported, and who prints."""

import importlib.util
import os

import pytest

from volseg import __version__
from volseg.cli.app import COMMANDS, load, module_of

HEAVY = ("torch", "mpi4py", "numpy", "nibabel", "pydicom", "zarr", "matplotlib", "scipy")


def loaded_by(python, *arguments, names=HEAVY):
    """The modules of `names` that one command line imports."""
    script = (
        "import sys\nfrom volseg.cli.app import run\n"
        f"code = run({list(arguments)!r})\nprint('\\nloaded', *[n for n in {names!r} if n in sys.modules])\n"
    )
    return python(["-c", script]).stdout.splitlines()[-1].split()[1:]


def test_help_names_every_command(python):
    run = python(["-m", "volseg", "--help"])
    assert run.returncode == 0
    assert run.stderr == ""
    for command in COMMANDS:
        assert command in run.stdout


def test_help_imports_nothing_heavy(python):
    assert loaded_by(python, "--help") == []


def test_help_is_quick(python):
    def once():
        before = os.times()
        python(["-m", "volseg", "--help"])
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(once() for _ in range(3)) < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_without_torch_or_mpi(python, command):
    run = python(["-m", "volseg", command, "--help"])
    assert run.returncode == 0
    assert f"volseg {command}" in run.stdout
    assert loaded_by(python, command, "--help", names=("torch", "mpi4py")) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_a_function_of_its_own_module(command):
    assert importlib.util.find_spec(f"volseg.cli.{module_of(command)}") is not None
    assert load(command).name == command


def test_version(python):
    run = python(["-m", "volseg", "--version"])
    assert (run.returncode, run.stdout) == (0, f"volseg {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["sgement"], "segment"), (["--colour"], "--colour"), (["info", "--colour"], "--colour"), (["info"], "PATH")],
)
def test_usage_errors_are_two_lines_and_exit_code_2(python, arguments, said):
    run = python(["-m", "volseg", *arguments])
    assert run.returncode == 2
    assert run.stdout == ""
    assert said.lower() in run.stderr.lower()
    assert len(run.stderr.splitlines()) <= 2
    assert "Traceback" not in run.stderr


def test_ranks_print_help_once(mpirun):
    run = mpirun(3, ["-m", "volseg", "--help"])
    assert run.returncode == 0
    assert run.stdout.count("Usage:") == 1


def test_ranks_print_a_usage_error_once(mpirun):
    run = mpirun(3, ["-m", "volseg", "sgement"])
    assert run.returncode == 2
    assert run.stderr.count("error:") == 1
    assert run.stdout == ""
