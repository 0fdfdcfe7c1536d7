"""How faces of a tensor get to MPI and back: as they lie, through pinned memory of the host, or from a GPU directly.

Which faces are exchanged with whom is said elsewhere (`ghost_exchange`), the same for all of these.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.arrays import as_array
from volseg.distributed.launch import mapped_libraries
from volseg.errors import ConfigError

VARIABLE = "VOLSEG_GPU_MPI"
"""Says how faces leave a GPU: auto, staged or direct."""

_QUERIES = ("MPIX_Query_cuda_support", "MPIX_Query_hip_support")
"""What Open MPI, Cray's and Intel's libraries have to be asked with; MPICH has the function below."""


Parcel = Any
"""A face as a transport keeps it for MPI: its `buffer` is contiguous, an array or what has the CUDA array interface.

Each transport takes back those that it made.
"""


class Transport(Protocol):
    """Faces of tensors to messages, and back."""

    def pack(self, face: Tensor) -> Parcel:
        """A copy of a face, which is there when `ready` has returned."""

    def room(self, face: Tensor) -> Parcel:
        """Memory for a face like this one. To be asked for after `ready`."""

    def ready(self) -> None:
        """Return when all that was packed may be sent."""

    def unpack(self, parcel: Parcel, face: Tensor) -> None:
        """What was received to its face: there for all that is computed after `arrived`."""

    def arrived(self) -> None:
        """Have whatever is computed next see all that was unpacked."""

    def give(self, parcel: Parcel) -> None:
        """Take back memory that no message needs any more."""


class _Lying:
    """A face in memory of its own."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory

    @property
    def buffer(self) -> np.ndarray:
        return as_array(self.memory)


class HostTransport:
    """Hands on faces of tensors in the host's memory."""

    def pack(self, face: Tensor) -> _Lying:
        """As `Transport.pack`."""
        return _Lying(face.contiguous())

    def room(self, face: Tensor) -> _Lying:
        """As `Transport.room`."""
        return _Lying(torch.empty(face.shape, dtype=face.dtype))

    def ready(self) -> None:
        """As `Transport.ready`."""

    def unpack(self, parcel: _Lying, face: Tensor) -> None:
        """As `Transport.unpack`."""
        face.copy_(parcel.memory)

    def arrived(self) -> None:
        """As `Transport.arrived`."""

    def give(self, parcel: _Lying) -> None:
        """As `Transport.give`."""


class Copies(Protocol):
    """What staging asks of a device: pinned memory, and a stream of its own for copies."""

    def pinned(self, count: int, dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device copies to and from by itself."""

    def beside(self) -> Any:
        """A context in which what is asked of the device runs beside other work, after all that was asked before."""

    def finish(self) -> None:
        """Return when all that was asked beside is done."""

    def before_use(self) -> None:
        """Have what is asked from now on wait for what was asked beside."""


class CudaCopies:
    """Copies of a GPU on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._stream, self._device = torch.cuda.Stream(device), device

    def pinned(self, count: int, dtype: torch.dtype) -> Tensor:
        """As `Copies.pinned`."""
        return torch.empty(count, dtype=dtype, pin_memory=True)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """As `Copies.beside`."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def finish(self) -> None:
        """As `Copies.finish`."""
        self._stream.synchronize()

    def before_use(self) -> None:
        """As `Copies.before_use`."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


class _Staged:
    """A face in pinned memory; the device's own contiguous copy is kept until the copy to or from it is done."""

    def __init__(self, memory: Tensor, shape: torch.Size) -> None:
        self.memory, self.shape = memory, shape
        self.on_device: Tensor | None = None

    @property
    def host(self) -> Tensor:
        return self.memory[: self.shape.numel()].view(self.shape)

    @property
    def buffer(self) -> np.ndarray:
        return as_array(self.host)


class StagedTransport:
    """Hands on faces of tensors on a device whose MPI knows only the host's memory.

    Faces are made contiguous on the device and copied to pinned memory on a stream of their own, while the device
    computes; what comes back takes the same way. Pinned memory is slow to make, and is used again.
    """

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._idle: dict[torch.dtype, list[Tensor]] = {}

    def pack(self, face: Tensor) -> _Staged:
        """As `Transport.pack`."""
        parcel = self._take(face)
        with self._copies.beside():
            parcel.on_device = face.contiguous()
            parcel.host.copy_(parcel.on_device, non_blocking=True)
        return parcel

    def room(self, face: Tensor) -> _Staged:
        """As `Transport.room`: `ready` has waited for all copies from memory that was given back."""
        return self._take(face)

    def ready(self) -> None:
        """As `Transport.ready`."""
        self._copies.finish()

    def unpack(self, parcel: _Staged, face: Tensor) -> None:
        """As `Transport.unpack`."""
        with self._copies.beside():
            parcel.on_device = torch.empty(face.shape, dtype=face.dtype, device=face.device)
            parcel.on_device.copy_(parcel.host, non_blocking=True)
            face.copy_(parcel.on_device)

    def arrived(self) -> None:
        """As `Transport.arrived`."""
        self._copies.before_use()

    def give(self, parcel: _Staged) -> None:
        """As `Transport.give`."""
        self._idle.setdefault(parcel.memory.dtype, []).append(parcel.memory)

    def _take(self, face: Tensor) -> _Staged:
        """The smallest idle memory that is large enough, else new memory."""
        idle = self._idle.setdefault(face.dtype, [])
        enough = [n for n, memory in enumerate(idle) if memory.numel() >= face.numel()]
        if enough:
            return _Staged(idle.pop(min(enough, key=lambda n: idle[n].numel())), face.shape)
        return _Staged(self._copies.pinned(face.numel(), face.dtype), face.shape)


class _OnDevice:
    """A face in the device's memory, as MPI libraries that know it take it."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory

    @property
    def buffer(self) -> Tensor:
        """Of bfloat16, which the CUDA array interface lacks, its bits as whole numbers."""
        return self.memory.view(torch.int16) if self.memory.dtype == torch.bfloat16 else self.memory


class DirectTransport:
    """Hands on faces of tensors on a device whose memory the MPI library reads and writes itself."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def pack(self, face: Tensor) -> _OnDevice:
        """As `Transport.pack`."""
        return _OnDevice(face.contiguous())

    def room(self, face: Tensor) -> _OnDevice:
        """As `Transport.room`."""
        return _OnDevice(torch.empty(face.shape, dtype=face.dtype, device=face.device))

    def ready(self) -> None:
        """As `Transport.ready`: MPI knows nothing of streams."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def unpack(self, parcel: _OnDevice, face: Tensor) -> None:
        """As `Transport.unpack`."""
        face.copy_(parcel.memory)

    def arrived(self) -> None:
        """As `Transport.arrived`."""

    def give(self, parcel: _OnDevice) -> None:
        """As `Transport.give`."""


@cache
def transport_of(device: torch.device) -> Transport:
    """How faces of tensors on a device get to MPI. Raises ConfigError for a wish that cannot be met."""
    if device.type == "cpu":
        return HostTransport()
    if wants_direct(os.environ.get(VARIABLE, "auto"), knows_gpus()):
        return DirectTransport(device)
    return StagedTransport(CudaCopies(device))


def wants_direct(wish: str, known: bool) -> bool:
    """Whether MPI is handed memory of the GPU.

    wish   auto, staged or direct
    known  whether the MPI library says that it takes it

    Raises ConfigError for another word. `direct` is believed: some libraries take such memory and do not say so.
    """
    if wish not in ("auto", "staged", "direct"):
        raise ConfigError(f"{VARIABLE}={wish}: give auto, staged or direct")
    return wish == "direct" or (wish == "auto" and known)


def knows_gpus() -> bool:
    """Whether the loaded MPI library says that it takes memory of a GPU; no where it has no way to say so."""
    return any(_says_so(path) for path in mapped_libraries())


def _says_so(path: Path) -> bool:
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return False
    for name in _QUERIES:
        query = getattr(library, name, None)
        if query is not None and query() == 1:
            return True
    query = getattr(library, "MPIX_GPU_query_support", None)  # MPICH's: whether a kind, here CUDA, is, into a flag
    flag = ctypes.c_int(0)
    return query is not None and query(ctypes.c_int(0), ctypes.byref(flag)) == 0 and flag.value == 1
