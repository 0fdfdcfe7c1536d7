"""Kernels on bfloat16 tensors: what they are on float32 tensors of the same values, rounded where they store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.networks.description import ActivationKind
from volseg.nn.kernels import addition, averaging, interpolation, passes, pointwise, pooling
from volseg.nn.kernels import block_convolution as kernels
from volseg.nn.kernels.rows import Activation, Affine, Rows

HALF = torch.bfloat16
SIDES = (6, 8, 10)
CHANNELS = 16

Run = Callable[[torch.dtype], Sequence[Tensor]]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Values that bfloat16 has."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(HALF).float()


def rows(dtype: torch.dtype, sides: Triple = SIDES, channels: int = CHANNELS, seed: int = 0) -> Rows:
    """With a ghost on each side, whose values count."""
    buffer = random(*(n + 2 for n in sides), channels, seed=seed).to(dtype)
    return Rows(buffer, (1, 1, 1), sides)


def read(dtype: torch.dtype, kind: ActivationKind = "leaky_relu", seed: int = 0, **shape) -> Activation:
    x = rows(dtype, seed=seed, **shape)
    scale, shift = random(x.channels, seed=seed + 1), random(x.channels, seed=seed + 2)
    return Activation(x, Affine(scale, shift, 0.1, kind))


def check(run: Run) -> None:
    """What is stored is the float32 result rounded; what is summed in float32 or float64 is the same."""
    for half, whole in zip(run(HALF), run(torch.float32), strict=True):
        assert torch.equal(half, whole.to(half.dtype))
        assert whole.abs().max() > 0
    assert any(result.dtype == HALF for result in run(HALF))


KERNELS = [((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 2, 2)), ((1, 3, 3), (1, 1, 1)), ((1, 1, 1), (1, 1, 1))]


@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_convolution(kernel: Triple, stride: Triple) -> None:
    weight, bias = random(16, 32, *kernel, seed=5), random(16, seed=6)
    given = random(*(-(-n // s) for n, s in zip(SIDES, stride, strict=True)), 16, seed=8)

    def forward(dtype: torch.dtype) -> Sequence[Tensor]:
        out = Rows.of(torch.empty(given.shape, dtype=dtype))
        pooled = Rows.of(torch.empty(*(n // 2 for n in out.sides), 16, dtype=dtype))
        where = None if stride != (1, 1, 1) else kernels.Pooled(pooled, torch.ones(16))
        packed = kernels.pack_weight(weight, [16, 16], stride)
        sums = None if stride != (1, 1, 1) else kernels.BrickSums(torch.empty(3, 4, 5, 2, 16), (2, 2, 2))
        inputs = [read(dtype), read(dtype, "silu", seed=3)]
        kernels.forward(inputs, packed, bias, out, sums=sums, pooled=where)
        return [out.buffer] if sums is None else [out.buffer, pooled.buffer, sums.sums]

    def backward(dtype: torch.dtype) -> Sequence[Tensor]:
        packed = kernels.pack_turned_weight(weight, [16, 16], stride)
        into = kernels.weight_sums(weight, [16, 16], 480, stride)
        first, second = (Rows.of(random(*SIDES, 16, seed=9).to(dtype)) for _ in range(2))
        sums = torch.zeros(2, 16, dtype=torch.float64)
        slots = [kernels.Target(first, sums, add=True), kernels.Target(second)]
        inputs = [read(dtype), read(dtype, "silu", seed=3)]
        kernels.backward(inputs, Rows.of(given.to(dtype)), packed, slots, into)
        return [first.buffer, second.buffer, sums, into.finish()]

    check(forward)
    check(backward)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 5, 5)])
def test_the_image_stays_float32(kernel: Triple) -> None:
    weight, image = random(16, 2, *kernel, seed=5), Activation(Rows.of(random(*SIDES, 2)))

    def run(dtype: torch.dtype) -> Sequence[Tensor]:
        out = Rows.of(torch.empty(*SIDES, 16, dtype=dtype))
        kernels.forward([image], kernels.pack_weight(weight, [2]), None, out)
        into = kernels.weight_sums(weight, [2], 480, image=True)
        kernels.add_for_image(image, Rows.of(random(*SIDES, 16, seed=7).to(dtype)), into)
        return [out.buffer, into.finish()]

    check(run)


def test_up_convolution_and_head() -> None:
    weight, bias = random(16, 8, 2, 2, 2, seed=4), random(8, seed=5)
    head = random(3, 16, 1, 1, 1, seed=6)

    def run(dtype: torch.dtype) -> Sequence[Tensor]:
        wide = Rows.of(torch.empty(*(2 * n for n in SIDES), 8, dtype=dtype))
        pointwise.apply(read(dtype), pointwise.pack_up(weight, bias), wide)
        logits = Rows.of(torch.empty(*SIDES, 8))
        pointwise.apply(read(dtype), pointwise.pack_point(head, None), logits)
        target, sums = rows(dtype, seed=8), torch.zeros(2, 16, dtype=torch.float64)
        given = Rows.of(random(*wide.buffer.shape, seed=9).to(dtype))
        total = pointwise.gradients(read(dtype), given, pointwise.pack_turned_up(weight), target, sums, add=True)
        of_logits = Rows.of(random(*SIDES, 8, seed=10))
        mixed = Rows.of(torch.empty(*SIDES, 16))  # as a deep head's part is, before it is added
        turned = pointwise.pack_turned_point(head, 8)
        more = pointwise.gradients(read(dtype), of_logits, turned, mixed, None)
        return [wide.buffer, logits.buffer, target.buffer, sums, total, mixed.buffer, more]

    check(run)


@pytest.mark.parametrize("kind", ["leaky_relu", "silu"])
def test_pooling_and_passes(kind: ActivationKind) -> None:
    signs = random(CHANNELS, seed=3).sign()

    def run(dtype: torch.dtype) -> Sequence[Tensor]:
        small = (3, 4, 5)
        pooled, mean = (Rows.of(torch.empty(*small, CHANNELS, dtype=dtype)) for _ in range(2))
        x = read(dtype, kind)
        pooling.pool(x, (2, 2, 2), pooled, signs)
        averaging.average(x, (2, 2, 2), mean)
        given = Rows.of(random(*small, CHANNELS, seed=5).to(dtype))
        gradients = [rows(dtype, seed=6 + n) for n in range(4)]
        sums = [torch.zeros(2, CHANNELS, dtype=torch.float64) for _ in range(2)]
        passes.unpool(gradients[0], x, signs, given, None)
        passes.unpool(gradients[1], x, signs, given, sums[0])
        averaging.gradient(given, x, (2, 2, 2), gradients[2], sums[1], add=True)
        passes.combine(gradients[3], x.rows, signs, random(CHANNELS, seed=8), random(CHANNELS, seed=9))
        active = Rows.of(torch.empty(*SIDES, CHANNELS, dtype=dtype))
        passes.activate(x, active)
        return [pooled.buffer, mean.buffer, active.buffer, *(g.buffer for g in gradients), *sums]

    check(run)


@pytest.mark.parametrize("breadth", [1, 7, 16])
def test_sums_over_the_voxels_of_a_block_leave_its_ghosts_out(breadth: int) -> None:
    for dtype in (HALF, torch.float32):
        x = rows(dtype, (3, 2, breadth))
        assert torch.allclose(passes.channel_sums(x), x.own.double().sum((0, 1, 2)), rtol=1e-6, atol=1e-5)


def test_sums_of_two() -> None:
    def run(dtype: torch.dtype) -> Sequence[Tensor]:
        x, other, out = read(dtype), read(dtype, "gelu", seed=4), rows(dtype, seed=7)
        addition.add(x, other, out, 0.1)
        gradient, copy = rows(dtype, seed=8), rows(dtype, seed=9)
        sums = [torch.zeros(2, CHANNELS, dtype=torch.float64) for _ in range(2)]
        result = Rows.of(random(*SIDES, CHANNELS, seed=7).to(dtype))  # what decides is the same in both types
        addition.divide(
            gradient, result, 0.1, x, other, x_sums=sums[0], other_sums=sums[1], copy=copy, adding=True
        )  # fmt: skip
        return [out.buffer, gradient.buffer, copy.buffer, *sums]

    check(run)


@pytest.mark.parametrize("mode", ["trilinear", "nearest"])
def test_interpolation(mode: str) -> None:
    def run(dtype: torch.dtype) -> Sequence[Tensor]:
        wide = Rows.of(torch.empty(*(2 * n for n in SIDES), CHANNELS, dtype=dtype))
        interpolation.interpolate(read(dtype), (2, 2, 2), mode, wide)
        target, sums = rows(dtype, seed=8), torch.zeros(2, CHANNELS, dtype=torch.float64)
        fine = rows(dtype, (12, 16, 20), seed=9)
        interpolation.gradient(fine, read(dtype), (2, 2, 2), mode, target, sums, add=True)
        return [wide.buffer, target.buffer, sums]

    check(run)
