"""Modules that are loaded when they are first used: in processes of their own, since imports are the process's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from textwrap import dedent

import pytest

Python = Callable[..., CompletedProcess[str]]
MODULES = {
    "tools/__init__.py": "print('tools'); import kit; from tools import plain",
    "tools/plain.py": "print('plain'); value = 1",
    "kit/__init__.py": "print('kit'); value = 2; __version__ = '3'",
    "kit/part.py": "print('part')",
}


@pytest.fixture
def prints(tmp_path: Path, python: Python) -> Callable[[str], list[str]]:
    """``prints(program)``: the lines of a program that may import the modules above."""
    for name, source in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)

    def run(program: str) -> list[str]:
        start = "import sys; sys.path.insert(0, '.'); from volseg.deferred import *; from volseg import deferred\n"
        done = python(["-c", start + dedent(program)], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


OWN = "own_this_process(); put_off('kit', 'tools.plain', until=('signal_of_use',))\n"


@pytest.mark.parametrize(
    "use",
    [
        "assert kit.value == 2 and tools.plain.value == 1",
        "assert kit.__version__ == '3'",
        "from kit import value",
        "from tools.plain import value",
        "kit.whole = True; kit.value",
    ],
)  # fmt: skip
def test_the_first_use_of_a_module_loads_all_that_were_put_off_with_it(
    prints: Callable[[str], list[str]], use: str
) -> None:
    begin = OWN + "import tools, kit, kit as again; print('begun'); assert not hasattr(kit, '__wrapped__')\n"
    assert prints(begin + use) == ["tools", "begun", "kit", "plain"]
    assert prints(begin + use + "\nimport kit.part; assert kit.part and kit.__spec__.name == 'kit'")[-1] == "part"


def test_a_module_within_a_package_is_use_of_the_package(prints: Callable[[str], list[str]]) -> None:
    assert prints(OWN + "import kit; print('begun'); import kit.part") == ["begun", "kit", "part"]


def test_an_import_may_be_the_signal_of_use(prints: Callable[[str], list[str]]) -> None:
    program = """
        import kit
        try:
            import signal_of_use
        except ImportError:
            print('none')
        """
    assert prints(OWN + dedent(program)) == ["kit", "none"]


def test_what_is_not_installed_is_missed_at_once(prints: Callable[[str], list[str]]) -> None:
    program = """
        own_this_process(); put_off('nothing')
        try:
            import nothing
        except ModuleNotFoundError:
            print('missed')
        """
    assert prints(program) == ["missed"]


def test_hidden_is_as_if_not_installed(prints: Callable[[str], list[str]]) -> None:
    program = """
        own_this_process()
        with hidden('kit'):
            try:
                import tools
            except ImportError:
                print('hidden')
        import tools
        """
    assert prints(program) == ["tools", "hidden", "tools", "kit", "plain"]
    assert prints("import kit; own_this_process()\nwith hidden('kit'): import tools") == ["kit", "tools", "plain"]


def test_in_a_process_of_somebody_else_nothing_changes(prints: Callable[[str], list[str]]) -> None:
    assert prints("put_off('kit')\nwith hidden('kit'): import tools") == ["tools", "kit", "plain"]


def test_a_second_segment_compiles_nothing_and_loads_nothing_needless(tmp_path: Path, python: Python) -> None:
    from tiny import ct_like, save_nifti, untrained_run

    untrained_run(tmp_path / "run")
    scan = save_nifti(tmp_path / "scan.nii.gz", ct_like())
    program = f"""
        import sys
        sys.argv = ["volseg", "segment", {str(scan)!r}, "-o", sys.argv[1], "--model", {str(tmp_path / "run")!r}, "-q"]
        from volseg.cli.app import main
        from volseg.deferred import is_put_off
        from volseg.nn.kernels.jit.machine_code import compiled_modules
        try:
            main()
        finally:
            print(compiled_modules(), is_put_off("torch._meta_registrations"), "pydicom" in sys.modules)
        """
    environment = {"VOLSEG_CACHE": str(tmp_path / "kept")}
    first, second = (
        python(["-c", dedent(program), name], env=environment, cwd=tmp_path) for name in ("a.nii", "b.nii")
    )
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    compiled, *rest = first.stdout.splitlines()[-1].split()
    assert int(compiled) > 3
    assert rest == ["True", "False"]
    assert second.stdout.splitlines()[-1] == "0 True False"
    assert (tmp_path / "a.nii").read_bytes() == (tmp_path / "b.nii").read_bytes()
