"""The ghosts of a buffer, filled from the neighbours' blocks while other work goes on.

Axis by axis, D then H then W, as in `halo`; how faces reach MPI is another matter (`transport`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from volseg.distributed.communicator import Pending
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.transport import Parcel, Transport, transport_of
from volseg.geometry import PerAxis, Triple
from volseg.partition.ghosts import ghosts
from volseg.program.kinds import Kind


def ghost_widths(grid: ProcessGrid, width: PerAxis) -> tuple[Triple, Triple]:
    """Ghosts of `width` before and after this rank's block on each axis: none where the volume ends."""
    return ghosts(grid.coords, grid.dims, width)


@dataclass(frozen=True)
class _Axis:
    """Faces of one axis under way: the message, what is sent, and what is received for which ghosts."""

    message: Pending
    sent: Sequence[Parcel]
    received: Sequence[tuple[Parcel, Tensor]]


class GhostExchange:
    """Fills the ghosts of a buffer from the neighbours' blocks, in place, while other work goes on.

    The first axis is under way when the constructor returns; `advance` finishes an axis and starts the next, `wait`
    finishes all. All ranks call them in the same order.

    buffer     [low + d + high, .., .., C], contiguous, the block filled; blocks are at least as thick as the ghosts
    transport  how faces get to MPI and back; None for what suits the buffer's device
    """

    def __init__(
        self, buffer: Tensor, low: Triple, high: Triple, grid: ProcessGrid, transport: Transport | None = None
    ) -> None:
        self._buffer, self._low, self._high, self._grid = buffer, low, high, grid
        self._transport = transport_of(buffer.device) if transport is None else transport
        self._axis = 0
        self._pending: _Axis | None = None
        self._start()

    @property
    def done(self) -> bool:
        """Whether all ghosts are there."""
        return self._axis == 3

    def advance(self) -> None:
        """Wait for the axis that is under way, if any, and start the next one."""
        if self._pending is not None:
            pending, transport = self._pending, self._transport
            with self._grid.communicator.meter.doing(Kind.HALO):
                pending.message.wait()
                for parcel, place in pending.received:
                    transport.unpack(parcel, place)
                transport.arrived()
                for parcel in (*pending.sent, *(parcel for parcel, _ in pending.received)):
                    transport.give(parcel)
            self._pending = None
            self._axis += 1
            self._start()

    def wait(self) -> None:
        """Wait for all axes."""
        while not self.done:
            self.advance()

    def _start(self) -> None:
        while self._axis < 3 and self._low[self._axis] == self._high[self._axis] == 0:
            self._axis += 1
        if self._axis < 3:
            with self._grid.communicator.meter.doing(Kind.HALO):
                self._start_axis()

    def _start_axis(self) -> None:
        axis, place = self._axis, self._grid.coords[self._axis]
        low, high, length = self._low[axis], self._high[axis], int(self._buffer.shape[axis])
        faces = []
        # (neighbour, ghosts at home, what the neighbour's ghosts are filled with)
        for neighbour, width, ghost, inner in (
            (place - 1, low, 0, low),
            (place + 1, high, length - high, length - 2 * high),
        ):
            if width:
                faces.append((neighbour, self._face(ghost, width), self._face(inner, width)))
        transport = self._transport
        sent = [transport.pack(inner) for _, _, inner in faces]
        transport.ready()
        received = [transport.room(ghost) for _, ghost, _ in faces]
        message = self._grid.lines[axis].start_send_receive(
            [(neighbour, parcel.buffer) for (neighbour, _, _), parcel in zip(faces, sent, strict=True)],
            [(neighbour, parcel.buffer) for (neighbour, _, _), parcel in zip(faces, received, strict=True)],
        )
        ghosts = [ghost for _, ghost, _ in faces]
        self._pending = _Axis(message, sent, list(zip(received, ghosts, strict=True)))

    def _face(self, start: int, width: int) -> Tensor:
        """A layer on the current axis: with the ghosts of the axes before, without those of the axes after."""
        face = self._buffer.narrow(self._axis, start, width)
        for later in range(self._axis + 1, 3):
            low, high = self._low[later], self._high[later]
            face = face.narrow(later, low, int(self._buffer.shape[later]) - low - high)
        return face
