"""Activations in kernels: how near the true values they are, and that all kernels read and differentiate them alike."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles import relative_error
from volseg.geometry import Triple
from volseg.networks.description import ActivationKind
from volseg.nn.elementwise import activate
from volseg.nn.kernels import block_convolution as kernels
from volseg.nn.kernels import interpolation, passes, pointwise, winograd
from volseg.nn.kernels.activations import activated, exponential, gradient_before, logarithm
from volseg.nn.kernels.forms import Form, forms_of
from volseg.nn.kernels.jit.compiler import Library
from volseg.nn.kernels.jit.language import Element, Function, Int, Module, Pointer
from volseg.nn.kernels.rows import Activation, Affine, Rows

pytestmark = pytest.mark.skipif(not winograd.available(), reason="no fused multiply-add here")

KINDS: tuple[ActivationKind, ...] = get_args(ActivationKind)
CURVED = [kind for kind in KINDS if kind != "leaky_relu"]


def library(kind: ActivationKind, lanes: int = 8) -> Library:
    module = Module(lanes)

    @module.entry
    def power(f: Function, first: Int, last: Int, scratch: Pointer, *, x: Pointer, out: Pointer) -> None:
        with f.loop(last, start=first, step=lanes) as (i, _):
            (out + i).store(exponential(f, (x + i).load()))

    @module.entry
    def log(f: Function, first: Int, last: Int, scratch: Pointer, *, x: Pointer, out: Pointer) -> None:
        with f.loop(last, start=first, step=lanes) as (i, _):
            (out + i).store(logarithm(f, (x + i).load()))

    @module.entry
    def both(
        f: Function, first: Int, last: Int, scratch: Pointer, *, x: Pointer, value: Pointer, slope: Pointer
    ) -> None:
        unit = f.constant(1)
        with f.loop(last, start=first, step=lanes) as (i, _):
            (value + i).store(activated(f, kind, (x + i).load(), f.constant(0.25), unit))
            (slope + i).store(gradient_before(f, kind, unit, (x + i).load(), f.constant(0.25), unit))

    return Library(module)


def computed(kind: ActivationKind, x: Tensor, lanes: int = 8) -> tuple[Tensor, Tensor]:
    """An activation of [n], n a multiple of 16, and its derivative."""
    value, slope = torch.empty_like(x), torch.empty_like(x)
    library(kind, lanes)["both"].bind(x=x, value=value, slope=slope)(0, x.numel())
    return value, slope


def test_the_exponential_is_within_one_unit_of_the_last_place() -> None:
    x = torch.linspace(-80, 80, 1 << 18)
    out = torch.empty_like(x)
    library("silu")["power"].bind(x=x, out=out)(0, x.numel())
    true = np.exp(x.double().numpy())
    assert (np.abs(out.double().numpy() - true) / np.spacing(true.astype(np.float32))).max() <= 1


def test_the_exponential_of_what_lies_beyond_is_that_of_the_ends_and_not_a_number_stays_so() -> None:
    x = torch.tensor([-1e30, -81, -80, 0, 80, 81, 1e30, torch.nan])
    out = torch.empty_like(x)
    library("silu")["power"].bind(x=x, out=out)(0, 8)
    assert torch.equal(out[:7], out[[2, 2, 2, 3, 4, 4, 4]])
    assert out[3] == 1
    assert out[7].isnan()


def test_the_logarithm_is_within_one_unit_of_the_last_place_or_1e_7() -> None:
    x = torch.cat([torch.logspace(-37, 37, 1 << 16), torch.linspace(0.5, 2, 1 << 16), torch.tensor([1, torch.nan] * 4)])
    out = torch.empty_like(x)
    library("silu")["log"].bind(x=x, out=out)(0, x.numel())
    true = np.log(x[:-8].double().numpy())
    error = np.abs(out[:-8].double().numpy() - true)
    assert (error <= np.maximum(np.spacing(np.abs(true).astype(np.float32)), 1e-7)).all()
    assert out[-8] == 0
    assert out[-7].isnan()


@pytest.mark.parametrize("kind", CURVED)
def test_values_and_derivatives_are_those_of_torch_in_float64(kind: ActivationKind) -> None:
    x = torch.cat([torch.linspace(-12, 12, 1 << 17), torch.linspace(-300, 300, 1 << 12), torch.tensor([-0.0] * 16)])
    value, slope = computed(kind, x)
    exact = x.double().requires_grad_()
    y = activate(exact, kind, 0.0)
    y.sum().backward()
    for got, true in ((value, y.detach()), (slope, exact.grad)):
        assert ((got - true).abs() / true.abs().clamp(min=1)).max() < 3e-7
    if kind in ("silu", "sigmoid"):  # far below zero, too, what there is of them is right
        small = (x < 0) & (x > -75)
        assert (value[small] / y.detach()[small] - 1).abs().max() < 5e-7


@pytest.mark.parametrize("kind", CURVED)
def test_a_value_has_the_same_bits_in_any_lane_of_vectors_of_any_length(kind: ActivationKind) -> None:
    x = torch.randn(64) * 4
    value, slope = computed(kind, x)
    for lanes, turn in ((4, 0), (16, 0), (8, 3), (16, 21)):
        moved = computed(kind, x.roll(turn).contiguous(), lanes)
        assert torch.equal(moved[0].roll(-turn), value)
        assert torch.equal(moved[1].roll(-turn), slope)


def tensor(kind: ActivationKind, sides: Triple, channels: int = 16, *, dropping: bool = True) -> Activation:
    """Random rows, of whose channels some are dropped, and are read with a gain elsewhere."""
    gain = None
    if kind != "leaky_relu" and dropping:
        gain = torch.full([channels], 1.25)
        gain[::5] = 0
    affine = Affine(torch.randn(channels), torch.randn(channels), 0.25, kind, gain)
    return Activation(Rows.of(torch.randn(*sides, channels)), affine)


def read(x: Activation) -> Activation:
    """What it stands for, as rows that are read as they are."""
    out = Rows.of(torch.empty_like(x.rows.buffer))
    passes.activate(x, out)
    return Activation(out)


def derivative(x: Activation) -> Tensor:
    """Of what each voxel is read as, in the affine function's value, in float64."""
    u = (x.rows.buffer.double() * x.affine.scale + x.affine.shift).requires_grad_()
    y = activate(u, x.affine.kind, x.affine.slope)
    (y if x.affine.gain is None else y * x.affine.gain).sum().backward()
    return u.grad


def check_through(x: Activation, plain: Tensor, through: Tensor, sums: Tensor) -> None:
    """That a gradient was taken through the activation, and its sums."""
    expected = plain.double() * derivative(x)
    assert relative_error(through.double(), expected) < 1e-6
    both = torch.stack([expected.sum((0, 1, 2)), (expected * x.rows.buffer).sum((0, 1, 2))])
    assert relative_error(sums, both, floor=1.0) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_activate_is_what_torch_says(kind: ActivationKind) -> None:
    x = tensor(kind, (2, 3, 9))
    exact = Activation(Rows.of(x.rows.buffer.double()), x.affine)
    assert relative_error(read(x).rows.buffer.double(), exact.values()) < 1e-6


@pytest.mark.parametrize("kind", CURVED)
@pytest.mark.parametrize("mode", ["trilinear", "nearest"])
def test_interpolations_read_through_it(kind: ActivationKind, mode: str) -> None:
    x, factors = tensor(kind, (3, 4, 5)), (2, 1, 2)
    out, expected = (Rows.of(torch.empty(6, 4, 10, 16)) for _ in range(2))
    interpolation.interpolate(x, factors, mode, out)
    interpolation.interpolate(read(x), factors, mode, expected)
    assert torch.equal(out.buffer, expected.buffer)
    given, sums = Rows.of(torch.randn(6, 4, 10, 16)), torch.zeros(2, 16).double()
    through, plain = (Rows.of(torch.empty(3, 4, 5, 16)) for _ in range(2))
    interpolation.gradient(given, x, factors, mode, through, sums)
    interpolation.gradient(given, None, factors, mode, plain, None)
    check_through(x, plain.buffer, through.buffer, sums)


PAIRS = [("silu", "leaky_relu"), ("leaky_relu", "gelu"), ("gelu_tanh", "sigmoid"), ("silu", "silu")]


@pytest.mark.parametrize("kinds", PAIRS)
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 2, 2)), ((1, 3, 5), (1, 1, 1))])
def test_convolutions_read_two_tensors_each_through_its_own(
    kinds: tuple[ActivationKind, ActivationKind], kernel: Triple, stride: Triple
) -> None:
    """The bits are those of tensors that were activated before, at the volume's faces, too."""
    inputs = [tensor(kind, (4, 6, 10), channels) for kind, channels in zip(kinds, (16, 8), strict=True)]
    weight = torch.randn(16, 24, *kernel) / 9
    sides = [-(-n // s) for n, s in zip((4, 6, 10), stride, strict=True)]
    out, expected = (Rows.of(torch.empty(*sides, 16)) for _ in range(2))
    packed = kernels.pack_weight(weight, [16, 8], stride)
    kernels.forward(inputs, packed, None, out)
    kernels.forward([read(x) for x in inputs], packed, None, expected)
    assert torch.equal(out.buffer, expected.buffer)
    given, turned = Rows.of(torch.randn(*sides, 16)), kernels.pack_turned_weight(weight, [16, 8], stride)
    results = []
    for tensors, through in ((inputs, True), ([read(x) for x in inputs], False)):
        targets = [
            kernels.Target(Rows.of(torch.empty_like(x.rows.buffer)), torch.zeros(2, n).double() if through else None)
            for x, n in zip(tensors, (16, 8), strict=True)
        ]
        sums = kernels.weight_sums(weight, [16, 8], 240, stride)
        kernels.backward(tensors, given, turned, targets, sums)
        results.append((targets, sums.finish()))
    assert torch.equal(results[0][1], results[1][1])
    for x, target, plain in zip(inputs, results[0][0], results[1][0], strict=True):
        check_through(x, plain.rows.buffer, target.rows.buffer, target.sums)


@pytest.mark.parametrize("kind", CURVED)
def test_pointwise_convolutions_read_through_it(kind: ActivationKind) -> None:
    x, weight = tensor(kind, (3, 5, 13)), torch.randn(8, 16, 1, 1, 1)
    packed, turned = pointwise.pack_point(weight, torch.randn(8)), pointwise.pack_turned_point(weight, 8)
    out, expected = (Rows.of(torch.empty(3, 5, 13, 8)) for _ in range(2))
    pointwise.apply(x, packed, out)
    pointwise.apply(read(x), packed, expected)
    assert torch.equal(out.buffer, expected.buffer)
    given, sums = Rows.of(torch.randn(3, 5, 13, 8)), torch.zeros(2, 16).double()
    through, plain = (Rows.of(torch.empty(3, 5, 13, 16)) for _ in range(2))
    total = pointwise.gradients(x, given, turned, through, sums)
    assert torch.equal(total, pointwise.gradients(read(x), given, turned, plain, None))
    check_through(x, plain.buffer, through.buffer, sums)


@pytest.mark.parametrize("kinds", PAIRS)
def test_sums_of_two_tensors_each_through_its_own(kinds: tuple[ActivationKind, ActivationKind]) -> None:
    a, b = (tensor(kind, (3, 4, 7)) for kind in kinds)
    out = Rows.of(torch.empty(3, 4, 7, 16))
    passes.add(a, b, out, 1.0)
    assert torch.equal(out.buffer, read(a).rows.buffer + read(b).rows.buffer)
    upstream = torch.randn(3, 4, 7, 16)
    gradient, copy = Rows.of(upstream.clone()), Rows.of(torch.empty(3, 4, 7, 16))
    sums = [torch.zeros(2, 16).double() for _ in range(2)]
    passes.divide(gradient, out, 1.0, a, b, x_sums=sums[0], other_sums=sums[1], copy=copy)
    check_through(a, upstream, gradient.buffer, sums[0])
    check_through(b, upstream, copy.buffer, sums[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [(2, 2, 2), (1, 2, 2), (1, 1, 2)])
def test_the_largest_activated_voxel_is_pooled_and_has_the_gradient(kind: ActivationKind, window: Triple) -> None:
    x = tensor(kind, tuple(3 * n for n in window), dropping=False)
    signs = torch.where(x.affine.scale < 0, -1.0, 1.0)
    pooled = Rows.of(torch.empty(3, 3, 3, 16))
    passes.pool(x, window, pooled, signs)
    values = read(x).rows.buffer.double().requires_grad_()
    largest = torch.nn.functional.max_pool3d(values.permute(3, 0, 1, 2), window).permute(1, 2, 3, 0)
    again = read(Activation(pooled, x.affine)).rows.buffer
    assert torch.equal(again, largest.detach().float())
    small, before = torch.randn(3, 3, 3, 16), torch.randn(x.rows.buffer.shape)
    (largest * small).sum().backward()
    plain, through = Rows.of(before.clone()), Rows.of(before.clone())
    sums = torch.zeros(2, 16).double()
    passes.unpool(plain, x, signs, Rows.of(small), None, window)
    passes.unpool(through, x, signs, Rows.of(small), sums, window)
    assert relative_error(plain.buffer.double(), before + values.grad) < 1e-6
    check_through(x, plain.buffer, through.buffer, sums)


def test_what_is_read_as_it_is_needs_no_code_of_its_own() -> None:
    bare, curved, straight = (
        Activation(tensor("silu", (1, 1, 8)).rows),
        tensor("silu", (1, 1, 8)),
        tensor(KINDS[0], (1, 1, 8)),
    )
    usual, silu = Form(Element.FLOAT), Form(Element.FLOAT, "silu")
    assert forms_of([bare, curved], 2) == forms_of([curved], 2) == (silu, silu)
    assert forms_of([bare], 2) == forms_of([straight], 2) == (usual, usual)
    assert forms_of([straight, curved], 3) == (usual, silu, usual)
    half = Activation(Rows.of(torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16)))
    assert [form.element for form in forms_of([bare, half], 3)] == [Element.FLOAT, Element.BFLOAT16, Element.FLOAT]
