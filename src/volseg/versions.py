"""What a result was made with: versions of the program and its libraries, and the revision of its source."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import join

from volseg import __version__


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """volseg, Python and those of the libraries that are installed, by name."""
    found = {"volseg": __version__, "python": platform.python_version()}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def command_line(arguments: Sequence[str] = sys.argv) -> str:
    """How the program was started, its own name without a folder."""
    return join(["volseg", *arguments[1:]])


def source_revision(package: Path = Path(__file__).parent) -> str | None:
    """The git commit of the source tree that volseg runs from; None where it was installed.

    Read from the files of .git: git need not be there, and no process is started, which some MPIs forbid. So changes
    that were not committed are not seen.
    """
    if package.parent.name != "src":
        return None
    try:
        folder = _git_folder(package.parent.parent)
        head = (folder / "HEAD").read_text(encoding="utf-8").strip()
        return _commit(folder, head.removeprefix("ref: ")) if head.startswith("ref: ") else head
    except (OSError, UnicodeDecodeError):
        return None


def _git_folder(tree: Path) -> Path:
    """.git of a tree, or what stands for it in a linked one."""
    place = tree / ".git"
    if place.is_file():
        return (tree / place.read_text(encoding="utf-8").strip().removeprefix("gitdir: ")).resolve()
    return place


def _commit(folder: Path, name: str) -> str | None:
    """The commit that a branch is at: in a file of its own, or packed with others."""
    common = folder / "commondir"
    shared = (folder / common.read_text(encoding="utf-8").strip()).resolve() if common.is_file() else folder
    if (shared / name).is_file():
        return (shared / name).read_text(encoding="utf-8").strip()
    for line in (shared / "packed-refs").read_text(encoding="utf-8").splitlines():
        commit, _, packed = line.partition(" ")
        if packed == name:
            return commit
    return None
