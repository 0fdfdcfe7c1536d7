"""The direct convolution against torch in float64: kernels, strides, shapes, inputs, ghosts, sums and pools."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oracles import relative_error
from volseg.geometry import Triple
from volseg.nn.kernels import block_convolution, direct, pointwise, winograd
from volseg.nn.kernels.direct import weights
from volseg.nn.kernels.jit.compiler import widest_vector
from volseg.nn.kernels.jit.workers import Work
from volseg.nn.kernels.reproducible import brick_moments
from volseg.nn.kernels.rows import Activation, Affine, Rows
from volseg.partition.direct_tiling import axis_taps, backward_reach, forward_reach, plan_cut, window_of
from volseg.partition.tiling import Registers

pytestmark = pytest.mark.skipif(not winograd.available(), reason="no fused multiply-add here")

KERNELS = [(1, 1, 1), (3, 3, 3), (5, 5, 5), (7, 7, 7), (1, 3, 3), (3, 1, 1), (1, 5, 7)]
STRIDES = [(1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 1, 1)]
SHAPES = [(4, 8, 12), (5, 7, 9), (1, 1, 1), (2, 26, 3), (1, 3, 33)]


@pytest.fixture(autouse=True, params=[8, 16])
def widest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every test on vectors of 8 floats, and on those of 16 where the processor has them."""
    if request.param > widest_vector():
        pytest.skip("no vectors of 16 floats here")
    for module in (winograd, weights, pointwise):
        monkeypatch.setattr(module, "widest_vector", lambda: request.param)
    return int(request.param)


def first(rows: Tensor) -> Tensor:
    """[d, h, w, C] as [1, C, d, h, w] in float64."""
    return rows.permute(3, 0, 1, 2).unsqueeze(0).double()


def shaped(coefficients: Tensor) -> Tensor:
    return coefficients.double().view(1, -1, 1, 1, 1)


def activated(sides: Triple, channels: int, slope: float = 0.01) -> Activation:
    affine = Affine(torch.randn(channels), torch.randn(channels), slope)
    return Activation(Rows.of(torch.randn(*sides, channels)), affine)


def output_sides(sides: Triple, stride: Triple) -> list[int]:
    return [-(-n // s) for n, s in zip(sides, stride, strict=True)]


def random_weight(outputs: int, inputs: int, kernel: Triple) -> Tensor:
    weight = torch.randn(outputs, inputs, *kernel)
    return weight / weight[0].numel() ** 0.5


def torch_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple) -> Tensor:
    padding = [k // 2 for k in weight.shape[2:]]
    return F.conv3d(x, weight.double(), None if bias is None else bias.double(), stride, padding)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stride", STRIDES)
def test_values_and_gradients_equal_torch(kernel: Triple, stride: Triple) -> None:
    """Outputs, gradients of one input and of two, before and through their activation, and of the weight."""
    torch.manual_seed(1)
    for number, (sides, channels) in enumerate(product(SHAPES, ([16], [8, 16]))):
        outputs = (16, 32, 24)[number % 3]
        inputs = [activated(sides, count) for count in channels]
        weight, bias = random_weight(outputs, sum(channels), kernel), torch.randn(outputs)
        out = Rows.of(torch.full((*output_sides(sides, stride), outputs), torch.nan))
        packed = direct.pack_weight(weight, channels, stride)
        direct.forward(inputs, packed, bias if number % 2 else None, out)
        packed.release()
        x = torch.cat([first(i.values()) for i in inputs], 1).requires_grad_()
        w = weight.double().requires_grad_()
        y = torch_convolution(x, w, bias if number % 2 else None, stride)
        assert relative_error(first(out.buffer), y.detach()) < 4e-6, (sides, channels)
        upstream = torch.randn(out.buffer.shape)
        y.backward(first(upstream))
        check_gradients(inputs, weight, stride, upstream, x.grad, w.grad)


def check_gradients(
    inputs: list[Activation], weight: Tensor, stride: Triple, upstream: Tensor, x_grad: Tensor, w_grad: Tensor
) -> None:
    """The first input's gradient goes through its activation and is added to what is there; a second one's is plain."""
    channels = [x.rows.channels for x in inputs]
    before = torch.randn(inputs[0].rows.buffer.shape)
    sums = torch.zeros(2, channels[0], dtype=torch.float64)
    targets = [direct.Target(Rows.of(before.clone()), sums, add=True)]
    targets += [direct.Target(Rows.of(torch.full(x.rows.buffer.shape, torch.nan))) for x in inputs[1:]]
    turned = direct.pack_turned_weight(weight, channels, stride)
    into = direct.WeightSums(weight, channels, 10**7, stride)
    direct.backward(inputs, Rows.of(upstream), turned, targets, into)
    turned.release()
    assert relative_error(into.finish().double(), w_grad) < 4e-6
    expected = list(x_grad.split(channels, 1))
    raw, affine = first(inputs[0].rows.buffer), inputs[0].affine
    before_activation = raw * shaped(affine.scale) + shaped(affine.shift)
    expected[0] = torch.where(before_activation > 0, expected[0], expected[0] * affine.slope)
    both = torch.stack([expected[0].sum((0, 2, 3, 4)), (expected[0] * raw).sum((0, 2, 3, 4))])
    assert relative_error(sums, both, floor=1.0) < 1e-4
    expected[0] = expected[0] + first(before)
    for target, value in zip(targets, expected, strict=True):
        assert relative_error(first(target.rows.buffer), value, floor=1.0) < 4e-6


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), (2, 2, 2)), ((7, 7, 7), (1, 2, 2)), ((1, 5, 5), (1, 1, 1))])
def test_an_image_of_few_channels_and_its_weight_gradient(channels: int, kernel: Triple, stride: Triple) -> None:
    image, weight = torch.randn(6, 13, 20, channels), random_weight(16, channels, kernel)
    out = Rows.of(torch.full((*output_sides((6, 13, 20), stride), 16), torch.nan))
    direct.forward([Activation(Rows.of(image))], direct.pack_weight(weight, [channels], stride), None, out)
    w = weight.double().requires_grad_()
    y = torch_convolution(first(image), w, None, stride)
    assert relative_error(first(out.buffer), y.detach()) < 4e-6
    upstream = torch.randn(out.buffer.shape)
    y.backward(first(upstream))
    into = direct.WeightSums(weight, [channels], 1, stride, image=True)
    direct.add_for_image(Activation(Rows.of(image)), Rows.of(upstream), into)
    assert relative_error(into.finish().double(), w.grad) < 2e-6


def with_ghosts(whole: Tensor, origin: Triple, sides: Triple, reach: Triple) -> Rows:
    """A block of a volume with ghosts of `reach` voxels wherever the volume goes on."""
    low = tuple(min(r, o) for r, o in zip(reach, origin, strict=True))
    cuts = [
        slice(o - a, min(o + n + r, size))
        for o, a, n, r, size in zip(origin, low, sides, reach, whole.shape[:3], strict=True)
    ]
    return Rows(whole[tuple(cuts)].contiguous(), (low[0], low[1], low[2]), sides)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_block_with_ghosts_has_the_bits_of_the_whole(kernel: Triple, stride: Triple, threads: int) -> None:
    """Forward and the inputs' gradients, in blocks that begin and end anywhere, some planes at a time."""
    torch.manual_seed(2)
    torch.set_num_threads(threads)
    try:
        outputs: Triple = (6, 9, 11)
        sides: Triple = tuple(n * s for n, s in zip(outputs, stride, strict=True))
        x, weight = activated(sides, 16), random_weight(16, 16, kernel)
        upstream = torch.randn(*outputs, 16)
        whole, target = Rows.of(torch.empty(*outputs, 16)), direct.Target(Rows.of(torch.empty(*sides, 16)))
        packed, turned = direct.pack_weight(weight, [16], stride), direct.pack_turned_weight(weight, [16], stride)
        direct.forward([x], packed, None, whole)
        into = direct.WeightSums(weight, [16], 1, stride)
        direct.backward([x], Rows.of(upstream), turned, [target], into)
        gradient, total = into.finish(), torch.zeros_like(weight)
        reach = tuple(k // 2 for k in kernel)
        parts = [[(0, 2), (2, 6)], [(0, 5), (5, 9)], [(0, 11)], [(0, 1), (1, 8), (8, 11)]]
        for ranges in product(parts[0], parts[1], parts[3]):
            origin, size = zip(*((a, b - a) for a, b in ranges), strict=True)
            first_input = tuple(o * s for o, s in zip(origin, stride, strict=True))
            length = tuple(n * s for n, s in zip(size, stride, strict=True))
            block = Activation(with_ghosts(x.rows.buffer, first_input, length, reach), x.affine)
            out = Rows.of(torch.empty(*size, 16))
            for planes in ((0, 1), (1, size[0])):
                direct.forward([block], packed, None, out, planes=planes)
            here = tuple(slice(a, b) for a, b in ranges)
            assert torch.equal(out.buffer, whole.buffer[here])
            own = Activation(Rows.of(block.rows.own.contiguous()), x.affine)
            part = direct.Target(Rows.of(torch.empty(*length, 16)))
            into = direct.WeightSums(weight, [16], 1, stride)
            gradient_rows = with_ghosts(upstream, origin, size, reach)
            for planes in ((0, 1), (1, size[0])):
                direct.backward([own], gradient_rows, turned, [part], into, planes=planes)
            total += into.finish()
            there = tuple(slice(o, o + n) for o, n in zip(first_input, length, strict=True))
            assert torch.equal(part.rows.buffer, target.rows.buffer[there])
        assert relative_error(total.double(), gradient.double()) < 1e-5
    finally:
        torch.set_num_threads(1)


class Travelling:
    """Ghosts that arrive when they are waited for: until then they are not numbers."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._arrived = rows, rows.buffer.clone()
        own = rows.own.clone()
        rows.buffer.fill_(torch.nan)
        rows.own.copy_(own)
        self.done, self.steps = False, 0

    def advance(self) -> None:
        self.steps += 1

    def wait(self) -> None:
        self._rows.buffer.copy_(self._arrived)
        self.done = True


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), (2, 2, 2)), ((5, 5, 5), (1, 1, 1)), ((1, 3, 3), (1, 2, 2))])
def test_blocks_that_need_no_ghosts_are_computed_while_they_travel(kernel: Triple, stride: Triple) -> None:
    volume, weight = torch.randn(32, 80, 96, 8), random_weight(8, 8, kernel)
    packed = direct.pack_weight(weight, [8], stride)
    whole = Rows.of(torch.empty(*output_sides((32, 80, 96), stride), 8))
    direct.forward([Activation(Rows.of(volume))], packed, None, whole)
    rows = with_ghosts(volume, (8, 16, 32), (16, 48, 64), tuple(k // 2 for k in kernel))
    ghosts = Travelling(rows)
    out = Rows.of(torch.empty(*output_sides(rows.sides, stride), 8))
    direct.forward([Activation(rows)], packed, None, out, ghosts=[ghosts])
    assert ghosts.done
    here = tuple(slice(o // s, (o + n) // s) for o, n, s in zip((8, 16, 32), rows.sides, stride, strict=True))
    assert torch.equal(out.buffer, whole.buffer[here])


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), (2, 2, 2)), ((1, 1, 1), (1, 1, 1)), ((1, 3, 3), (1, 2, 2))])
def test_sums_of_bricks_and_the_pooled_tensor_are_those_of_the_output(kernel: Triple, stride: Triple) -> None:
    outputs: Triple = (16, 12, 24)
    x = activated(tuple(n * s for n, s in zip(outputs, stride, strict=True)), 16)
    out, signs = Rows.of(torch.empty(*outputs, 24)), torch.ones(24)
    signs[::3] = -1
    sums = direct.BrickSums(torch.full((2, 6, 3, 2, 24), torch.nan), (8, 2, 8))
    pooled = direct.Pooled(Rows.of(torch.full((16, 6, 12, 24), torch.nan)), signs, (1, 2, 2))
    packed = direct.pack_weight(random_weight(24, 16, kernel), [16], stride)
    direct.forward([x], packed, torch.randn(24), out, sums=sums, pooled=pooled)
    assert torch.equal(sums.sums.view(-1, 2, 24), brick_moments(out.buffer, (8, 2, 8)))
    expected = F.max_pool3d((out.buffer * signs).permute(3, 0, 1, 2), (1, 2, 2)).permute(1, 2, 3, 0) * signs
    assert torch.equal(pooled.rows.buffer, expected)


def test_a_kernel_of_one_voxel_has_the_bits_of_pointwise() -> None:
    """So that a network of torch modules, whose layers take `pointwise`, has those of the fused one."""
    x, weight, bias = activated((3, 5, 13), 24), torch.randn(16, 24, 1, 1, 1), torch.randn(16)
    out, expected = (Rows.of(torch.empty(3, 5, 13, 16)) for _ in range(2))
    direct.forward([x], direct.pack_weight(weight, [24]), bias, out)
    pointwise.apply(x, pointwise.pack_point(weight, bias), expected)
    assert torch.equal(out.buffer, expected.buffer)


def test_weight_gradients_of_many_voxels_add_up_in_float64() -> None:
    """A sum over 10^5 voxels of values far from zero: float32 alone would lose digits."""
    x, upstream = torch.rand(16, 96, 96, 8) + 10, torch.rand(16, 48, 48, 8) + 10
    weight = torch.zeros(8, 8, 1, 3, 3)
    turned = direct.pack_turned_weight(weight, [8], (1, 2, 2))
    into = direct.WeightSums(weight, [8], upstream.numel() // 8, (1, 2, 2))
    direct.backward([Activation(Rows.of(x))], Rows.of(upstream), turned, [direct.Target(Rows.of(torch.empty_like(x)))],
                    into)  # fmt: skip
    centre = into.finish()[:, :, 0, 1, 1]
    exact = upstream.double().view(-1, 8).t() @ x[:, ::2, ::2].double().reshape(-1, 8)
    assert relative_error(centre.double(), exact) < 3e-6


def test_a_weight_beyond_the_second_cache_meets_all_planes_at_once() -> None:
    """49 taps of 7 x 32 columns for 32 channels: 1.4 MB, which all planes of a block meet piece by piece."""
    torch.manual_seed(0)
    x, weight = torch.randn(5, 6, 13, 32), torch.randn(32, 32, 7, 7, 7)
    packed, out, part = direct.pack_weight(weight, [32]), *(Rows.of(torch.zeros(5, 6, 13, 32)) for _ in range(2))
    bias = torch.randn(32)
    direct.forward([Activation(Rows.of(x))], packed, bias, out)
    expected = F.conv3d(first(x), weight.double(), bias.double(), padding=3)
    assert relative_error(first(out.buffer), expected) < 1e-5  # of 10,976 terms
    for plane in range(5):
        direct.forward([Activation(Rows.of(x))], packed, bias, part, planes=(plane, plane + 1))
    assert torch.equal(out.buffer, part.buffer)


@pytest.mark.parametrize(
    "layout", [Registers(16, 1, 24), Registers(16, 2, 12), Registers(8, 1, 12), Registers(8, 2, 6)]
)
def test_the_tiles_of_a_line_leave_none_of_its_voxels_over(layout: Registers) -> None:
    for count in range(0, 100, layout.columns):
        left = count
        for rows in layout.tiles:
            left %= rows
        assert left == 0
    assert all(n * layout.vectors * layout.lanes <= layout.rows * layout.width for n in layout.tiles)


def test_every_tap_reaches_an_input_once() -> None:
    for kernel, stride in product((1, 3, 5, 7), (1, 2)):
        taps = [tap for phase in range(stride) for _, tap in axis_taps(kernel, stride, phase)]
        assert sorted(taps) == list(range(kernel))


def test_a_cut_covers_the_results_in_multiples_and_its_window_holds_what_is_read() -> None:
    for kernel, stride in product(KERNELS, STRIDES):
        for reach in (forward_reach(kernel, stride), backward_reach(kernel, stride)):
            cut = plan_cut((2, 21), 30, 50, reach, 64, 0, 64 * 64, 12, (8, 2, 8), 2)
            assert (cut.planes % 8, cut.lines % 2, cut.columns % 8) == (0, 0, 0)
            covered = [n * c for n, c in zip((cut.planes, cut.lines, cut.columns), cut.counts, strict=True)]
            assert all(n >= side for n, side in zip(covered, (19, 30, 50), strict=True))
            window = window_of(cut, reach, 64, 12)
            assert window.columns >= reach.extent(2, cut.columns)
            assert window.lines * reach.step[1] >= reach.extent(1, cut.lines)


def test_the_front_takes_winograd_where_it_applies_and_refuses_by_name() -> None:
    plain, strided = torch.randn(8, 8, 5, 3, 3), torch.randn(8, 8, 3, 3, 3)
    assert isinstance(block_convolution.pack_weight(plain, [8]), winograd.Weight)
    assert isinstance(block_convolution.pack_weight(strided, [8], (2, 2, 2)), direct.Weight)
    assert isinstance(block_convolution.weight_sums(strided, [8], 1, (1, 2, 2)), direct.WeightSums)
    assert block_convolution.refusal((3, 5, 7), (1, 2, 2)) is None
    with pytest.raises(AssertionError, match=r"kernel \(2, 2, 2\): sides of 1, 3, 5 or 7"):
        block_convolution.pack_weight(torch.randn(8, 8, 2, 2, 2), [8])
    with pytest.raises(AssertionError, match=r"stride \(3, 1, 1\): 1 or 2"):
        block_convolution.pack_weight(strided, [8], (3, 1, 1))
    with pytest.raises(AssertionError, match="another kernel"):
        block_convolution.backward(
            [], Rows.of(torch.empty(1, 1, 1, 8)), block_convolution.pack_turned_weight(plain, [8]), [],
            block_convolution.weight_sums(strided, [8], 1, (2, 2, 2)),
        )  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stride", STRIDES)
def test_a_kernel_stays_within_the_memory_that_it_asks_for(
    kernel: Triple, stride: Triple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what is planned is enough: values behind it are as they were."""
    asked: list[int] = []

    def run_guarded(work: Work | list[Work], items: int, floats: int = 0) -> None:
        memory = torch.full((floats + 8192,), 7.0)
        (work if callable(work) else work[0])(0, items, memory.data_ptr())
        assert (memory[floats:] == 7).all(), "written behind the end"
        asked.append(floats)

    monkeypatch.setattr(direct.workers, "run", run_guarded)
    for sides, channels, outputs in (((9, 7, 30), [16, 8], 32), ((3, 30, 9), [64], 16), ((1, 1, 1), [8], 8),
                                     ((6, 11, 13), [3], 16)):  # fmt: skip
        inputs = [Activation(Rows.of(torch.randn(*sides, count))) for count in channels]
        weight = torch.randn(outputs, sum(channels), *kernel)
        out = Rows.of(torch.empty(*output_sides(sides, stride), outputs))
        direct.forward(inputs, direct.pack_weight(weight, channels, stride), None, out)
        if channels == [3]:
            direct.add_for_image(inputs[0], out, direct.WeightSums(weight, channels, 1, stride, image=True))
            continue
        targets = [direct.Target(Rows.of(torch.empty_like(x.rows.buffer))) for x in inputs]
        into = direct.WeightSums(weight, channels, 1, stride)
        direct.backward(inputs, out, direct.pack_turned_weight(weight, channels, stride), targets, into)
    assert len(asked) == 8


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_of_few_channels_is_summed_directly_whatever_its_kernel(channels: int) -> None:
    x, weight = torch.randn(5, 6, 7, channels), torch.randn(16, channels, 3, 3, 3) / 9
    packed, out = block_convolution.pack_weight(weight, [channels]), Rows.of(torch.empty(5, 6, 7, 16))
    sums = block_convolution.weight_sums(weight, [channels], 1, image=True)
    assert isinstance(packed, direct.Weight) == isinstance(sums, direct.WeightSums) == (channels <= 3)
    block_convolution.forward([Activation(Rows.of(x))], packed, None, out, origin=(-1, -1, -1))
    wanted, gradient = weight.double().requires_grad_(), torch.randn(5, 6, 7, 16)
    expected = F.conv3d(first(x), wanted, padding=1)
    assert relative_error(first(out.buffer), expected.detach()) < 2e-6
    expected.backward(first(gradient))
    block_convolution.add_for_image(Activation(Rows.of(x)), Rows.of(gradient), sums)
    assert relative_error(sums.finish().double(), wanted.grad) < 2e-6
