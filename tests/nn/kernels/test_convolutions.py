"""Winograd's convolution, the pointwise ones and the passes against torch in float64, in every corner of the tiling."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oracles import relative_error
from volseg.geometry import Triple
from volseg.nn.kernels import parts, passes, pointwise, winograd
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, widest_vector
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer
from volseg.nn.kernels.reproducible import brick_moments
from volseg.nn.kernels.rows import Activation, Affine, Rows
from volseg.partition.tiling import Registers, padded_channels

pytestmark = pytest.mark.skipif(not winograd.available(), reason="no fused multiply-add here")


@pytest.fixture(autouse=True, params=[8, 16])
def widest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every test on vectors of 8 floats, and on those of 16 where the processor has them."""
    if request.param > widest_vector():
        pytest.skip("no vectors of 16 floats here")
    for module in (winograd, pointwise):
        monkeypatch.setattr(module, "widest_vector", lambda: request.param)
    return int(request.param)


def first(rows: Tensor) -> Tensor:
    """[d, h, w, C] as [1, C, d, h, w] in float64."""
    return rows.permute(3, 0, 1, 2).unsqueeze(0).double()


def draw(seed: int) -> tuple[random.Random, list[Activation], Tensor, int]:
    """Inputs of a convolution, activated or not, and its weight: sides from 1, one or two inputs, 8 to 72 channels."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    sides = [r.choice([1, 2, 3, 4, 5, 6, 7, 9, 12, 17]) for _ in range(3)]
    channels = [r.choice([8, 16, 24, 40, 64]) for _ in range(r.choice([1, 2]))]
    outputs = r.choice([8, 16, 24, 32, 72])
    inputs = []
    for count in channels:
        affine = Affine(torch.randn(count), torch.randn(count), r.choice([0.0, 0.01, 1.0]))
        inputs.append(Activation(Rows.of(torch.randn(*sides, count)), affine if r.random() < 0.7 else None))
    weight = torch.randn(outputs, sum(channels), 3, 3, 3) / (27 * sum(channels)) ** 0.5
    return r, inputs, weight, outputs


@pytest.mark.parametrize("threads", [1, 2])
def test_forward_equals_torch_whatever_the_shape(threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        for seed in range(60):
            r, inputs, weight, outputs = draw(seed)
            sides = inputs[0].rows.sides
            bias = torch.randn(outputs) if r.random() < 0.5 else None
            out = Rows.of(torch.full((*sides, outputs), torch.nan))
            origin = tuple(-r.randint(0, 1) for _ in range(3))
            packed = winograd.pack_weight(weight, [x.rows.channels for x in inputs])
            winograd.forward(inputs, packed, bias, out, origin=origin)
            x = torch.cat([first(i.values()) for i in inputs], 1)
            expected = F.conv3d(x, weight.double(), None if bias is None else bias.double(), padding=1)
            assert relative_error(first(out.buffer), expected) < 2e-6, (seed, sides)
    finally:
        torch.set_num_threads(1)


def test_planes_one_range_at_a_time_and_an_image_of_few_channels() -> None:
    for channels in (1, 2, 3, 7):
        image = torch.randn(9, 8, 11, channels)
        weight = torch.randn(16, channels, 3, 3, 3)
        packed = winograd.pack_weight(weight, [channels])
        whole, pieces = (Rows.of(torch.empty(9, 8, 11, 16)) for _ in range(2))
        winograd.forward([Activation(Rows.of(image))], packed, None, whole)
        for planes in ((0, 4), (4, 5), (5, 9)):
            winograd.forward([Activation(Rows.of(image))], packed, None, pieces, planes=planes)
        assert torch.equal(whole.buffer, pieces.buffer)
        assert relative_error(first(whole.buffer), F.conv3d(first(image), weight.double(), padding=1)) < 2e-6


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_equal_torch_whatever_the_shape(threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        for seed in range(40):
            r, inputs, weight, outputs = draw(1000 + seed)
            sides, sizes = inputs[0].rows.sides, [x.rows.channels for x in inputs]
            given = torch.randn(*sides, outputs)
            x = torch.cat([first(i.values()) for i in inputs], 1).requires_grad_()
            w = weight.double().requires_grad_()
            F.conv3d(x, w, padding=1).backward(first(given))
            targets = []
            for i in inputs:
                sums = torch.zeros(2, i.rows.channels, dtype=torch.float64) if i.affine and r.random() < 0.6 else None
                targets.append(winograd.Target(Rows.of(torch.full(i.rows.buffer.shape, torch.nan)), sums))
            turned = winograd.pack_turned_weight(weight, sizes)
            into = winograd.WeightSums(weight, sizes, r.choice([1, 10**6]))
            winograd.backward(inputs, Rows.of(given), turned, targets, into)
            assert relative_error(into.finish().double(), w.grad) < 2e-6, seed
            for i, target, expected in zip(inputs, targets, x.grad.split(sizes, 1), strict=True):
                if target.sums is not None:
                    raw = first(i.rows.buffer)
                    u = raw * shaped(i.affine.scale) + shaped(i.affine.shift)
                    expected = torch.where(u > 0, expected, expected * i.affine.slope)
                    both = torch.stack([expected.sum((0, 2, 3, 4)), (expected * raw).sum((0, 2, 3, 4))])
                    assert relative_error(target.sums, both, floor=1.0) < 1e-4
                assert relative_error(first(target.rows.buffer), expected) < 2e-6, seed
    finally:
        torch.set_num_threads(1)


def shaped(coefficients: Tensor) -> Tensor:
    return coefficients.double().view(1, -1, 1, 1, 1)


def test_the_weight_gradient_of_an_image() -> None:
    for channels in (1, 2, 5):
        image, given = torch.randn(9, 12, 40, channels), torch.randn(9, 12, 40, 16)
        weight = torch.zeros(16, channels, 3, 3, 3, dtype=torch.float64, requires_grad=True)
        F.conv3d(first(image), weight, padding=1).backward(first(given))
        into = winograd.WeightSums(weight.detach(), [channels], 1, image=True)
        winograd.add_for_image(Activation(Rows.of(image)), Rows.of(given), into)
        assert relative_error(into.finish().double(), weight.grad) < 2e-6


def test_many_blocks_add_up_in_float64() -> None:
    """A sum over 10^5 voxels of values far from zero: float32 alone would lose five digits."""
    x, given = torch.rand(16, 96, 96, 8) + 10, torch.rand(16, 96, 96, 8) + 10
    weight = torch.zeros(8, 8, 3, 3, 3)
    turned, into = winograd.pack_turned_weight(weight, [8]), winograd.WeightSums(weight, [8], x.numel() // 8)
    target = winograd.Target(Rows.of(torch.empty_like(x)))
    for planes in ((0, 6), (6, 16)):  # slab by slab
        winograd.backward([Activation(Rows.of(x))], Rows.of(given), turned, [target], into, planes=planes)
    found = into.finish()[:, :, 1, 1, 1]
    exact = given.double().view(-1, 8).t() @ x.double().view(-1, 8)
    assert relative_error(found.double(), exact) < 3e-6


def test_sums_of_bricks_and_the_pooled_tensor_are_those_of_the_output() -> None:
    x, weight = torch.randn(16, 12, 24, 16), torch.randn(24, 16, 3, 3, 3)
    out, signs = Rows.of(torch.empty(16, 12, 24, 24)), torch.ones(24)
    signs[::3] = -1
    sums = winograd.BrickSums(torch.full((2, 6, 3, 2, 24), torch.nan), (8, 2, 8))
    pooled = winograd.Pooled(Rows.of(torch.full((8, 6, 12, 24), torch.nan)), signs)
    packed = winograd.pack_weight(weight, [16])
    winograd.forward([Activation(Rows.of(x))], packed, torch.randn(24), out, sums=sums, pooled=pooled)
    assert torch.equal(sums.sums.view(-1, 2, 24), brick_moments(out.buffer, (8, 2, 8)))
    expected = F.max_pool3d((out.buffer * signs).permute(3, 0, 1, 2), 2).permute(1, 2, 3, 0) * signs
    assert torch.equal(pooled.rows.buffer, expected)


def test_pointwise_convolutions_and_their_gradients() -> None:
    x = Activation(Rows.of(torch.randn(3, 5, 13, 16)), Affine(torch.randn(16), torch.randn(16), 0.01))
    values = first(x.values())
    for outputs in (1, 3, 8, 13, 32):
        weight, bias = torch.randn(outputs, 16, 1, 1, 1), torch.randn(outputs)
        packed = pointwise.pack_point(weight, bias)
        out = Rows.of(torch.empty(3, 5, 13, packed.channels))
        pointwise.apply(x, packed, out)
        expected = F.conv3d(values, weight.double(), bias.double())
        assert relative_error(first(out.buffer)[:, :outputs], expected) < 2e-6
        assert not out.buffer[..., outputs:].any()
        check_gradients(x, weight, pointwise.pack_turned_point(weight, packed.channels), packed.channels)


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2), (2, 1, 1), (2, 2, 1), (1, 1, 2)])
def test_up_convolutions_and_their_gradients(factors: Triple) -> None:
    x = Activation(Rows.of(torch.randn(3, 5, 13, 16)), Affine(torch.randn(16), torch.randn(16), 0.01))
    values = first(x.values())
    for outputs in (1, 8, 13, 32):
        up, bias = torch.randn(16, outputs, *factors), torch.randn(outputs)
        packed = pointwise.pack_up(up, bias)
        sides = [s * n for s, n in zip(factors, (3, 5, 13), strict=True)]
        out = Rows.of(torch.full((*sides, padded_channels(outputs)), torch.nan))
        pointwise.apply(x, packed, out)
        expected = F.conv_transpose3d(values, up.double(), bias.double(), stride=factors)
        assert relative_error(first(out.buffer)[:, :outputs], expected) < 2e-6
        check_gradients(x, up, pointwise.pack_turned_up(up), padded_channels(outputs))


def test_up_convolutions_by_other_factors_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"\(3, 2, 2\): factors are 1 or 2"):
        pointwise.pack_up(torch.randn(8, 8, 3, 2, 2), None)


def check_gradients(x: Activation, weight: Tensor, turned: pointwise.PointWeight, stored: int) -> None:
    up = tuple(weight.shape[2:]) != (1, 1, 1)
    values, w = first(x.values()).requires_grad_(), weight.double().requires_grad_()
    y = F.conv_transpose3d(values, w, stride=turned.spread) if up else F.conv3d(values, w)
    given = torch.zeros(*y.shape[2:], stored)
    given[..., : y.shape[1]] = torch.randn(*y.shape[2:], y.shape[1])
    y.backward(first(given)[:, : y.shape[1]])
    target, sums = Rows.of(torch.empty_like(x.rows.buffer)), torch.zeros(2, 16, dtype=torch.float64)
    total = pointwise.gradients(x, Rows.of(given), turned, target, sums)
    k = y.shape[1]
    if up:
        assert relative_error(pointwise.up_weight_gradient(total, weight.shape).double(), w.grad) < 2e-6
    else:
        assert relative_error(total[0, :k], w.grad[:, :, 0, 0, 0]) < 2e-6
    u = first(x.rows.buffer) * shaped(x.affine.scale) + shaped(x.affine.shift)
    expected = torch.where(u > 0, values.grad, values.grad * x.affine.slope)
    assert relative_error(first(target.buffer), expected) < 2e-6
    assert relative_error(sums[0], expected.sum((0, 2, 3, 4)), floor=1.0) < 1e-4
    plain = Rows.of(torch.empty_like(x.rows.buffer))
    pointwise.gradients(x, Rows.of(given), turned, plain, None)
    assert relative_error(first(plain.buffer), values.grad) < 2e-6
    pointwise.gradients(x, Rows.of(given), turned, plain, None, add=True)
    assert relative_error(first(plain.buffer), 2 * values.grad) < 2e-6


def test_passes_do_in_place_what_autograd_does() -> None:
    raw = torch.randn(4, 6, 10, 16)
    x = Activation(Rows.of(raw), Affine(torch.randn(16), torch.randn(16), 0.01))
    out = Rows.of(torch.empty_like(raw))
    passes.activate(x, out)
    assert torch.equal(out.buffer, x.values())

    r = raw.double().requires_grad_()
    y = F.leaky_relu(r * x.affine.scale + x.affine.shift, 0.01)
    given, small = torch.randn_like(raw), torch.randn(2, 3, 5, 16)
    pooled = F.max_pool3d(first(y), 2)
    ((y * given).sum() + (pooled * first(small)).sum()).backward()
    expected = r.grad / x.affine.scale
    signs = torch.where(x.affine.scale < 0, -1.0, 1.0)
    gradient, sums = Rows.of(given.clone()), torch.zeros(2, 16, dtype=torch.float64)
    passes.unpool(gradient, x, signs, Rows.of(small), sums)
    assert relative_error(gradient.buffer.double(), expected) < 1e-6
    both = torch.stack([expected.sum((0, 1, 2)), (expected * raw).sum((0, 1, 2))])
    assert relative_error(sums, both) < 1e-5

    gradient = Rows.of(given.clone())
    a, b, c = torch.randn(3, 16)
    before = gradient.buffer.double()
    passes.combine(gradient, x.rows, a, b, c)
    assert relative_error(gradient.buffer.double(), a * before + b * raw.double() + c) < 1e-6


def test_of_equal_values_the_first_has_the_share_as_in_torch() -> None:
    raw = torch.ones(2, 2, 2, 8)
    x = Activation(Rows.of(raw), Affine(torch.ones(8), torch.zeros(8), 1.0))
    gradient, sums = Rows.of(torch.zeros_like(raw)), torch.zeros(2, 8, dtype=torch.float64)
    passes.unpool(gradient, x, torch.ones(8), Rows.of(torch.full((1, 1, 1, 8), 3.0)), sums)
    assert gradient.buffer[0, 0, 0].tolist() == [3.0] * 8
    assert gradient.buffer.sum() == 24


@pytest.mark.parametrize("window", [(2, 2, 2), (1, 2, 2), (2, 1, 1), (1, 1, 2)])
def test_pooling_by_any_window_and_its_gradient(window: Triple) -> None:
    sides = [3 * n for n in window]
    raw, scale = torch.randn(*sides, 16), torch.randn(16)
    x, signs = Activation(Rows.of(raw), Affine(scale, torch.randn(16), 0.01)), torch.where(scale < 0, -1.0, 1.0)
    out = Rows.of(torch.empty(3, 3, 3, 16))
    passes.pool(x, window, out, signs)
    expected = F.max_pool3d((raw * signs).permute(3, 0, 1, 2), window).permute(1, 2, 3, 0) * signs
    assert torch.equal(out.buffer, expected)
    r = raw.double().requires_grad_()
    small, before = torch.randn(3, 3, 3, 16), torch.randn_like(raw)
    (F.max_pool3d(first(r * signs), window) * signs.view(-1, 1, 1, 1) * first(small)).sum().backward()
    plain = Rows.of(before.clone())
    passes.unpool(plain, x, signs, Rows.of(small), None, window)
    assert relative_error(plain.buffer.double(), before + r.grad) < 1e-6
    through, sums = Rows.of(before.clone()), torch.zeros(2, 16, dtype=torch.float64)
    passes.unpool(through, x, signs, Rows.of(small), sums, window)
    u = raw * x.affine.scale + x.affine.shift
    expected = torch.where(u > 0, before + r.grad, (before + r.grad) * 0.01)
    assert relative_error(through.buffer.double(), expected) < 1e-6
    assert relative_error(sums, torch.stack([expected.sum((0, 1, 2)), (expected * raw).sum((0, 1, 2))])) < 1e-5


@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("other_slope", [None, 1.0, 0.2])
def test_a_sum_and_its_gradient(slope: float, other_slope: float | None) -> None:
    raws = [torch.randn(3, 4, 7, 16) for _ in range(2)]
    x = Activation(Rows.of(raws[0].clone()), Affine(torch.randn(16), torch.randn(16), 1.0))
    affine = None if other_slope is None else Affine(torch.randn(16), torch.randn(16), other_slope)
    other, out = Activation(Rows.of(raws[1]), affine), Rows.of(torch.empty(3, 4, 7, 16))
    u = [(raw.double() * a.scale + a.shift if a else raw.double()).requires_grad_()
         for raw, a in zip(raws, (x.affine, affine), strict=True)]  # fmt: skip
    y = F.leaky_relu(u[0] + (F.leaky_relu(u[1], other_slope) if affine else u[1]), slope)
    for planes in ((0, 1), (1, 3)):
        passes.add(x, other, out, slope, planes)
    assert relative_error(out.buffer.double(), y.detach()) < 1e-6
    upstream, before = torch.randn(3, 4, 7, 16), torch.randn(3, 4, 7, 16)
    y.backward(upstream.double())
    for adding in (False, True):
        gradient, copy = Rows.of(upstream.clone()), Rows.of(before.clone())
        sums = [torch.zeros(2, 16, dtype=torch.float64), torch.zeros(2, 16, dtype=torch.float64) if affine else None]
        passes.divide(
            gradient, out, slope, x, other, x_sums=sums[0], other_sums=sums[1], copy=copy, adding=adding
        )  # fmt: skip
        assert relative_error(gradient.buffer.double(), u[0].grad) < 1e-6
        assert relative_error(copy.buffer.double(), u[1].grad + before * adding) < 1e-6
        for got, term, raw in zip(sums, u, raws, strict=True):
            both = torch.stack([term.grad.sum((0, 1, 2)), (term.grad * raw).sum((0, 1, 2))])
            assert got is None or relative_error(got, both, floor=1.0) < 1e-5
    in_place = out.buffer.clone()
    passes.add(x, other, x.rows, slope)
    assert torch.equal(x.rows.buffer, in_place)


def test_a_zero_sum_has_no_gradient_under_relu_and_terms_that_differ_need_two_places() -> None:
    zeros, upstream = Rows.of(torch.zeros(1, 1, 2, 8)), Rows.of(torch.ones(1, 1, 2, 8))
    passes.divide(upstream, zeros, 0.0, Activation(zeros), Activation(zeros))
    assert not upstream.buffer.any()
    x = Activation(zeros, Affine(torch.ones(8), torch.zeros(8), 0.1))
    with pytest.raises(AssertionError, match="different gradients"):
        passes.divide(upstream, zeros, 0.0, x, x, other_sums=torch.zeros(2, 8, dtype=torch.float64))


@pytest.mark.parametrize("layout", [Registers(4, 2, 6), Registers(8, 1, 12), Registers(16, 1, 24)])
def test_products_have_the_same_bits_whatever_the_registers(layout: Registers) -> None:
    """So a mask does not depend on whether it was computed with AVX2, AVX-512 or NEON."""

    def compute(layout: Registers) -> Tensor:
        module = Module(layout.lanes)
        built = parts.Parts(module, layout)

        @module.entry
        def multiply(
            f: Function, first: Int, last: Int, scratch: Pointer, *, x: Pointer, w: Pointer, out: Pointer, n: Int
        ) -> None:
            built.product(f, x, 40, 0, 1, w, out, n, 40)

        out = torch.empty(96, layout.width)
        columns = weight[:, : layout.width].contiguous()
        Library(module)["multiply"].bind(x=x, w=columns, out=out, n=96)(0, 1)
        return out

    torch.manual_seed(1)
    x, weight = torch.randn(96, 40), torch.randn(40, 16)
    expected = compute(Registers(8, 2, 6))
    found = compute(layout)
    assert torch.equal(found, expected[:, : layout.width])


def test_memory_given_back_is_taken_again_where_it_is_large_enough() -> None:
    workers.release()
    first = workers.take("weight", 100)
    workers.give("weight", first)
    assert workers.take("weight gradient", 10) is not first
    assert workers.take("weight", 60) is first
    small = workers.take("weight", 50)
    assert small is not first, "one is in use"
    workers.give("weight", first)
    workers.give("weight", small)
    assert workers.take("weight", 101).numel() >= 101
    workers.release()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_item_is_worked_on_once(threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        for items in (1, 2, 5, 100):
            seen: list[int] = []
            workers.run(lambda first, last, _, s=seen: s.extend(range(first, last)), items)
            assert sorted(seen) == list(range(items))
            parts: list[list[int]] = [[] for _ in range(threads)]
            workers.run([lambda a, b, _, own=own: own.extend(range(a, b)) for own in parts], items)
            assert [n for own in parts for n in own] == list(range(items)), "each thread has its share, in order"
    finally:
        torch.set_num_threads(1)
