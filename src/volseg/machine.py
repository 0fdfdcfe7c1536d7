"""What this process and its machine use and have: memory and cores, from the operating system."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

GIB = 2**30


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes (getrusage's ru_maxrss)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def current_memory() -> int:
    """Resident memory of this process now, in bytes; its peak where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return peak_memory()
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_memory() -> int | None:
    """Memory that programs can still take on this node, in bytes; None where the system does not say."""
    limits = [_meminfo(), *(_cgroup_room(p) for p in (Path("/sys/fs/cgroup"),))]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_room(folder: Path) -> int | None:
    """What a memory limit of the container or batch job leaves; None without a limit."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)


def tune_allocator() -> None:
    """Let large tensors come straight from the system in huge pages, and go straight back. Call before importing torch.

    Fresh memory costs a page fault for every 4 KiB, which took a third of a training step; with huge pages it does
    not (torch asks for them where THP_MEM_ALLOC_ENABLE is set). glibc raises its threshold for direct allocation as it
    goes, and then keeps freed tensors in its heap: a peak 13 % higher, and one that no plan can foretell; a fixed
    threshold keeps it from doing so. What the user has set stays. Without glibc nothing is changed.
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
