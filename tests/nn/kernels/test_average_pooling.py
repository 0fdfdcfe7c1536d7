"""Average pooling against torch in float64: windows, activations, gradients and their sums."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels import averaging, winograd
from volseg.nn.kernels.rows import Activation, Affine, Rows

pytestmark = pytest.mark.skipif(not winograd.available(), reason="no fused multiply-add here")


def oracle(x: Tensor, window: Triple) -> Tensor:
    """The means of [d, h, w, C], by torch."""
    return F.avg_pool3d(x.permute(3, 0, 1, 2)[None], window)[0].permute(1, 2, 3, 0)


@pytest.mark.parametrize("window", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
@pytest.mark.parametrize("shape", [(4, 6, 10), (2, 2, 2)])
def test_values_and_gradients_are_those_of_torch(window: Triple, shape: Triple) -> None:
    torch.manual_seed(1)
    raw, affine = torch.randn(*shape, 16), Affine(torch.randn(16), torch.randn(16), 0.1)
    before = (raw.double() * affine.scale + affine.shift).requires_grad_()
    expected = oracle(F.leaky_relu(before, affine.slope), window)
    x, out = Activation(Rows.of(raw), affine), Rows.of(torch.full(expected.shape, torch.nan))
    averaging.average(x, window, out)
    assert torch.allclose(out.buffer.double(), expected, atol=1e-6)
    small = torch.randn(expected.shape)
    (wanted,) = torch.autograd.grad(expected, before, small.double())
    target, sums = Rows.of(torch.ones(raw.shape)), torch.zeros(2, 16, dtype=torch.float64)
    averaging.gradient(Rows.of(small), x, window, target, sums, add=True)
    assert torch.allclose(target.buffer.double() - 1, wanted, atol=1e-6)
    assert torch.allclose(sums, torch.stack([wanted, wanted * raw]).sum((1, 2, 3)), atol=1e-4)
    averaging.gradient(Rows.of(small), None, window, target, None)
    plain = raw.double().requires_grad_()
    (wanted,) = torch.autograd.grad(oracle(plain, window), plain, small.double())
    assert torch.allclose(target.buffer.double(), wanted, atol=1e-6)
