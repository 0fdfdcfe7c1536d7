"""Where large tensors lie: in memory, or in files of a scratch folder of which a few planes are in memory at a time."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from weakref import WeakSet

import torch
from torch import Tensor

from volseg.files import DISK_FAULTS
from volseg.nn.kernels.memory import lasting


class Store:
    """Memory, and nothing else.

    device  on which it lies
    """

    device = torch.device("cpu")

    def __init__(self, device: torch.device = device) -> None:
        self.device = device

    def take(self, values: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uninitialised memory [values], which goes back when nobody holds it any more."""
        return lasting(values, dtype, self.device)

    def relax(self) -> None:
        """What lies in files need not be in memory now."""


class ScratchStore(Store):
    """Files in a folder, mapped into memory. They have no name: whatever happens to the program, nothing stays behind.

    The system writes them to disk as it sees fit; `relax` takes them off this process's memory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._maps: WeakSet[mmap.mmap] = WeakSet()

    def take(self, values: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """As `Store.take`. Raises OSError where the disk cannot hold it: found here, not when it is written to."""
        size = max(1, values) * dtype.itemsize
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                mapped = mmap.mmap(file.fileno(), size)
        except OSError as error:
            if error.errno in DISK_FAULTS:
                message = (
                    f"{error.strerror}: {size / 2**30:.1f} GiB of scratch data; give another folder with --scratch"
                )
                raise OSError(error.errno, message, str(self.folder)) from error
            raise
        self._maps.add(mapped)
        with torch.inference_mode(False):
            return torch.frombuffer(mapped, dtype=dtype)

    def relax(self) -> None:
        """As `Store.relax`."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)
