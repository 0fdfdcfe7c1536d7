"""Memory of this process and of the machine: the measured peak, what there is, and how it is allocated."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
"""Units of memory, the smallest first, and their bytes."""


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes.

    Linux keeps it as VmHWM; ru_maxrss there begins with that of the program which started this one.
    """
    measured = _status("VmHWM")
    if measured is not None:
        return measured
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def physical_memory() -> int:
    """Memory of this machine in bytes, whoever uses it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processor_name() -> str:
    """The processor, as the system calls it."""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.lower().startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def has_tiles() -> bool:
    """Whether the processor has bfloat16 tiles (AMX), as the system says; whether they work the kernels find out."""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("flags"):
            return {"amx_tile", "amx_bf16", "avx512_bf16"} <= set(line.split())
    return False


def resident_memory() -> int:
    """Resident memory of this process now, in bytes; 0 where the system does not say."""
    return _status("VmRSS") or 0


def available_memory() -> int:
    """Memory in bytes that this machine, or the container or job this process is in, could still give.

    Where the system does not say (other than Linux), all of the machine's.
    """
    free = physical_memory()
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    return max(0, min([free, *_room_in_groups()]))


def _room_in_groups() -> Iterator[int]:
    """What the control groups of this process leave, and those above them: limits, less what is in use and could not
    be dropped. cgroup v2 (its line has no controllers), and v1."""
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, used = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, used = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            texts = [_lines(group / limit), _lines(group / used)]
            if all(texts) and texts[0][0].isdigit() and texts[1][0].isdigit():
                droppable = [int(t.split()[1]) for t in _lines(group / "memory.stat") if t.startswith("inactive_file ")]
                yield int(texts[0][0]) - int(texts[1][0]) + sum(droppable)
            if group == root:
                break


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []


def _status(name: str) -> int | None:
    """A size of this process, in bytes, as Linux tells it."""
    for line in _lines(Path("/proc/self/status")):
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def gibibytes(count: float) -> str:
    """Bytes as GiB, whatever their number, so that sizes can be compared at a glance."""
    return size_text(count, ("GiB",))


def size_text(count: float, units: Sequence[str] = tuple(UNITS)) -> str:
    """Bytes in the largest of `units` that they fill, else the first: three digits that count, at least to a hundredth.

    units  some of `UNITS`, in their order
    """
    fitting = [unit for unit in units if count >= UNITS[unit]]
    unit = fitting[-1] if fitting else units[0]
    size = count / UNITS[unit]
    digits = 0 if size >= 100 or unit == "bytes" else 1 if size >= 10 else 2
    return f"{size:.{digits}f} {unit}"


def prepare_for_torch() -> None:
    """Set up memory and threads as suits this program. Call before importing torch; what the user has set stays."""
    _tune_allocator()
    # torch's threads would go on spinning for milliseconds after each operation, on cores where the kernels' threads
    # then work: with two threads a training step took a sixth longer. Without any spinning torch's small operations,
    # one after the other, take several times as long; so they spin for some ten microseconds.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def _tune_allocator() -> None:
    """Let large tensors come straight from the system in huge pages, and go straight back.

    Fresh memory costs a page fault for every 4 KiB, which took a third of a training step; with huge pages it does
    not (torch asks for them where THP_MEM_ALLOC_ENABLE is set). glibc raises its threshold for direct allocation as it
    goes, and then keeps freed tensors in its heap: a peak 13 % higher, and one that no plan can foretell; a fixed
    threshold keeps it from doing so. Without glibc nothing is changed.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")):
        return
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD in malloc.h
    mallopt(mmap_threshold, 4 * 2**20)
    mallopt(trim_threshold, 64 * 2**20)
