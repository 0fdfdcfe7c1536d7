"""Window (halo) exchange between the blocks of a process grid, and its adjoint.

The exchange runs axis by axis, D then H then W, and each axis sends the ghosts that the axes before it brought, so
edges and corners need no messages of their own. Faces are packed into contiguous buffers: MPI derived datatypes
were measured ten times slower on such strided faces. The adjoint runs the axes in reverse and adds the ghosts'
gradients where the voxels live; it is the exact transpose (DistDL calls it the adjoint halo exchange).

Tensors on a GPU are staged through pinned host buffers, because the MPI that comes as a wheel is not CUDA-aware.
"""

from __future__ import annotations

import torch
from torch import Tensor

from volseg.distributed.grid import ProcessGrid
from volseg.partition.window import Range, WindowPlan
from volseg.program.kinds import Kind

SPATIAL = 2  # x is [N, C, D, H, W]: the axes D, H, W are tensor dimensions 2, 3, 4


def exchange_window(x: Tensor, plan: WindowPlan, grid: ProcessGrid, fill: float = 0.0) -> Tensor:
    """This rank's window of a partitioned tensor. Collective over the grid.

    x       [N, C, d, h, w]     this rank's block; not modified
    window  [N, C, d', h', w']  the ranges `plan` asks for; `fill` beyond the volume's faces
    """
    if plan.moves_nothing:
        return x
    with grid.communicator.meter.doing(Kind.HALO):
        return _window(x, plan, grid, fill)


def _window(x: Tensor, plan: WindowPlan, grid: ProcessGrid, fill: float) -> Tensor:
    hulls = [axis.hull for axis in plan.axes]
    buffer = _allocate_like(x, hulls, fill)
    _cut(buffer, hulls, [axis.owned for axis in plan.axes]).copy_(x)
    extent = [axis.owned for axis in plan.axes]
    for number, axis in enumerate(plan.axes):
        sections = _sections(buffer, hulls, extent, number)
        sends = [(c, _pack(sections(r))) for c, r in axis.sends]
        receives = [(c, _empty_packed(sections(r))) for c, r in axis.receives]
        grid.lines[number].send_receive([(c, b.numpy()) for c, b in sends], [(c, b.numpy()) for c, b in receives])
        for (_, r), (_, packed) in zip(axis.receives, receives, strict=True):
            _unpack(packed, sections(r))
        extent[number] = hulls[number]
    return _cut(buffer, hulls, [axis.window for axis in plan.axes])


def exchange_window_adjoint(grad: Tensor, plan: WindowPlan, grid: ProcessGrid) -> Tensor:
    """The transpose of `exchange_window`. Collective over the grid.

    grad  [N, C, d', h', w']  gradient of the window; not modified
    out   [N, C, d, h, w]     gradient of the block: its own part plus what other ranks' ghosts gathered
    """
    if plan.moves_nothing:
        return grad
    with grid.communicator.meter.doing(Kind.HALO):
        return _window_adjoint(grad, plan, grid)


def _window_adjoint(grad: Tensor, plan: WindowPlan, grid: ProcessGrid) -> Tensor:
    hulls = [axis.hull for axis in plan.axes]
    if all(axis.hull == axis.window for axis in plan.axes):
        buffer = grad.clone(memory_format=torch.preserve_format)
    else:
        buffer = _allocate_like(grad, hulls, 0.0)
        _cut(buffer, hulls, [axis.window for axis in plan.axes]).copy_(grad)
    extent = list(hulls)
    for number in reversed(range(3)):
        axis = plan.axes[number]
        sections = _sections(buffer, hulls, extent, number)
        sends = [(c, _pack(sections(r))) for c, r in axis.receives]
        receives = [(c, _empty_packed(sections(r))) for c, r in axis.sends]
        grid.lines[number].send_receive([(c, b.numpy()) for c, b in sends], [(c, b.numpy()) for c, b in receives])
        for (_, r), (_, packed) in zip(axis.sends, receives, strict=True):
            _unpack(packed, sections(r), add=True)
        extent[number] = axis.owned
    return _cut(buffer, hulls, [axis.owned for axis in plan.axes])


def _allocate_like(x: Tensor, ranges: list[Range], fill: float) -> Tensor:
    shape = (*x.shape[:SPATIAL], *(b - a for a, b in ranges))
    last = x.is_contiguous(memory_format=torch.channels_last_3d)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    empty = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    return empty.zero_() if fill == 0 else empty.fill_(fill)


def _cut(buffer: Tensor, hulls: list[Range], ranges: list[Range]) -> Tensor:
    for number, (hull, r) in enumerate(zip(hulls, ranges, strict=True)):
        if r != hull:
            buffer = buffer.narrow(SPATIAL + number, r[0] - hull[0], r[1] - r[0])
    return buffer


class _sections:
    """Views of `buffer` over `extent`, cut to a range on one axis."""

    def __init__(self, buffer: Tensor, hulls: list[Range], extent: list[Range], axis: int) -> None:
        self.buffer, self.hulls, self.extent, self.axis = buffer, hulls, list(extent), axis

    def __call__(self, r: Range) -> Tensor:
        return _cut(self.buffer, self.hulls, [r if n == self.axis else e for n, e in enumerate(self.extent)])


def _packed_order(section: Tensor) -> Tensor:
    """The section with its channels last, as activations mostly lie in memory, so that packing copies whole runs.

    The order must not follow the memory of `section`: both sides of a message have to agree on it, and a block of one
    voxel or one channel is contiguous and channels-last at once.
    """
    return section.permute(0, 2, 3, 4, 1)


def _empty_packed(section: Tensor) -> Tensor:
    shape = _packed_order(section).shape
    return torch.empty(shape, dtype=section.dtype, pin_memory=section.is_cuda)


def _pack(section: Tensor) -> Tensor:
    return _empty_packed(section).copy_(_packed_order(section))


def _unpack(packed: Tensor, section: Tensor, *, add: bool = False) -> None:
    target = _packed_order(section)
    if add:
        target += packed.to(section.device)
    else:
        target.copy_(packed)
