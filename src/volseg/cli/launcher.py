"""The launcher among this process's ancestors, and where it copies what its ranks print (Linux; elsewhere unknown).

A launcher hands its ranks pipes and copies what comes out of them. Where it cannot, because its own standard error is
on a full disk or nobody reads it any more, it ends the whole job. So ranks that can reach its streams write there
themselves (`reached`), and to a file that they cannot share they hand nothing once its disk is full.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from volseg.distributed.launchers import under_launcher

_LAUNCHERS = ("mpiexec", "mpirun", "orterun", "prterun", "prte", "hydra", "orted")
_SHAPING = ("prepend", "outfile", "errfile", "output", "tag-", "timestamp", "xml")
"""What options by which a launcher changes or moves its ranks' output have in their names; -l is one too."""
_GENERATIONS = 5  # a rank's parent is a proxy or a wrapper, and the proxy's the launcher
_ROOM = 2**20  # bytes that a disk must have free for a launcher to be trusted with a message


@dataclass(frozen=True)
class Ancestor:
    """A process above this one; it may be gone by now."""

    process: int
    name: str

    @property
    def is_launcher(self) -> bool:
        """Whether it is one, or a proxy of one."""
        return any(known in self.name for known in _LAUNCHERS)

    def target(self, descriptor: int) -> Path:
        """What a descriptor of it leads to, as a path that can be opened."""
        return Path(f"/proc/{self.process}/fd/{descriptor}")


def ancestors() -> Iterator[Ancestor]:
    """The nearest ancestors, the parent first; none where the system does not tell."""
    process = os.getppid()
    for _ in range(_GENERATIONS):
        try:
            text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        name, _, rest = text.partition("(")[2].rpartition(")")
        yield Ancestor(process, name)
        process = int(rest.split()[1])


@dataclass(frozen=True)
class Reached:
    """Where the launcher copies a stream of this process.

    descriptor  of the same file, pipe or terminal, to write to in place of the stream; None where it has to go through
                the launcher
    file        the launcher's file, where it has to; None where it is none
    """

    descriptor: int | None = None
    file: Path | None = None

    @property
    def is_full(self) -> bool:
        """Whether the launcher would fail to write there, and end the job."""
        if self.file is None:
            return False
        try:
            room = os.statvfs(self.file)
        except OSError:
            return False
        return room.f_bavail * room.f_frsize < _ROOM


def reached(descriptor: int) -> Reached:
    """Where this process's descriptor 1 or 2 ends up; where no launcher copies it, or that cannot be told, nothing."""
    try:
        pipe = os.readlink(f"/proc/self/fd/{descriptor}")
        if not under_launcher() or not pipe.startswith(("pipe:", "socket:")):
            return Reached()
        line = [one for one in ancestors() if one.is_launcher]
        if not line or not any(_holds(one, pipe) for one in line) or _shapes_output(line[-1]):
            return Reached()
        return _open(line[-1], descriptor)
    except OSError:
        return Reached()


def _holds(ancestor: Ancestor, pipe: str) -> bool:
    """Whether it reads this pipe, or one that is between."""
    for link in Path(f"/proc/{ancestor.process}/fd").iterdir():
        try:
            if os.readlink(link) == pipe:
                return True
        except OSError:  # closed meanwhile
            continue
    return False


def _shapes_output(launcher: Ancestor) -> bool:
    words = Path(f"/proc/{launcher.process}/cmdline").read_bytes().decode(errors="replace").split("\0")[1:]
    programs = {Path(sys.executable).name, Path(sys.argv[0]).name, "python"}
    own = next((n for n, word in enumerate(words) if Path(word).name in programs), len(words))
    options = [word.lower() for word in words[:own] if word.startswith("-")]
    return any(word == "-l" or any(part in word for part in _SHAPING) for word in options)


def _open(launcher: Ancestor, descriptor: int) -> Reached:
    target = launcher.target(descriptor)
    kind = target.stat().st_mode
    if stat.S_ISREG(kind) and not _appends(launcher, descriptor):
        return Reached(file=target)  # opened again it would have a place of its own, and overwrite what is there
    if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)):
        return Reached()
    try:
        opened = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        if stat.S_ISREG(kind):
            raise
        opened = os.open(os.devnull, os.O_WRONLY)  # a pipe that nobody reads, a terminal that is gone
    fcntl.fcntl(opened, fcntl.F_SETFL, fcntl.fcntl(opened, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    return Reached(descriptor=opened)


def _appends(launcher: Ancestor, descriptor: int) -> bool:
    text = Path(f"/proc/{launcher.process}/fdinfo/{descriptor}").read_text(encoding="ascii")
    flags = next(line.split()[1] for line in text.splitlines() if line.startswith("flags"))
    return bool(int(flags, 8) & os.O_APPEND)
