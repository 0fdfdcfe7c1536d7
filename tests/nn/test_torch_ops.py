"""The functions by torch's operators are those of the compiled kernels, whatever the size of a window."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from oracles import relative_error
from volseg.errors import ConfigError
from volseg.geometry import Triple
from volseg.nn.fused.backend import BACKEND, CPU, Backend, CompiledBackend, backend_for
from volseg.nn.kernels import winograd
from volseg.nn.kernels.block_convolution import BrickSums, Pooled, Target
from volseg.nn.kernels.rows import Activation, Affine, Rows
from volseg.nn.torch_ops import TorchBackend

compiled = pytest.mark.skipif(not winograd.available(), reason="no fused multiply-add here")
SMALL = 2**12
"""Bytes of a window, so that there are many."""

BOTH: list[Backend] = [CompiledBackend(), TorchBackend(CPU, SMALL)]
WHOLE: Triple = (8, 12, 16)
KERNELS = [((3, 3, 3), (1, 1, 1)), ((1, 3, 5), (1, 1, 2)), ((5, 3, 3), (2, 2, 2))]
"""And their strides."""


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(sides: Triple, channels: int, ghosts: int = 0, seed: int = 0) -> Rows:
    buffer = values(*(n + 2 * ghosts for n in sides), channels, seed=seed)
    return Rows(buffer, (ghosts, ghosts, ghosts), sides)


def affine(channels: int, kind: str = "leaky_relu") -> Affine:
    gain = None if kind == "leaky_relu" else values(channels, seed=9)
    return Affine(1 + 0.2 * values(channels, seed=7), values(channels, seed=8), 0.1, kind, gain)


META = torch.device("meta")


def there(sides: Triple, channels: int, ghosts: int, stored: torch.dtype) -> Rows:
    """Rows without numbers."""
    buffer = torch.empty(*(n + 2 * ghosts for n in sides), channels, dtype=stored, device=META)
    return Rows(buffer, (ghosts, ghosts, ghosts), sides)


def on_meta(channels: int, kind: str = "leaky_relu") -> Affine:
    return affine(channels, kind).on(META)


def no_sums(channels: int) -> Tensor:
    return torch.zeros(2, channels, dtype=torch.float64, device=META)


class Late:
    """Ghosts that arrive when somebody waits for them; until then there is nothing but NaN."""

    def __init__(self, here: Rows) -> None:
        self.here, self.whole, self.done = here, here.buffer.clone(), False
        own = here.own.clone()
        here.buffer.fill_(float("nan"))
        here.own.copy_(own)

    def advance(self) -> None:
        """Nothing arrives before somebody waits."""

    def wait(self) -> None:
        self.here.buffer.copy_(self.whole)
        self.done = True


@compiled
@pytest.mark.parametrize("ghosts", ["none", "there", "late"])
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_convolutions(kernel: Triple, stride: Triple, ghosts: str) -> None:
    """Of two inputs side by side, with sums of bricks, and what is pooled of it."""
    out_sides: Triple = tuple(n // s for n, s in zip(WHOLE, stride, strict=True))
    weight, results = values(12, 24, *kernel, seed=1), []
    brick = (2, 2, 2)
    for backend in BOTH:
        around = 0 if ghosts == "none" else 4
        inputs = [rows(WHOLE, 8, around), rows(WHOLE, 16, around, seed=2)]
        late = [Late(x) for x in inputs] if ghosts == "late" else []
        sums = BrickSums(torch.empty(*(n // 2 for n in out_sides), 2, 16), brick)
        pooled = Pooled(Rows.of(torch.empty(*(n // 2 for n in out_sides), 16)), values(16, seed=3).sign())
        out = Rows.of(torch.empty(*out_sides, 16))
        packed = backend.blocks.pack_weight(weight, [8, 16], stride)
        backend.blocks.forward(
            [Activation(inputs[0], affine(8)), Activation(inputs[1], affine(16, "silu"))], packed,
            values(16, seed=4), out, sums=sums, pooled=pooled, ghosts=late,
        )  # fmt: skip
        assert all(exchange.done for exchange in late)
        results.append([out.buffer, sums.sums, pooled.rows.buffer])
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-5


@compiled
@pytest.mark.parametrize("ghosts", ["none", "there", "late"])
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_gradients_of_convolutions(kernel: Triple, stride: Triple, ghosts: str) -> None:
    """One input's is added to what is there; both inputs have channels that are stored and not there."""
    out_sides: Triple = tuple(n // s for n, s in zip(WHOLE, stride, strict=True))
    weight, results = values(12, 11, *kernel, seed=1), []
    for backend in BOTH:
        around = 0 if ghosts == "none" else 3
        inputs = [Activation(rows(WHOLE, 8), affine(8, "gelu")), Activation(rows(WHOLE, 8, seed=2), affine(8))]
        gradient = rows(out_sides, 16, around, seed=3)
        gradient.buffer[..., 12:] = 0
        late = [Late(gradient)] if ghosts == "late" else []
        targets = [
            Target(rows(WHOLE, 8, seed=5), torch.zeros(2, 8, dtype=torch.float64), add=True),
            Target(rows(WHOLE, 8, seed=6)),
        ]
        packed = backend.blocks.pack_turned_weight(weight, [8, 3], stride)
        into = backend.blocks.weight_sums(weight, [8, 3], 1536, stride)
        backend.blocks.backward(inputs, gradient, packed, targets, into, ghosts=late)
        results.append([into.finish(), targets[0].rows.buffer, targets[0].sums, targets[1].rows.buffer[..., :3]])
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-5


@compiled
def test_an_image_of_few_channels() -> None:
    weight, results = values(12, 2, 3, 3, 3, seed=1), []
    for backend in BOTH:
        image, out = rows(WHOLE, 2, 1), Rows.of(torch.empty(*WHOLE, 16))
        packed = backend.blocks.pack_weight(weight, [2])
        backend.blocks.forward([Activation(image)], packed, None, out)
        into = backend.blocks.weight_sums(weight, [2], 1536, image=True)
        gradient = rows(WHOLE, 16, seed=3)
        backend.blocks.add_for_image(Activation(image), gradient, into)
        results.append([out.buffer, into.finish()])
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-5


@compiled
@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2)])
def test_convolutions_without_neighbours(factors: Triple) -> None:
    weight, results = values(8, 5, *factors, seed=1), []
    for backend in BOTH:
        points, x = backend.points, Activation(rows(WHOLE, 8), affine(8))
        upstream = rows(tuple(n * f for n, f in zip(WHOLE, factors, strict=True)), 8, seed=2)
        out, target = Rows.of(torch.empty_like(upstream.buffer)), rows(WHOLE, 8, seed=3)
        sums = torch.zeros(2, 8, dtype=torch.float64)
        points.apply(x, points.pack_up(weight, values(5, seed=4), torch.float32), out)
        turned = points.pack_turned_up(weight, torch.float32)
        total = points.gradients(x, upstream, turned, target, sums, add=True)
        results.append([out.buffer, target.buffer, sums, points.up_weight_gradient(total, weight.shape)])
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-5


@compiled
@pytest.mark.parametrize("kind", ["leaky_relu", "silu"])
@pytest.mark.parametrize("through", [False, True])
def test_pooling_of_ties(kind: str, through: bool) -> None:
    """The first of the largest has the gradient; raw values are rounded so that many are alike."""
    window, small, results = (1, 2, 2), (8, 6, 8), []
    signs = values(8, seed=5).sign()
    for backend in BOTH:
        raw = Rows.of((rows(WHOLE, 8).buffer * 2).round() / 2)
        x, gradient, out = Activation(raw, affine(8, kind)), rows(WHOLE, 8, seed=2), Rows.of(torch.empty(*small, 8))
        sums = torch.zeros(2, 8, dtype=torch.float64) if through else None
        backend.pooling.pool(x, window, out, signs)
        backend.pooling.unpool(gradient, x, signs, rows(small, 8, seed=3), sums, window)
        results.append([out.buffer, gradient.buffer, *([] if sums is None else [sums])])
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-5


@compiled
@pytest.mark.parametrize(("kind", "add"), list(product(["leaky_relu", "gelu_tanh", "sigmoid"], [False, True])))
def test_means_sums_and_their_gradients(kind: str, add: bool) -> None:
    window, small, results = (2, 1, 2), (4, 12, 8), []
    for backend in BOTH:
        x, other = Activation(rows(WHOLE, 8), affine(8, kind)), Activation(rows(WHOLE, 8, seed=1), affine(8))
        mean, target, sums = Rows.of(torch.empty(*small, 8)), rows(WHOLE, 8, seed=2), torch.zeros(2, 8).double()
        backend.averaging.average(x, window, mean)
        backend.averaging.gradient(rows(small, 8, seed=3), x, window, target, sums, add=add)
        total, gradient, copy = Rows.of(torch.empty(*WHOLE, 8)), rows(WHOLE, 8, seed=4), rows(WHOLE, 8, seed=5)
        of_x, of_other = (torch.zeros(2, 8, dtype=torch.float64) for _ in range(2))
        backend.addition.add(x, other, total, 0.2)
        backend.addition.divide(
            gradient, total, 0.2, x, other, x_sums=of_x, other_sums=of_other, copy=copy, adding=add
        )  # fmt: skip
        backend.passes.combine(target, x.rows, *values(3, 8, seed=6))
        backend.passes.activate(other, other.rows)
        results.append(
            [mean.buffer, target.buffer, sums, total.buffer, gradient.buffer, copy.buffer, of_x, of_other,
             other.rows.buffer]
        )  # fmt: skip
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-5


@compiled
@pytest.mark.parametrize(("mode", "factors"), list(product(["trilinear", "nearest"], [(2, 2, 2), (2, 1, 2)])))
def test_interpolation(mode: str, factors: Triple) -> None:
    finer = tuple(n * f for n, f in zip(WHOLE, factors, strict=True))
    results = []
    for backend in BOTH:
        x, out = Activation(rows(WHOLE, 8, 1), affine(8)), rows(finer, 8, 2)
        target, sums = rows(WHOLE, 8, seed=3), torch.zeros(2, 8, dtype=torch.float64)
        backend.interpolation.interpolate(x, factors, mode, out, beside=True)
        within = Activation(rows(WHOLE, 8), affine(8))
        backend.interpolation.gradient(rows(finer, 8, 1, seed=2), within, factors, mode, target, sums, add=True)
        results.append([out.own, target.buffer, sums])
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-5


def test_who_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(backend_for(CPU, {}, compiled=True), CompiledBackend)
    assert isinstance(backend_for(CPU, {BACKEND: "torch"}, compiled=True), TorchBackend)
    assert isinstance(backend_for(CPU, {}, compiled=False), TorchBackend)
    assert backend_for(torch.device("cuda"), {}, compiled=True).device.type == "cuda"
    with pytest.raises(ConfigError, match="VOLSEG_BACKEND=numpy: there is no such backend; set it to torch"):
        backend_for(CPU, {BACKEND: "numpy"})
    monkeypatch.setattr("volseg.nn.kernels.winograd.widest_vector", lambda: 0)
    assert isinstance(backend_for(CPU, {}), TorchBackend)


def test_a_sum_of_terms_with_different_gradients_needs_room_for_both() -> None:
    x, gradient = Activation(rows(WHOLE, 8), affine(8)), rows(WHOLE, 8, seed=1)
    with pytest.raises(AssertionError, match="give `copy` rows of its own"):
        BOTH[1].addition.divide(gradient, gradient, 1.0, x, x, x_sums=torch.zeros(2, 8).double())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_convolutions_leave_nothing_on_the_processor(kernel: Triple, stride: Triple, stored: torch.dtype) -> None:
    """On a device without numbers, on which torch refuses what mixes it with the processor."""
    backend, out_sides = TorchBackend(META, SMALL), tuple(n // s for n, s in zip(WHOLE, stride, strict=True))
    half: Triple = tuple(n // 2 for n in out_sides)
    weight = torch.empty(12, 24, *kernel, device=META)
    inputs = [Activation(there(WHOLE, 8, 4, stored), on_meta(8)), Activation(there(WHOLE, 16, 4, stored))]
    sums = BrickSums(torch.empty(*half, 2, 16, device=META), (2, 2, 2))
    pooled = Pooled(there(half, 16, 0, stored), torch.empty(16, device=META))
    packed, bias = backend.blocks.pack_weight(weight, [8, 16], stride, stored), torch.empty(16, device=META)
    backend.blocks.forward(inputs, packed, bias, there(out_sides, 16, 0, stored), sums=sums, pooled=pooled)
    into = backend.blocks.weight_sums(weight, [8, 16], 1536, stride, stored=stored)
    targets = [Target(there(WHOLE, 8, 0, stored), no_sums(8), True), Target(there(WHOLE, 16, 0, stored))]
    turned = backend.blocks.pack_turned_weight(weight, [8, 16], stride, stored)
    backend.blocks.backward(inputs, there(out_sides, 16, 3, stored), turned, targets, into)
    assert into.finish().device == META
    points, x, fine = backend.points, inputs[0], there((16, 24, 32), 8, 0, stored)
    up = torch.empty(8, 5, 2, 2, 2, device=META)
    points.apply(x, points.pack_up(up, None, stored), fine)
    total = points.gradients(x, fine, points.pack_turned_up(up, stored), targets[0].rows, no_sums(8), add=True)
    assert points.up_weight_gradient(total, up.shape).device == META
    assert (packed.weight.dtype, total.dtype) == (torch.float32, torch.float64)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["leaky_relu", "gelu", "gelu_tanh", "silu", "sigmoid"])
def test_passes_leave_nothing_on_the_processor(kind: str, stored: torch.dtype) -> None:
    backend, small, signs = TorchBackend(META, SMALL), (4, 6, 8), torch.empty(8, device=META)
    x, gradient, total = (
        Activation(there(WHOLE, 8, 1, stored), on_meta(8, kind)),
        there(WHOLE, 8, 0, stored),
        no_sums(8),
    )
    coarse, fine = there(small, 8, 0, stored), there((16, 24, 32), 8, 2, stored)
    backend.pooling.pool(x, (2, 2, 2), coarse, signs)
    backend.pooling.unpool(gradient, x, signs, coarse, total)
    backend.averaging.average(x, (2, 2, 2), coarse)
    backend.averaging.gradient(coarse, x, (2, 2, 2), gradient, total, add=True)
    backend.addition.add(x, x, gradient, 0.1)
    backend.addition.divide(
        gradient, gradient, 1.0, x, x, x_sums=total, other_sums=no_sums(8), copy=there(WHOLE, 8, 0, stored), adding=True
    )
    backend.passes.combine(gradient, x.rows, signs, signs, signs)
    backend.passes.activate(x, x.rows)
    backend.interpolation.interpolate(x, (2, 2, 2), "trilinear", fine, beside=True)
    backend.interpolation.gradient(fine, x, (2, 2, 2), "trilinear", gradient, total, add=True)
    assert total.device == gradient.buffer.device == META
    with pytest.raises(RuntimeError, match=r"device"):  # so it would be noticed
        backend.passes.combine(gradient, x.rows, torch.ones(8), signs, signs)
