"""Interpolation against torch in float64: factors, modes, shapes, ghosts, activations and sums."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels import interpolation, winograd
from volseg.nn.kernels.rows import Activation, Affine, Rows

pytestmark = pytest.mark.skipif(not winograd.available(), reason="no fused multiply-add here")

FACTORS = list(product((1, 2), repeat=3))
MODES = ["trilinear", "nearest"]
SHAPES = [(3, 4, 5), (1, 1, 1), (2, 7, 1)]


def oracle(x: Tensor, factors: Triple, mode: str) -> Tensor:
    """[d, h, w, C] interpolated by torch."""
    y = F.interpolate(x.permute(3, 0, 1, 2)[None], scale_factor=[float(n) for n in factors], mode=mode)
    return y[0].permute(1, 2, 3, 0)


def longer(shape: Triple, factors: Triple) -> Triple:
    d, h, w = (n * factor for n, factor in zip(shape, factors, strict=True))
    return d, h, w


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_torch(factors: Triple, mode: str, shape: Triple) -> None:
    torch.manual_seed(1)
    raw, affine = torch.randn(*shape, 16), Affine(torch.randn(16), torch.randn(16), 0.1)
    x, out = Activation(Rows.of(raw), affine), Rows.of(torch.full((*longer(shape, factors), 16), torch.nan))
    interpolation.interpolate(x, factors, mode, out)
    before = (raw.double() * affine.scale + affine.shift).requires_grad_()
    expected = oracle(F.leaky_relu(before, affine.slope), factors, mode)
    assert torch.allclose(out.buffer.double(), expected, atol=1e-5)
    fine = torch.randn(out.buffer.shape)
    (wanted,) = torch.autograd.grad(expected, before, fine.double())
    target, sums = Rows.of(torch.ones(raw.shape)), torch.zeros(2, 16, dtype=torch.float64)
    interpolation.gradient(Rows.of(fine), x, factors, mode, target, sums, add=True)
    assert torch.allclose(target.buffer.double() - 1, wanted, atol=1e-5)
    assert torch.allclose(sums, torch.stack([wanted, wanted * raw]).sum((1, 2, 3)), atol=1e-4)
    interpolation.gradient(Rows.of(fine), None, factors, mode, target, None)
    plain = raw.double().requires_grad_()
    (wanted,) = torch.autograd.grad(oracle(plain, factors, mode), plain, fine.double())
    assert torch.allclose(target.buffer.double(), wanted, atol=1e-5)


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
@pytest.mark.parametrize("mode", MODES)
def test_a_block_with_ghosts_gives_the_bits_of_the_whole(factors: Triple, mode: str) -> None:
    """A block of 3 x 2 x 2 voxels in the middle of 6 x 5 x 4: all of it, some planes, and what its ghosts become."""
    torch.manual_seed(2)
    whole = torch.randn(6, 5, 4, 8)
    alone = Rows.of(torch.empty(*longer((6, 5, 4), factors), 8))
    interpolation.interpolate(Activation(Rows.of(whole)), factors, mode, alone)
    x = Activation(Rows(whole[1:6, 1:5].contiguous(), (1, 1, 1), (3, 2, 2)))
    d, h, w = factors
    out = Rows.of(torch.full((*longer((3, 2, 2), factors), 8), torch.nan))
    interpolation.interpolate(x, factors, mode, out, (1, 3))
    interpolation.interpolate(x, factors, mode, out, (0, 1))
    assert torch.equal(out.buffer, alone.buffer[2 * d : 5 * d, 2 * h : 4 * h, w : 3 * w])
    wide = Rows(torch.empty(2 * d, 4 * h, 4 * w, 8), (d, h, w), longer((3, 2, 2), factors))
    interpolation.interpolate(x, factors, mode, wide, (-1, 1), beside=True)
    inner = (slice(d - 1, 2 * d), slice(h - 1, 4 * h - (h - 1)), slice(0, 4 * w))
    expected = alone.buffer[d : 3 * d, h : 5 * h]
    assert torch.equal(wide.buffer[inner], expected[inner])
    fine = torch.randn(alone.buffer.shape)
    wanted, target = Rows.of(torch.empty(whole.shape)), Rows.of(torch.empty(3, 2, 2, 8))
    interpolation.gradient(Rows.of(fine), None, factors, mode, wanted, None)
    cut = Rows(fine[2 * d - 1 : 5 * d + 1, 2 * h - 1 : 4 * h + 1, w - 1 : 3 * w + 1].contiguous(), (1, 1, 1), out.sides)
    interpolation.gradient(cut, None, factors, mode, target, None)
    assert torch.equal(target.buffer, wanted.buffer[2:5, 2:4, 1:3])
