"""Memory of this process and of the machine: the measured peak, what there is, and how it is allocated."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes.

    Linux keeps it as VmHWM; ru_maxrss there begins with that of the program which started this one.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def physical_memory() -> int:
    """Memory of this machine in bytes, whoever uses it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
