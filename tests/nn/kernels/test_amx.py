"""Convolutions on AMX tiles: the order of their sums in numpy, torch in float64, blocks against the whole."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oracles import relative_error
from volseg.geometry import Triple
from volseg.nn.kernels import amx, block_convolution, point_convolution, pointwise
from volseg.nn.kernels.amx import hardware
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.reproducible import brick_moments
from volseg.nn.kernels.rows import Activation, Affine, Rows
from volseg.partition.amx_tiling import pairing_of
from volseg.partition.direct_tiling import Cut, backward_reach

on_tiles = pytest.mark.skipif(not amx.available(), reason=f"{amx.refusal()}")

ROUNDED = 2.0**-8
"""Of a number rounded to bfloat16, relative."""


def first(rows: Tensor) -> Tensor:
    """[d, h, w, C] as [1, C, d, h, w] in float64."""
    return rows.permute(3, 0, 1, 2).unsqueeze(0).double()


def activated(sides: Triple, channels: int) -> Activation:
    affine = Affine(torch.randn(channels), torch.randn(channels), 0.01)
    return Activation(Rows.of(torch.randn(*sides, channels).bfloat16()), affine)


def read_as(x: Activation) -> Tensor:
    """What kernels read: activated in float32, then rounded."""
    raw, affine = x.rows.own.float(), x.affine
    return F.leaky_relu(raw * affine.scale + affine.shift, affine.slope).bfloat16()


def random_weight(outputs: int, inputs: int, kernel: Triple) -> Tensor:
    return torch.randn(outputs, inputs, *kernel) / (inputs * 27) ** 0.5


def product_of_tiles(before: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """before + left @ right in the order of `jit.tiles`; products of two bfloat16 numbers are exact in float32.

    left   [.., 32]
    right  [32, columns]
    """
    even, odd = np.zeros_like(before), np.zeros_like(before)
    for k in range(0, 32, 2):
        even += left[..., k : k + 1] * right[k]
        odd += left[..., k + 1 : k + 2] * right[k + 1]
    return before + (even + odd)


@on_tiles
def test_a_product_of_tiles_adds_in_the_order_that_is_written_down() -> None:
    torch.manual_seed(0)
    left, right, out = torch.randn(16, 32).bfloat16(), torch.randn(32, 16).bfloat16(), torch.randn(16, 16)
    expected = product_of_tiles(out.numpy(), left.float().numpy(), right.float().numpy())
    hardware.product(left, right, out)
    assert np.array_equal(out.numpy(), expected)


@on_tiles
@pytest.mark.parametrize(("channels", "kernel"), [(16, (3, 3, 3)), (24, (1, 3, 3)), (40, (1, 1, 1)), (8, (3, 1, 3))])
def test_a_result_adds_taps_and_channels_in_the_order_that_is_written_down(channels: int, kernel: Triple) -> None:
    torch.manual_seed(1)
    sides: Triple = (3, 4, 5)
    x, weight, bias = activated(sides, channels), random_weight(16, channels, kernel), torch.randn(16)
    out = Rows.of(torch.empty(*sides, 16))
    amx.forward([x], amx.pack_weight(weight, [channels]), bias, out)
    around = [(k // 2, k // 2) for k in kernel]
    window = np.pad(read_as(x).float().numpy(), [*around[:2], (kernel[2] // 2, kernel[2] // 2), (0, 0)])
    by_tap = weight.bfloat16().float().permute(2, 3, 4, 1, 0).flatten(2, 3).numpy()  # [kd, kh, kw * C, K]
    width = by_tap.shape[2]
    expected = np.broadcast_to(bias.numpy(), (*sides, 16)).copy()
    for z, y in product(range(kernel[0]), range(kernel[1])):
        lines = window[z : z + sides[0], y : y + sides[1]]
        met = np.concatenate([lines[:, :, n : n + sides[2]] for n in range(kernel[2])], 3)
        met = np.pad(met, [(0, 0)] * 3 + [(0, -width % 32)])
        taps = np.pad(by_tap[z, y], [(0, -width % 32), (0, 0)])
        there = [0 <= plane + z - kernel[0] // 2 < sides[0] for plane in range(sides[0])]
        for n in range(0, met.shape[3], 32):
            expected[there] = product_of_tiles(expected[there], met[there][..., n : n + 32], taps[n : n + 32])
    assert np.array_equal(out.buffer.numpy(), expected)


CASES: list[tuple[Triple, list[int], int]] = [
    ((4, 8, 12), [16], 16), ((5, 7, 9), [16], 32), ((1, 1, 1), [8, 16], 24), ((2, 5, 33), [48], 8),
]  # fmt: skip


@on_tiles
@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 3, 3), (1, 5, 7)])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2)])
def test_values_and_gradients_equal_torch_on_rounded_numbers(kernel: Triple, stride: Triple) -> None:
    """Outputs, gradients of one input and of two, through the first one's activation, and of the weight."""
    torch.manual_seed(2)
    for number, (sides, channels, outputs) in enumerate(CASES):
        inputs = [activated(sides, count) for count in channels]
        weight, bias = random_weight(outputs, sum(channels), kernel), torch.randn(outputs)
        out = Rows.of(torch.full((*(-(-n // s) for n, s in zip(sides, stride, strict=True)), outputs), torch.nan))
        workers.scratch(0, 2**16).fill_(torch.nan)  # nothing is read that was not written
        amx.forward(inputs, amx.pack_weight(weight, channels, stride), bias, out)
        x = first(torch.cat([read_as(i) for i in inputs], 3)).requires_grad_()
        w = weight.bfloat16().double().requires_grad_()
        y = F.conv3d(x, w, bias.double(), stride, [k // 2 for k in kernel])
        assert relative_error(first(out.buffer), y.detach()) < 4e-6, (sides, channels)
        upstream = torch.randn(out.buffer.shape).bfloat16()
        y.backward(first(upstream))
        sums = torch.zeros(2, channels[0], dtype=torch.float64)
        targets = [amx.Target(Rows.of(torch.full_like(i.rows.buffer, torch.nan))) for i in inputs]
        targets[0] = amx.Target(targets[0].rows, sums)
        into = amx.WeightSums(weight, channels, 10**7 if number % 2 else 1, stride)
        workers.scratch(0, 2**16).fill_(torch.nan)
        amx.backward(inputs, Rows.of(upstream), amx.pack_turned_weight(weight, channels, stride), targets, into)
        assert relative_error(into.finish().double(), w.grad) < 4e-6, (sides, channels)
        expected = list(x.grad.split(channels, 1))
        raw, affine = first(inputs[0].rows.buffer), inputs[0].affine
        scale, shift = (c.double().view(1, -1, 1, 1, 1) for c in (affine.scale, affine.shift))
        expected[0] = torch.where(raw * scale + shift > 0, expected[0], expected[0] * affine.slope)
        both = torch.stack([expected[0].sum((0, 2, 3, 4)), (expected[0] * raw).sum((0, 2, 3, 4))])
        assert relative_error(sums, both, floor=1.0) < 1e-4
        for target, value in zip(targets, expected, strict=True):
            assert relative_error(first(target.rows.buffer), value) < ROUNDED


@on_tiles
@pytest.mark.parametrize("channels", [8, 16, 24])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
def test_ghosts_that_no_result_reads_have_no_influence(channels: int, stride: Triple) -> None:
    """They never arrive, and products of tiles read up to three voxels further than a result, with weights of zero."""
    torch.manual_seed(6)
    weight = random_weight(16, channels, (1, 1, 1))
    x, upstream = torch.randn(2, 4, 6, channels).bfloat16(), torch.randn(2, 4, 6, 16).bfloat16()
    upstream = upstream[:: stride[0], :: stride[1], :: stride[2]].contiguous()
    results = []
    for ghosts in (False, True):
        inputs, given = (
            Rows(F.pad(t, [0, 0, 1, 1, 1, 1, 1, 1], value=torch.nan), (1, 1, 1), t.shape[:3]) if ghosts else Rows.of(t)
            for t in (x, upstream)
        )
        out, target = (Rows.of(torch.zeros_like(t)) for t in (upstream, x))
        amx.forward([Activation(inputs)], amx.pack_weight(weight, [channels], stride), None, out)
        into = amx.WeightSums(weight, [channels], 1, stride)
        turned = amx.pack_turned_weight(weight, [channels], stride)
        amx.backward([Activation(inputs)], given, turned, [amx.Target(target)], into)
        results.append((out.buffer, target.buffer, into.finish()))
    assert all(map(torch.equal, *results))
    up = random_weight(channels, 8, (2, 2, 2))
    ups = []
    for rows in (Rows.of(x), Rows(F.pad(x, [0, 0, 1, 1, 1, 1, 1, 1], value=torch.nan), (1, 1, 1), x.shape[:3])):
        ups.append(Rows.of(torch.zeros(4, 8, 12, 8).bfloat16()))
        point_convolution.apply(Activation(rows), point_convolution.pack_up(up, None, torch.bfloat16), ups[-1])
    assert torch.equal(ups[0].buffer, ups[1].buffer)


def with_ghosts(whole: Tensor, origin: Triple, sides: Triple, reach: Triple) -> Rows:
    """A block of a volume with ghosts of `reach` voxels wherever the volume goes on."""
    low = tuple(min(r, o) for r, o in zip(reach, origin, strict=True))
    cuts = [
        slice(o - a, min(o + n + r, size))
        for o, a, n, r, size in zip(origin, low, sides, reach, whole.shape[:3], strict=True)
    ]
    return Rows(whole[tuple(cuts)].contiguous(), (low[0], low[1], low[2]), sides)


@on_tiles
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 2, 2)), ((1, 5, 7), (1, 2, 2))])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_block_with_ghosts_has_the_bits_of_the_whole(kernel: Triple, stride: Triple, threads: int) -> None:
    """Forward and the inputs' gradients, in blocks that begin and end anywhere, some planes at a time."""
    torch.manual_seed(3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        outputs: Triple = (6, 9, 11)
        sides = tuple(n * s for n, s in zip(outputs, stride, strict=True))
        x, weight, upstream = activated(sides, 16), random_weight(16, 16, kernel), torch.randn(*outputs, 16).bfloat16()
        whole, target = (Rows.of(torch.empty(*shape, 16).bfloat16()) for shape in (outputs, sides))
        packed, turned = amx.pack_weight(weight, [16], stride), amx.pack_turned_weight(weight, [16], stride)
        amx.forward([x], packed, None, whole)
        amx.backward([x], Rows.of(upstream), turned, [amx.Target(target)], None)
        reach = tuple(k // 2 for k in kernel)
        for ranges in product([(0, 2), (2, 6)], [(0, 5), (5, 9)], [(0, 1), (1, 8), (8, 11)]):
            origin, size = zip(*((a, b - a) for a, b in ranges), strict=True)
            first_input, length = (tuple(n * s for n, s in zip(v, stride, strict=True)) for v in (origin, size))
            block = Activation(with_ghosts(x.rows.buffer, first_input, length, reach), x.affine)
            own = Activation(Rows.of(block.rows.own.contiguous()), x.affine)
            out, part = (Rows.of(torch.empty(*shape, 16).bfloat16()) for shape in (size, length))
            gradient = with_ghosts(upstream, origin, size, reach)
            for planes in ((0, 1), (1, size[0])):
                amx.forward([block], packed, None, out, planes=planes)
                amx.backward([own], gradient, turned, [amx.Target(part)], None, planes=planes)
            assert torch.equal(out.buffer, whole.buffer[tuple(slice(a, b) for a, b in ranges)])
            there = tuple(slice(o, o + n) for o, n in zip(first_input, length, strict=True))
            assert torch.equal(part.buffer, target.buffer[there])
    finally:
        torch.set_num_threads(before)


@on_tiles
def test_sums_of_bricks_and_the_pooled_tensor_are_those_of_the_output() -> None:
    torch.manual_seed(4)
    x, weight, bias = activated((16, 12, 24), 16), random_weight(24, 16, (3, 3, 3)), torch.randn(24)
    exact, out = Rows.of(torch.empty(16, 12, 24, 24)), Rows.of(torch.empty(16, 12, 24, 24).bfloat16())
    signs = torch.ones(24)
    signs[::3] = -1
    sums = amx.BrickSums(torch.full((2, 6, 3, 2, 24), torch.nan), (8, 2, 8))
    pooled = amx.Pooled(Rows.of(torch.full((16, 6, 12, 24), torch.nan).bfloat16()), signs, (1, 2, 2))
    packed = amx.pack_weight(weight, [16])
    amx.forward([x], packed, bias, exact)
    amx.forward([x], packed, bias, out, sums=sums, pooled=pooled)
    assert torch.equal(out.buffer, exact.buffer.bfloat16())
    assert torch.equal(sums.sums.view(-1, 2, 24), brick_moments(exact.buffer, (8, 2, 8)))  # before they are rounded
    expected = F.max_pool3d((exact.buffer * signs).permute(3, 0, 1, 2), (1, 2, 2)).permute(1, 2, 3, 0) * signs
    assert torch.equal(pooled.rows.buffer, expected.bfloat16())


@on_tiles
@pytest.mark.parametrize(
    ("channels", "outputs", "spread"),
    [(16, 3, (1, 1, 1)), (32, 16, (2, 2, 2)), (24, 8, (1, 2, 2)), (8, 40, (2, 1, 2))],
)
def test_point_and_up_convolutions_equal_those_in_float32(channels: int, outputs: int, spread: Triple) -> None:
    torch.manual_seed(5)
    sides, up = (3, 5, 7), spread != (1, 1, 1)
    x = activated(sides, channels)
    same = Activation(Rows.of(read_as(x).float()))
    shape = (channels, outputs, *spread) if up else (outputs, channels, 1, 1, 1)
    weight, bias, stored = torch.randn(shape).bfloat16().float(), torch.randn(outputs), -(-outputs // 8) * 8
    out, expected = (Rows.of(torch.empty(*(n * s for n, s in zip(sides, spread, strict=True)), stored)) for _ in "ab")
    pack = point_convolution.pack_up if up else point_convolution.pack_point
    workers.scratch(0, 2**16).fill_(torch.nan)
    point_convolution.apply(x, pack(weight, bias, torch.bfloat16), out)
    point_convolution.apply(same, pack(weight, bias, torch.float32), expected)
    assert relative_error(out.buffer.double(), expected.buffer.double()) < 4e-6
    upstream = torch.randn(out.buffer.shape).bfloat16()
    target, plain = Rows.of(torch.full_like(x.rows.buffer, torch.nan)), Rows.of(torch.empty(*sides, channels))
    turned = [
        point_convolution.pack_turned_up(weight, dtype) if up
        else point_convolution.pack_turned_point(weight, stored, dtype)
        for dtype in (torch.bfloat16, torch.float32)
    ]  # fmt: skip
    workers.scratch(0, 2**16).fill_(torch.nan)
    gradient = point_convolution.gradients(x, Rows.of(upstream), turned[0], target, None)
    exact = point_convolution.gradients(same, Rows.of(upstream.float()), turned[1], plain, None)
    assert relative_error(gradient, exact) < 4e-6
    assert relative_error(target.buffer.double(), plain.buffer.double()) < ROUNDED


@on_tiles
def test_the_front_takes_tiles_for_tensors_of_bfloat16_with_channels_enough() -> None:
    weight, half = torch.randn(16, 16, 3, 3, 3), torch.bfloat16
    assert isinstance(block_convolution.pack_weight(weight, [16], stored=half), amx.Weight)
    assert not isinstance(block_convolution.pack_weight(weight, [16]), amx.Weight)
    assert not isinstance(block_convolution.pack_weight(weight[:, :3], [3], stored=half), amx.Weight)
    assert isinstance(block_convolution.weight_sums(weight, [16], 1, stored=half), amx.WeightSums)
    assert not isinstance(block_convolution.weight_sums(weight, [16], 1, image=True, stored=half), amx.WeightSums)
    assert isinstance(point_convolution.pack_point(weight[:, :3, :1, :1, :1], None, half), pointwise.PointWeight)


def test_where_there_are_no_tiles_the_front_says_so_and_takes_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "processor_has", lambda feature: False)
    hardware.refusal.cache_clear()
    hardware.tile_configuration.cache_clear()
    try:
        assert not amx.available()
        assert "bfloat16 tiles" in str(amx.refusal())
        assert not block_convolution.on_tiles([16], torch.bfloat16)
        with pytest.raises(AssertionError, match="bfloat16 tiles"):
            hardware.tile_configuration(16)
    finally:
        monkeypatch.undo()
        hardware.refusal.cache_clear()


def test_the_pairs_of_a_block_cover_its_results_in_whole_factors() -> None:
    for columns, lines, kernel, stride in product((1, 6, 33, 64), (1, 6, 16), ((3, 3, 3), (1, 1, 1)), (1, 2)):
        reach = backward_reach(kernel, (stride,) * 3)
        pairing = pairing_of(Cut(0, 4, 4, lines, columns, (1, 1, 1)), reach)
        assert pairing.pairs * pairing.together == 16
        assert pairing.columns >= columns
        assert pairing.tile_lines >= lines
        assert pairing.tile_lines % pairing.together == 0
        assert pairing.shifts == pairing.steps + reach.size[2] - 1
