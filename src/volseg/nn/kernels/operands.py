"""What kernels read and write, as structures: tensors, bricks and pools in memory, and results that are in the cache.

For each structure that Python fills in, a function makes its fields for `compiler.Entry.bind`. An operand moved to
another voxel or channel is the same structure with its addresses there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from volseg.geometry import Triple
from volseg.networks.description import ActivationKind
from volseg.nn.kernels.activations import activated, gradient_before
from volseg.nn.kernels.jit.language import Element, Function, Int, Pointer, Vector
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.window import Range

Fields = dict[str, object]


@dataclass(frozen=True)
class Source:
    """A tensor that is read through its activation, activation(data * scale + shift) * gain.

    data          voxel 0, [.., .., .., channels]
    plane, line   numbers from a plane, from a line to the next
    scale, shift  [channels], or nothing: the data are taken as they are
    slope, gain   what `activations.activated` takes; gain is [channels], or nothing for a leaky ReLU
    """

    data: Pointer
    plane: Int
    line: Int
    channels: Int
    scale: Pointer
    shift: Pointer
    slope: Vector
    gain: Pointer

    def of(self, element: Element) -> Source:
        """The same, its data being such numbers."""
        return replace(self, data=self.data.of(element))

    def at(self, z: Int, y: Int) -> Source:
        """The same from line y of plane z on."""
        return replace(self, data=self.data + (z * self.plane + y * self.line))

    def from_channel(self, z: Int, y: Int, x: Int, channel: int | Int) -> Source:
        """The same from a voxel and channel on; it must have `scale` and `shift`."""
        data = self.data + (z * self.plane + y * self.line + x * self.channels + channel)
        return replace(
            self, data=data, scale=self.scale + channel, shift=self.shift + channel, gain=self.gain + channel
        )  # fmt: skip

    def reading(self, f: Function, kind: ActivationKind, channel: int | Int) -> Reading:
        """Write down: how the channels of a vector, from a channel on, are read; it must have `scale` and `shift`."""
        gain = None if kind == "leaky_relu" else (self.gain + channel).load()
        return Reading(f, kind, (self.scale + channel).load(), (self.shift + channel).load(), self.slope, gain)


@dataclass(frozen=True)
class Reading:
    """The activation through which the channels of a vector are read, and its coefficients in registers."""

    f: Function
    kind: ActivationKind
    scale: Vector
    shift: Vector
    slope: Vector
    gain: Vector | None

    def activated(self, raw: Vector) -> Vector:
        """Write down: what raw values are read as."""
        return activated(self.f, self.kind, raw * self.scale + self.shift, self.slope, self.gain)

    def gradient_before(self, gradient: Vector, raw: Vector) -> Vector:
        """Write down: the gradient before the activation, from that of what raw values are read as."""
        return gradient_before(self.f, self.kind, gradient, raw * self.scale + self.shift, self.slope, self.gain)


def source_fields(x: Activation | None) -> Fields | None:
    """A `Source`, counted from the block's own first voxel; nothing where there is none."""
    if x is None:
        return None
    rows, affine = x.rows, x.affine
    return {
        "data": rows.address, "plane": rows.plane, "line": rows.line, "channels": rows.channels,
        "scale": None if affine is None else affine.scale, "shift": None if affine is None else affine.shift,
        "slope": 1.0 if affine is None else affine.slope, "gain": None if affine is None else affine.gains,
    }  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A tensor that results go to.

    out          voxel 0, [.., .., .., channels], or nothing
    plane, line  numbers from a plane, from a line to the next
    add          1: results are added to what stands there; 0: they replace it
    """

    out: Pointer
    plane: Int
    line: Int
    channels: Int
    add: Int

    def of(self, element: Element) -> Target:
        """The same, being of such numbers."""
        return replace(self, out=self.out.of(element))

    def at(self, z: Int, y: Int, x: Int, channel: int | Int) -> Target:
        """The same from a voxel and channel on."""
        return replace(self, out=self.out + (z * self.plane + y * self.line + x * self.channels + channel))


def target_fields(rows: Rows | None, add: bool = False) -> Fields | None:
    """A `Target`, counted from the block's own first voxel; nothing where there is none."""
    if rows is None:
        return None
    return {
        "out": rows.address, "plane": rows.plane, "line": rows.line, "channels": rows.channels, "add": int(add)
    }  # fmt: skip


@dataclass(frozen=True)
class Ranges:
    """The voxels low ... high that a source has on D, H and W, ghosts included; beyond them is zero."""

    low_z: Int
    high_z: Int
    low_y: Int
    high_y: Int
    low_x: Int
    high_x: Int


def range_fields(valid: tuple[Range, Range, Range]) -> Fields:
    """The `Ranges` that `Rows.valid` says."""
    (z0, z1), (y0, y1), (x0, x1) = valid
    return {"low_z": z0, "high_z": z1, "low_y": y0, "high_y": y1, "low_x": x0, "high_x": x1}


@dataclass(frozen=True)
class Results:
    """What was computed for some channels of a block of voxels.

    values  [planes, lines, columns, `Registers.width`], of which lines y0 ... y1 and columns x0 ... x1 count
    """

    values: Pointer
    planes: Int
    lines: Int
    columns: Int
    y0: Int
    y1: Int
    x0: Int
    x1: Int


@dataclass(frozen=True)
class Bricks:
    """Where the sums of x and x * x over bricks go.

    sums                  [bricks on D, on H, on W][2, channels], or nothing
    depth, height, width  voxels of a brick
    plane, line           floats of `sums` from a plane of bricks, from a line of bricks to the next
    """

    sums: Pointer
    depth: Int
    height: Int
    width: Int
    plane: Int
    line: Int
    channels: Int

    def at(self, z: Int, y: Int, x: Int, channel: int | Int) -> Bricks:
        """The same from the brick of a voxel and from a channel on."""
        bricks = z // self.depth * self.plane + y // self.height * self.line + x // self.width * self.channels * 2
        return replace(self, sums=self.sums + (bricks + channel))


def brick_fields(sums: Tensor | None, brick: Triple) -> Fields | None:
    """`Bricks` for sums [D / bd, H / bh, W / bw, 2, K]; nothing where there are none."""
    if sums is None:
        return None
    return {
        "sums": sums, "depth": brick[0], "height": brick[1], "width": brick[2], "plane": sums.stride(0),
        "line": sums.stride(1), "channels": sums.shape[4],
    }  # fmt: skip


@dataclass(frozen=True)
class Pools:
    """Where the largest values of each window go, the smallest for channels whose sign is -1.

    target                the pooled tensor, or nothing
    signs                 [channels] of 1 and -1
    depth, height, width  voxels of a window: 1 or 2 each
    """

    target: Target
    signs: Pointer
    depth: Int
    height: Int
    width: Int

    def of(self, element: Element) -> Pools:
        """The same, the pooled tensor being of such numbers."""
        return replace(self, target=self.target.of(element))

    def at(self, z: Int, y: Int, x: Int, channel: int | Int) -> Pools:
        """The same from the window of a voxel and from a channel on."""
        target = self.target.at(z // self.depth, y // self.height, x // self.width, channel)
        return replace(self, target=target, signs=self.signs + channel)


def pool_fields(rows: Rows | None, signs: Tensor | None, window: Triple) -> Fields | None:
    """`Pools` for a pooled tensor; nothing where there is none."""
    if rows is None:
        return None
    depth, height, width = window
    return {"target": target_fields(rows), "signs": signs, "depth": depth, "height": height, "width": width}
