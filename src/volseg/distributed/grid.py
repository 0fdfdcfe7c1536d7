"""The process grid: which rank holds which block."""

from __future__ import annotations

from volseg.distributed.communicator import Communicator
from volseg.errors import PartitionError
from volseg.geometry import Box, PerAxis, Triple, format_triple
from volseg.partition.layout import Layout


class ProcessGrid:
    """A communicator's ranks on a grid Pz x Py x Px, in C order: the last axis runs fastest.

    communicator  all ranks of the grid
    dims          (Pz, Py, Px)
    coords        this rank's coordinates
    lines         for each axis the communicator of the ranks that differ only in that coordinate; a rank's number
                  in `lines[a]` is its coordinate on axis a. All grids of these ranks with these dims have the same
    """

    def __init__(self, communicator: Communicator, dims: Triple) -> None:
        size = dims[0] * dims[1] * dims[2]
        if size != communicator.size:
            raise PartitionError(
                f"partition {format_triple(dims)} needs {size} ranks, this job has {communicator.size}: "
                f"start it with mpirun -n {size}, or leave --partition to auto"
            )
        self.communicator = communicator
        self.dims = dims
        rank = communicator.rank
        self.coords: Triple = (rank // (dims[1] * dims[2]), rank // dims[2] % dims[1], rank % dims[2])
        z, y, x = self.coords
        self.lines = (
            communicator.split_once(("D", dims), y * dims[2] + x, z),
            communicator.split_once(("H", dims), z * dims[2] + x, y),
            communicator.split_once(("W", dims), z * dims[1] + y, x),
        )

    def layout(self, shape: Triple, multiple: PerAxis = 1) -> Layout:
        """The even split of `shape` over this grid."""
        return Layout.even(shape, self.dims, multiple)

    def block(self, layout: Layout) -> Box:
        """This rank's block of `layout`."""
        return layout.block(self.coords)
