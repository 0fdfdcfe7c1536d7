"""Weights of the direct convolution: in the order of its products, and their gradients back from that order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import widest_vector
from volseg.partition.direct_tiling import FLUSH_VOXELS, Reach, axis_taps, backward_reach
from volseg.partition.tiling import LANES, Registers, padded_channels, registers_for

IMAGE_TAPS, IMAGE_PAIRS = 3, 4
"""Taps, and columns of a window of few channels, whose outer sums are taken at once."""


@dataclass(frozen=True)
class TapGroup:
    """The products that make one kind of results: on each axis taps of the kernel, and the window's voxels they meet.

    rest     of the coordinates of the results, by the stride
    places   on D, H, W: (voxel of the window, tap) in ascending order of the voxels
    """

    rest: Triple
    places: tuple[list[tuple[int, int]], ...]

    @property
    def counts(self) -> Triple:
        """Taps on D, H, W."""
        d, h, w = (len(places) for places in self.places)
        return d, h, w

    def taps(self, axis: int) -> list[int]:
        """The kernel's taps on an axis, in the order of the products."""
        return [tap for _, tap in self.places[axis]]


def forward_groups(kernel: Triple) -> list[TapGroup]:
    """The single group of a convolution forward: every tap meets the voxel of its number."""
    return [TapGroup((0, 0, 0), tuple([(tap, tap) for tap in range(k)] for k in kernel))]


def backward_groups(kernel: Triple, stride: Triple) -> list[TapGroup]:
    """A group for each rest of the input's coordinates by the stride, on windows of the output's gradient."""
    first = backward_reach(kernel, stride).first
    groups = []
    for rest in product(*(range(s) for s in stride)):
        places = tuple(
            [(output - low, tap) for output, tap in axis_taps(k, s, phase)]
            for k, s, phase, low in zip(kernel, stride, rest, first, strict=True)
        )
        groups.append(TapGroup((rest[0], rest[1], rest[2]), places))
    return groups


def group_fields(
    groups: Sequence[TapGroup], reach: Reach, lines: int, line: int, plane: int, voxel: int, together: int = 1,
    pairs: int = 1,
) -> dict[str, object]:  # fmt: skip
    """The `blocks.Groups` of a window.

    lines, line, plane  of the window: lines of a phase, floats of a line and of a plane
    voxel               channels of the window
    together, pairs     taps are rounded up to, and columns, in the terms of a weight's gradient
    """
    table: list[int] = []
    numbers, term = [], 0
    for group in groups:
        offsets = [
            z * plane + (y % reach.step[1] * lines + y // reach.step[1]) * line
            for (z, _), (y, _) in product(group.places[0], group.places[1])
        ]
        columns = group.places[2]
        inner = len(columns) * voxel
        deep, high, _ = group.counts if inner else (0, 0, 0)
        first_plane, first_column = (places[0][0] if places else 0 for places in (group.places[0], columns))
        numbers.append([deep, high, first_plane, len(table), first_column * voxel, inner, term, *group.rest])
        term += -(-deep * high // together) * together * (-(-inner // pairs) * pairs)
        table += offsets + [0] * (-len(offsets) % together)
    return {
        "table": torch.tensor(table or [0]), "numbers": torch.tensor(numbers), "count": len(groups), "terms": term
    }  # fmt: skip


@dataclass(frozen=True)
class Weight:
    """A weight made ready for `forward` or `backward`.

    packed    [channels / width][terms][width]
    voxel     channels of the windows
    channels  of the results, rounded up to vectors
    kernel, stride  on D, H, W
    """

    packed: Tensor
    layout: Registers
    voxel: int
    channels: int
    kernel: Triple
    stride: Triple

    @property
    def terms(self) -> int:
        """Products of each result of all groups."""
        return self.voxel * prod(self.kernel)

    def release(self) -> None:
        """Give the memory to the next weight; this one must not be used any more."""
        workers.give("weight", self.packed)


def is_image(sources: Sequence[int]) -> bool:
    """Whether there is one input of fewer channels than a vector, which are stored as they are."""
    return len(sources) == 1 and sources[0] < LANES


def kernel_of(weight: Tensor) -> Triple:
    """The sides of a weight [K, C, kd, kh, kw].

    Raises AssertionError for kernels other than 1, 3, 5 and 7.
    """
    d, h, w = weight.shape[2:]
    if not {d, h, w} <= {1, 3, 5, 7}:
        raise AssertionError(f"kernel {(d, h, w)}: sides of 1, 3, 5 or 7 voxels; others go through oneDNN")
    return d, h, w


def pack_weight(weight: Tensor, sources: Sequence[int], stride: Triple = (1, 1, 1)) -> Weight:
    """The weight of a convolution for `forward`.

    weight   [K, C, kd, kh, kw], sides of 1, 3, 5 or 7
    sources  C cut into the inputs' channels; each input's are stored rounded up to vectors, a single one's may be
             fewer than a vector
    stride   1 or 2 on D, H, W
    """
    kernel, stored = kernel_of(weight), as_stored(weight.detach(), sources)
    k, c = stored.shape[:2]
    layout = forward_layout(k, sources)
    packed = _taken(k * c * prod(kernel)).view(k // layout.width, *kernel, c, layout.width)
    packed.copy_(stored.unflatten(0, (-1, layout.width)).permute(0, 3, 4, 5, 2, 1))
    return Weight(packed.view(-1), layout, c, k, kernel, stride)


def forward_layout(stored: int, sources: Sequence[int]) -> Registers:
    """The registers' layout forward. An image's few channels are met one by one, whatever the vectors."""
    return registers_for([stored], [] if is_image(sources) else [padded_channels(s) for s in sources], widest_vector())


def pack_turned_weight(weight: Tensor, sources: Sequence[int], stride: Triple = (1, 1, 1)) -> Weight:
    """The weight of the input gradient, for `backward`: inputs and outputs exchanged, taps by the inputs they reach."""
    kernel = kernel_of(weight)
    stored = _pad_parts(_pad_parts(weight.detach(), 0, [weight.shape[0]]), 1, sources)
    k, c = stored.shape[:2]
    layout = registers_for([padded_channels(s) for s in sources], [k], widest_vector())
    packed = _taken(k * c * prod(kernel)).view(c // layout.width, -1, layout.width)
    by_tap = stored.unflatten(1, (-1, layout.width)).permute(1, 3, 4, 5, 0, 2).contiguous()  # each tap in one piece
    term = 0
    for group in backward_groups(kernel, stride):
        size = prod(group.counts) * k
        if size:
            packed[:, term : term + size].unflatten(1, (*group.counts, k)).copy_(chosen(by_tap, group, 1))
        term += size
    return Weight(packed.view(-1), layout, k, c, kernel, stride)


def chosen(by_tap: Tensor, group: TapGroup, first: int) -> Tensor:
    """The taps of a group, on the three dimensions from `first` on."""
    z, y, x = (torch.tensor(group.taps(axis)) for axis in range(3))
    taps: Tensor = by_tap[(slice(None),) * first + (z[:, None, None], y[:, None], x)]
    return taps


def _taken(floats: int) -> Tensor:
    return workers.take("weight", floats)[:floats]


def as_stored(weight: Tensor, sources: Sequence[int]) -> Tensor:
    """[K, C, ...] with zeros where channels are stored and not there; an image's stay."""
    weight = weight if is_image(sources) else _pad_parts(weight, 1, sources)
    return _pad_parts(weight, 0, [weight.shape[0]])


def _pad_parts(weight: Tensor, dim: int, parts: Sequence[int]) -> Tensor:
    if all(n % LANES == 0 for n in parts):
        return weight
    padded = []
    for part in weight.split(list(parts), dim):
        zeros = list(part.shape)
        zeros[dim] = padded_channels(zeros[dim]) - zeros[dim]
        padded += [part, part.new_zeros(zeros)]
    return torch.cat(padded, dim)


class WeightSums:
    """The sums over the volume that a weight's gradient is made from, by thread.

    weight   [K, C, kd, kh, kw]
    sources  C cut into the inputs' channels
    voxels   of this rank's block of outputs: whether so many can be added in float32
    stride   of the convolution
    image    the windows are those of the input, not of the output's gradient (see `add_for_image`)
    """

    def __init__(
        self, weight: Tensor, sources: Sequence[int], voxels: int, stride: Triple = (1, 1, 1), image: bool = False
    ) -> None:
        self.shape, self.sources, self.image = tuple(weight.shape[:2]), list(sources), image
        self.kernel, self.stride = kernel_of(weight), stride
        k, stored = padded_channels(weight.shape[0]), [padded_channels(s) for s in sources]
        tiles, windows = ([k], [] if is_image(sources) else stored) if image else (stored, [k])
        self.layout = registers_for(tiles, windows, widest_vector())
        self.voxel = weight.shape[1] if image else k
        self.tile = sum(tiles)
        few = self.voxel % LANES != 0
        self.together = IMAGE_TAPS if few else 1
        self.pairs = IMAGE_PAIRS if few else self.layout.window_channels(1)
        self.groups = forward_groups(self.kernel) if image else backward_groups(self.kernel, stride)
        self.size = sum(self._terms(group) for group in self.groups) * self.tile
        self._memory = workers.take("weight gradient", workers.count() * self.size)
        self.sums = self._memory[: workers.count() * self.size].view(workers.count(), self.size).zero_()
        long = voxels > 4 * FLUSH_VOXELS * workers.count()
        self.totals = torch.zeros(self.sums.shape, dtype=torch.float64) if long else None

    def _terms(self, group: TapGroup) -> int:
        d, h, w = group.counts
        if not w:
            return 0
        return -(-d * h // self.together) * self.together * (-(-w * self.voxel // self.pairs) * self.pairs)

    def finish(self) -> Tensor:
        """[K, C, kd, kh, kw]: this rank's part of the gradient. Gives the sums' memory back."""
        whole = self.sums if self.totals is None else self.totals
        added = whole[0] if len(whole) == 1 else whole.sum(0)
        by_tap = torch.empty(*self.kernel, self.voxel, self.tile)
        at = 0
        for group in self.groups:
            (d, h, w), terms = group.counts, self._terms(group)
            if d * h * w:
                part = added[at * self.tile : (at + terms) * self.tile].view(-1, -(-w * self.voxel // self.pairs)
                                                                             * self.pairs, self.tile)  # fmt: skip
                part = part[: d * h, : w * self.voxel].view(d, h, w, self.voxel, self.tile)
                z, y, x = (torch.tensor(group.taps(axis)) for axis in range(3))
                by_tap[z[:, None, None], y[:, None], x] = part.to(by_tap.dtype)
            at += terms
        workers.give("weight gradient", self._memory)
        gradient = by_tap.permute(*((4, 3) if self.image else (3, 4)), 0, 1, 2)
        return _without_padding(gradient, self.shape, [] if self.image else self.sources)


def _without_padding(gradient: Tensor, shape: Sequence[int], sources: Sequence[int]) -> Tensor:
    """[K, C, kd, kh, kw] from a gradient whose channels are stored rounded up to vectors.

    shape    (K, C)
    sources  C cut into the inputs' channels; none where they are stored as they are
    """
    k, c = shape
    if any(s % LANES for s in sources):
        parts = gradient.split([padded_channels(s) for s in sources], 1)
        gradient = torch.cat([part[:, :s] for part, s in zip(parts, sources, strict=True)], 1)
    return gradient[:k, :c].contiguous()
