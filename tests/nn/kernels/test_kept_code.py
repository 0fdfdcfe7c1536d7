"""Machine code that is kept from one process to the next: what is loaded, what is compiled anew, what is refused."""

from __future__ import annotations

import ast
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import volseg
from volseg.nn.kernels.jit import code_key
from volseg.nn.kernels.jit.code_folder import CodeFolder, chosen_folder, has_kept_code
from volseg.nn.kernels.jit.code_key import digest_of, file_name, key_of, source_files
from volseg.nn.kernels.jit.compiler import Library, compiled_once, widest_vector
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer
from volseg.nn.kernels.jit.machine_code import compiled_modules

pytestmark = pytest.mark.skipif(widest_vector() == 0, reason="this processor has no kernels")
PACKAGE = Path(volseg.__file__).parent


@dataclass(frozen=True)
class Line:
    """A structure that a kernel takes: floats, and how many there are."""

    data: Pointer
    length: Int


def build(factor: int) -> Library:
    """A library that multiplies a line of floats by `factor`."""
    module = Module(8)

    @module.entry
    def scale(f: Function, first: Int, last: Int, scratch: Pointer, *, line: Line) -> None:
        with f.loop(line.length, step=8) as (at, _):
            place = line.data + at
            place.store(place.load() * f.constant(factor))

    return Library(module)


def start(factor: int = 3) -> int:
    """What a process does that needs the library for the first time; how many modules it compiled for that."""
    before = compiled_modules()
    library = compiled_once(build)(factor)
    x = torch.arange(16, dtype=torch.float32)
    library["scale"].bind(line={"data": x, "length": 16})(0, 1)
    assert x.tolist() == [factor * n for n in range(16)]
    return compiled_modules() - before


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for machine code, which is not there yet."""
    monkeypatch.setenv("VOLSEG_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.is_dir() else []


def test_a_second_start_compiles_nothing(folder: Path) -> None:
    assert not has_kept_code()
    assert start() == 1
    assert has_kept_code()
    assert start() == 0
    assert start(4) == 1, "another argument is another kernel"
    assert [file.suffix for file in kept(folder)] == [".kernels"] * 2
    assert folder.stat().st_mode & 0o777 == 0o700
    assert compiled_once(build)(3).code == build(3).code


def test_off_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLSEG_CACHE", "off")
    assert (start(), start()) == (1, 1)
    assert not kept(folder)
    assert not has_kept_code()


def test_the_folder_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VOLSEG_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert chosen_folder() == tmp_path / ".cache" / "volseg"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert chosen_folder() == tmp_path / "caches" / "volseg"
    monkeypatch.setenv("VOLSEG_CACHE", "~/own")
    assert chosen_folder() == tmp_path / "own"


def test_changed_code_and_another_processor_are_other_kernels(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "volseg"
    for file in source_files(PACKAGE):
        target = copy / file.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    assert digest_of(copy) == digest_of(PACKAGE)
    with (copy / "nn" / "kernels" / "parts.py").open("a") as source:
        source.write("#")
    changed = digest_of(copy)
    assert changed != digest_of(PACKAGE)

    assert start() == 1
    monkeypatch.setattr(code_key, "source_digest", lambda: changed)
    assert start() == 1
    monkeypatch.undo()
    monkeypatch.setenv("VOLSEG_CACHE", str(folder))
    assert start() == 0
    processor = code_key.processor()
    monkeypatch.setattr(code_key, "processor", lambda: (*processor[:-1], processor[-1] + ",+new"))
    assert start() == 1


def test_the_key_covers_all_that_kernels_are_built_from() -> None:
    """Every module of volseg that a module with builders imports, over any number of steps."""
    covered = set(source_files(PACKAGE))
    todo = [file for file in PACKAGE.rglob("*.py") if "@compiled_once" in file.read_text(encoding="utf-8")]
    met = set(todo)
    assert len(met) > 5
    while todo:
        file = todo.pop()
        assert file in covered, f"{file.relative_to(PACKAGE)} is imported by kernels; add it to code_key.SOURCES"
        for new in set(imported(file)) - met:
            met.add(new)
            todo.append(new)


def imported(file: Path) -> Iterator[Path]:
    """The files of volseg that a file imports from."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("volseg."):
            base = PACKAGE.joinpath(*str(node.module).split(".")[1:])
            names = [base, *(base / alias.name for alias in node.names)]
            yield from (path for name in names if (path := name.with_suffix(".py")).is_file())


def test_an_argument_without_words_is_refused() -> None:
    with pytest.raises(AssertionError, match="a kernel's argument is a object"):
        key_of(build, [object()])


@pytest.mark.parametrize("damage", ["cut off", "empty", "one bit", "of another key", "a link", "a pipe", "writable"])
def test_what_is_damaged_or_foreign_is_ignored_and_replaced(folder: Path, damage: str) -> None:
    assert (start(), start(4)) == (1, 1)
    file, other = (folder / f"{file_name(key_of(build, (factor,)))}.kernels" for factor in (3, 4))
    content = file.read_bytes()
    if damage == "cut off":
        file.write_bytes(content[:-100])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "one bit":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "of another key":
        file.write_bytes(other.read_bytes())
    elif damage == "a link":
        file.rename(folder / "elsewhere")
        file.symlink_to(folder / "elsewhere")
    elif damage == "a pipe":
        file.unlink()
        os.mkfifo(file)
    else:
        file.chmod(0o622)
    assert start() == 1
    assert file.read_bytes() == content
    assert start() == 0


@pytest.mark.parametrize("mode", [0o770, 0o703])
def test_a_folder_that_others_can_write_is_not_used(folder: Path, mode: int) -> None:
    assert start() == 1
    files = kept(folder)
    folder.chmod(mode)
    assert (start(), start(4)) == (1, 1)
    assert kept(folder) == files


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_or_file_of_another_user_is_not_used(folder: Path) -> None:
    assert start() == 1
    (file,) = kept(folder)
    os.chown(file, 12345, 12345)
    assert (start(), start()) == (1, 0), "a file of another user is replaced"
    os.chown(folder, 12345, 12345)
    assert (start(), start(4)) == (1, 1)
    assert kept(folder) == [file]


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "kept"):
        monkeypatch.setenv("VOLSEG_CACHE", str(path))
        assert start() == 1


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_no_error(folder: Path) -> None:
    with full_disk():
        assert start() == 1
    assert folder.is_dir()
    assert not kept(folder)


def test_the_least_recently_used_go_where_the_folder_is_full(tmp_path: Path) -> None:
    mine = tmp_path / "notes.txt"
    folder = CodeFolder(tmp_path, limit=1000)
    mine.write_bytes(bytes(5000))
    for age, name in enumerate("dcba"):
        folder.write(name, bytes(240))
        os.utime(tmp_path / f"{name}.kernels", (0, 1e9 - age))
    assert folder.read("a") is not None, "which makes it the newest"
    folder.write("e", bytes(240))
    assert [name for name in "abcde" if folder.read(name)] == ["a", "d", "e"]
    assert mine.is_file(), "no file of anybody else is removed"


WRITER = """
import sys
from pathlib import Path
from volseg.nn.kernels.jit.code_folder import CodeFolder

folder, content = CodeFolder(Path(sys.argv[1]), limit=10**5), sys.argv[2].encode() * 30000
for _ in range(100):
    folder.write("kernel", content)
    read = folder.read("kernel")
    assert len(read) == 30000 and len(set(read)) == 1, "half of a file"
"""


def test_processes_that_start_together_read_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert [file.name for file in path.iterdir()] == ["kernel.kernels"]
