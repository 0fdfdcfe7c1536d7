"""Winograd's convolutions of 1, 3, 5 and 7 taps on D against torch in float64; ghosts, pools and added gradients."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oracles import relative_error
from volseg.geometry import Triple
from volseg.nn.kernels import winograd
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import widest_vector
from volseg.nn.kernels.jit.workers import Work
from volseg.nn.kernels.reproducible import brick_moments
from volseg.nn.kernels.rows import Activation, Affine, Rows
from volseg.partition.tiling import forward_room, plan_blocks

pytestmark = pytest.mark.skipif(not winograd.available(), reason="no fused multiply-add here")

ROUNDING = 2e-6


@pytest.fixture(autouse=True, params=[8, 16])
def widest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every test on vectors of 8 floats, and on those of 16 where the processor has them."""
    if request.param > widest_vector():
        pytest.skip("no vectors of 16 floats here")
    monkeypatch.setattr(winograd, "widest_vector", lambda: request.param)
    return int(request.param)


def first(rows: Tensor) -> Tensor:
    """[d, h, w, C] as [1, C, d, h, w] in float64."""
    return rows.permute(3, 0, 1, 2).unsqueeze(0).double()


def rows_like(tensor: Tensor) -> Tensor:
    """[1, C, d, h, w] as [d, h, w, C]."""
    return tensor[0].permute(1, 2, 3, 0)


@dataclass
class Case:
    """A convolution of one or two inputs, activated or not, drawn at random."""

    inputs: list[Activation]
    weight: Tensor
    r: random.Random
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = [x.rows.channels for x in self.inputs]

    def values(self) -> Tensor:
        """The inputs side by side, [1, C, d, h, w] in float64."""
        return torch.cat([first(x.values()) for x in self.inputs], 1)


def draw(seed: int, taps: int) -> Case:
    r = random.Random(seed)
    torch.manual_seed(seed)
    sides = [r.choice([1, 2, 3, 5, 6, 9, 14]) for _ in range(3)]
    channels = [r.choice([8, 16, 32]) for _ in range(r.choice([1, 2]))]
    inputs = []
    for count in channels:
        affine = Affine(torch.randn(count), torch.randn(count), r.choice([0.0, 0.01, 1.0]))
        inputs.append(Activation(Rows.of(torch.randn(*sides, count)), affine if r.random() < 0.7 else None))
    weight = torch.randn(r.choice([8, 16, 32]), sum(channels), taps, 3, 3)
    return Case(inputs, weight / (9 * taps * sum(channels)) ** 0.5, r)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None, step: int = 1) -> Tensor:
    bias = None if bias is None else bias.double()
    return F.conv3d(x, weight.double(), bias, stride=(step, 1, 1), padding=(weight.shape[2] // 2, 1, 1))


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("taps", [1, 3, 5, 7])
def test_forward_equals_torch(taps: int, step: int) -> None:
    for seed in range(12):
        case = draw(seed, taps)
        d, h, w = case.inputs[0].rows.sides
        outputs = case.weight.shape[0]
        bias = torch.randn(outputs) if case.r.random() < 0.5 else None
        out = Rows.of(torch.full((-(-d // step), h, w, outputs), torch.nan))
        packed = winograd.pack_weight(case.weight, case.sizes, (step, 1, 1))
        winograd.forward(case.inputs, packed, bias, out, origin=tuple(-case.r.randint(0, 1) for _ in range(3)))
        assert relative_error(first(out.buffer), convolved(case.values(), case.weight, bias, step)) < ROUNDING, seed


@pytest.mark.parametrize("taps", [1, 5, 7])
def test_gradients_equal_torch(taps: int) -> None:
    for seed in range(10):
        case = draw(100 + seed, taps)
        x, w = case.values().requires_grad_(), case.weight.double().requires_grad_()
        y = convolved(x, w)
        gradient = torch.randn(rows_like(y).shape)
        y.backward(first(gradient))
        targets = [
            winograd.Target(
                Rows.of(torch.full(i.rows.buffer.shape, torch.nan)),
                torch.zeros(2, i.rows.channels, dtype=torch.float64) if i.affine and case.r.random() < 0.6 else None,
            )
            for i in case.inputs
        ]
        into = winograd.WeightSums(case.weight, case.sizes, case.r.choice([1, 10**6]))
        turned = winograd.pack_turned_weight(case.weight, case.sizes)
        winograd.backward(case.inputs, Rows.of(gradient), turned, targets, into)
        assert relative_error(into.finish().double(), w.grad) < ROUNDING, seed
        for i, target, expected in zip(case.inputs, targets, x.grad.split(case.sizes, 1), strict=True):
            if target.sums is not None:
                expected = before_activation(i, expected, target.sums)
            assert relative_error(first(target.rows.buffer), expected) < ROUNDING, seed


def before_activation(x: Activation, gradient: Tensor, sums: Tensor) -> Tensor:
    """The gradient of the raw tensor times its scale's inverse, in float64, whose `sums` are looked at."""
    raw = first(x.rows.buffer)
    shape = (1, -1, 1, 1, 1)
    u = raw * x.affine.scale.double().view(shape) + x.affine.shift.double().view(shape)
    gradient = torch.where(u > 0, gradient, gradient * x.affine.slope)
    both = torch.stack([gradient.sum((0, 2, 3, 4)), (gradient * raw).sum((0, 2, 3, 4))])
    assert relative_error(sums, both, floor=1.0) < 1e-4
    return gradient


@pytest.mark.parametrize("taps", [1, 3])
def test_gradients_are_added_to_what_stands_there(taps: int) -> None:
    """Bits are those of the overwritten gradient plus what stood there, and the sums are of the gradient alone."""
    for seed in range(6):
        case = draw(200 + seed, taps)
        gradient = Rows.of(torch.randn(*case.inputs[0].rows.sides, case.weight.shape[0]))
        turned = winograd.pack_turned_weight(case.weight, case.sizes)
        results = {}
        before = [torch.randn_like(x.rows.buffer) for x in case.inputs]
        for add in (False, True):
            targets = [
                winograd.Target(
                    Rows.of(there.clone()),
                    None if x.affine is None else torch.zeros(2, x.rows.channels, dtype=torch.float64), add,
                )
                for x, there in zip(case.inputs, before, strict=True)
            ]  # fmt: skip
            into = winograd.WeightSums(case.weight, case.sizes, 1)
            winograd.backward(case.inputs, gradient, turned, targets, into)
            results[add] = targets
        for plain, added, there in zip(results[False], results[True], before, strict=True):
            assert torch.equal(added.rows.buffer, there + plain.rows.buffer), seed
            assert (plain.sums is None and added.sums is None) or torch.equal(plain.sums, added.sums)


@pytest.mark.parametrize(("taps", "step"), [(1, 1), (5, 1), (1, 2), (3, 2), (5, 2), (7, 2)])
def test_the_weight_gradient_from_windows_of_the_input(taps: int, step: int) -> None:
    for channels in (1, 5, 16, 24):
        x = Activation(Rows.of(torch.randn(9, 6, 17, channels)))
        if channels >= 8:
            x = Activation(x.rows, Affine(torch.randn(channels), torch.randn(channels), 0.01))
        weight = torch.zeros(16, channels, taps, 3, 3, dtype=torch.float64, requires_grad=True)
        y = convolved(first(x.values()), weight, step=step)
        gradient = torch.randn(rows_like(y).shape)
        y.backward(first(gradient))
        into = winograd.WeightSums(weight.detach(), [channels], 1, image=True, stride=(step, 1, 1))
        winograd.add_for_image(x, Rows.of(gradient), into)
        assert relative_error(into.finish().double(), weight.grad) < ROUNDING, channels


class Late:
    """An exchange of ghosts that is under way: the ghosts are written only when it is waited for."""

    def __init__(self, rows: Rows, whole: Tensor) -> None:
        self._rows, self._whole, self.done = rows, whole, False
        rows.buffer.fill_(torch.nan)
        d, h, w = (slice(low, low + n) for low, n in zip(rows.low, rows.sides, strict=True))
        rows.buffer[d, h, w] = whole[d, h, w]

    def advance(self) -> None:
        """Nothing arrives before the end."""

    def wait(self) -> None:
        self._rows.buffer.copy_(self._whole)
        self.done = True


def part_of(whole: Tensor, start: Triple, sides: Triple, reach: Triple) -> tuple[Rows, Late]:
    """A block of a volume [D, H, W, C] with ghosts as far as `reach` and the volume go, and their exchange."""
    low = [min(s, r) for s, r in zip(start, reach, strict=True)]
    ends = [min(s + n + r, n_all) for s, n, r, n_all in zip(start, sides, reach, whole.shape[:3], strict=True)]
    there = whole[tuple(slice(s - a, e) for s, a, e in zip(start, low, ends, strict=True))].contiguous()
    rows = Rows(torch.empty_like(there), (low[0], low[1], low[2]), sides)
    return rows, Late(rows, there)


@pytest.mark.parametrize("planes", [(0, 7), (1, 4), (3, 4), (2, 7)])
def test_pairs_of_planes_have_the_bits_of_the_whole_wherever_a_block_begins(planes: tuple[int, int]) -> None:
    """Also for a range of the block's planes, where all else is poisoned."""
    torch.manual_seed(planes[0])
    whole, weight = torch.randn(11, 5, 6, 32), torch.randn(32, 32, 3, 3, 3)
    packed, out = winograd.pack_weight(weight, [32]), Rows.of(torch.empty_like(whole))
    assert packed.taps.paired
    winograd.forward([Activation(Rows.of(whole))], packed, None, out)
    assert relative_error(first(out.buffer), convolved(first(whole), weight)) < ROUNDING
    for start in (0, 1, 3, 4):
        rows, ghosts = part_of(whole, (start, 1, 0), (7, 4, 5), (1, 1, 1))
        part = Rows.of(torch.full((7, 4, 5, 32), torch.nan))
        winograd.forward(
            [Activation(rows)], packed, None, part, planes=planes, origin=(-(start % 2), -1, 0), ghosts=[ghosts]
        )
        z, z1 = planes
        assert torch.equal(part.buffer[z:z1], out.buffer[start + z : start + z1, 1:, :5]), start
        assert part.buffer[:z].isnan().all()
        assert part.buffer[z1:].isnan().all()


@pytest.mark.parametrize("sources", [[24], [32], [40, 24]])
def test_gradients_of_pairs_of_planes_equal_torch(sources: list[int]) -> None:
    """An odd number of planes, in two ranges of which one begins at an odd plane; sums go to float64 or do not."""
    torch.manual_seed(1)
    inputs = [Activation(Rows.of(torch.randn(5, 6, 7, n))) for n in sources]
    weight = torch.randn(32, sum(sources), 3, 3, 3) / 30
    x = torch.cat([first(i.rows.buffer) for i in inputs], 1).requires_grad_()
    w = weight.double().requires_grad_()
    y = convolved(x, w)
    gradient = torch.randn(rows_like(y).shape)
    y.backward(first(gradient))
    for voxels in (1, 10**6):
        targets = [winograd.Target(Rows.of(torch.full_like(i.rows.buffer, torch.nan))) for i in inputs]
        into, turned = winograd.WeightSums(weight, sources, voxels), winograd.pack_turned_weight(weight, sources)
        assert into.taps.paired
        assert turned.taps.paired
        for planes in ((0, 3), (3, 5)):
            winograd.backward(inputs, Rows.of(gradient), turned, targets, into, planes=planes)
        assert relative_error(into.finish().double(), w.grad) < ROUNDING
        for target, expected in zip(targets, x.grad.split(sources, 1), strict=True):
            assert relative_error(first(target.rows.buffer), expected) < ROUNDING


@pytest.mark.parametrize("channels", [16, 32])
def test_rows_behind_the_last_are_computed_from_zeros(channels: int) -> None:
    """Not from what lay in the scratch memory: denormal numbers would cost some processors several times the time."""
    x, weight = torch.randn(1, 2, 10, channels), torch.randn(channels, channels, 3, 3, 3)
    packed, out = winograd.pack_weight(weight, [channels]), Rows.of(torch.empty(1, 2, 10, channels))
    taps, layout = packed.taps, packed.layout
    blocks = plan_blocks((0, 1), 2, 10, channels, channels, layout.rows, (1, 1, 1), 1, taps=taps)
    scratch = workers.scratch(0, forward_room(blocks, channels, layout, taps)).fill_(torch.nan)
    winograd.forward([Activation(Rows.of(x))], packed, None, out)
    tiles = blocks.planes // taps.planes * blocks.tiles
    assert tiles % layout.columns, "the last tiles are not whole"
    before = 4 * (2 * blocks.tiles + 2) * taps.lines
    before += taps.positions * (taps.layers(blocks.planes) * blocks.tiles + layout.columns)
    products = scratch[before * channels :][: 16 * (blocks.chunk + layout.rows) * layout.width]
    computed = -(-tiles // layout.columns) * layout.columns
    assert not products.view(16, -1, layout.width)[:, :computed].isnan().any()


@pytest.mark.parametrize(("taps", "step"), [(1, 1), (3, 1), (5, 1), (7, 1), (3, 2), (5, 2)])
def test_a_block_with_ghosts_has_the_bits_of_the_whole(taps: int, step: int) -> None:
    """Cut at odd coordinates too on H and W; the ghosts arrive after the blocks of tiles that need none."""
    torch.manual_seed(taps)
    whole, weight = torch.randn(24, 22, 40, 8), torch.randn(16, 8, taps, 3, 3)
    affine, out = Affine(torch.randn(8), torch.randn(8), 0.01), Rows.of(torch.empty(24 // step, 22, 40, 16))
    packed = winograd.pack_weight(weight, [8], (step, 1, 1))
    winograd.forward([Activation(Rows.of(whole), affine)], packed, None, out)
    for start, sides in (((0, 0, 0), (24, 22, 40)), ((8, 3, 7), (10, 13, 20)), ((22, 20, 1), (2, 2, 1)),
                         ((2, 0, 0), (2, 22, 40)), ((0, 1, 5), (14, 21, 35))):  # fmt: skip
        rows, ghosts = part_of(whole, start, sides, (taps // 2, 1, 1))
        part = Rows.of(torch.full((sides[0] // step, *sides[1:], 16), torch.nan))
        winograd.forward(
            [Activation(rows, affine)], packed, None, part, origin=tuple(-(n % 2) for n in start), ghosts=[ghosts]
        )
        d, h, w = (slice(s, s + n) for s, n in zip(start, sides, strict=True))
        expected = out.buffer[d.start // step : d.stop // step, h, w]
        assert torch.equal(part.buffer, expected), (start, sides)


@pytest.mark.parametrize(("taps", "step", "planes"), [(5, 1, (1, 5)), (7, 1, (2, 7)), (5, 2, (1, 4)), (7, 2, (1, 4))])
def test_planes_beside_the_first_wait_for_ghosts_that_a_long_kernel_reaches(
    taps: int, step: int, planes: tuple[int, int]
) -> None:
    whole, weight = torch.randn(24, 4, 6, 8), torch.randn(8, 8, taps, 3, 3)
    packed, out = winograd.pack_weight(weight, [8], (step, 1, 1)), Rows.of(torch.empty(24 // step, 4, 6, 8))
    winograd.forward([Activation(Rows.of(whole))], packed, None, out)
    rows, ghosts = part_of(whole, (8, 0, 0), (8, 4, 6), (taps // 2, 0, 0))
    part = Rows.of(torch.full((8 // step, 4, 6, 8), torch.nan))
    winograd.forward([Activation(rows)], packed, None, part, planes=planes, ghosts=[ghosts])
    first, last = planes
    assert torch.equal(part.buffer[first:last], out.buffer[8 // step + first : 8 // step + last])
    assert part.buffer[:first].isnan().all()


@pytest.mark.parametrize("taps", [1, 5])
def test_an_input_gradient_with_ghosts_has_the_bits_of_the_whole_plane_by_plane(taps: int) -> None:
    x, gradient = torch.randn(12, 10, 18, 8), torch.randn(12, 10, 18, 16)
    weight = torch.randn(16, 8, taps, 3, 3)
    turned = winograd.pack_turned_weight(weight, [8])
    whole = winograd.Target(Rows.of(torch.empty_like(x)))
    sums = winograd.WeightSums(weight, [8], 1)
    winograd.backward([Activation(Rows.of(x))], Rows.of(gradient), turned, [whole], sums)
    complete = sums.finish()
    rows, ghosts = part_of(gradient, (4, 2, 6), (6, 8, 12), (taps // 2, 1, 1))
    inside = Activation(Rows.of(x[4:10, 2:10, 6:18].contiguous()))
    target = winograd.Target(Rows.of(torch.full((6, 8, 12, 8), torch.nan)))
    sums = winograd.WeightSums(weight, [8], 1)
    for planes in ((0, 1), (1, 2), (2, 6)):
        winograd.backward([inside], rows, turned, [target], sums, planes=planes, ghosts=[ghosts])
    assert torch.equal(target.rows.buffer, whole.rows.buffer[4:10, 2:10, 6:18])
    assert not torch.equal(sums.finish(), complete), "a part of the voxels gives a part of the weight's gradient"


@pytest.mark.parametrize(("taps", "step"), [(1, 1), (5, 1), (3, 2)])
@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_the_planes_computed_together(taps: int, step: int, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        x = [Activation(Rows.of(torch.randn(14, 9, 11, 16))) for _ in range(2)]
        packed = winograd.pack_weight(torch.randn(8, 32, taps, 3, 3), [16, 16], (step, 1, 1))
        whole, pieces = (Rows.of(torch.full((14 // step, 9, 11, 8), torch.nan)) for _ in range(2))
        winograd.forward(x, packed, None, whole)
        for planes in ((0, 1), (1, 5), (5, 14 // step)):
            winograd.forward(x, packed, None, pieces, planes=planes)
        assert torch.equal(whole.buffer, pieces.buffer)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("window", [(1, 2, 2), (2, 2, 2), (2, 1, 2), (1, 1, 1)])
def test_pools_of_any_window_are_those_of_the_output(window: Triple) -> None:
    sides, brick = (6, 12, 16), (1, 4, 8)
    x, signs = torch.randn(*sides, 8), torch.ones(24)
    signs[::3] = -1
    out = Rows.of(torch.empty(*sides, 24))
    counts = [n // b for n, b in zip(sides, brick, strict=True)]
    sums = winograd.BrickSums(torch.full((*counts, 2, 24), torch.nan), brick)
    small = [n // k for n, k in zip(sides, window, strict=True)]
    pooled = winograd.Pooled(Rows.of(torch.full((*small, 24), torch.nan)), signs, window)
    packed = winograd.pack_weight(torch.randn(24, 8, 1, 3, 3), [8])
    winograd.forward([Activation(Rows.of(x))], packed, torch.randn(24), out, sums=sums, pooled=pooled)
    assert torch.equal(sums.sums.view(-1, 2, 24), brick_moments(out.buffer, brick))
    expected = F.max_pool3d((out.buffer * signs).permute(3, 0, 1, 2), window).permute(1, 2, 3, 0) * signs
    assert torch.equal(pooled.rows.buffer, expected)


def test_bricks_and_pools_of_one_voxel_on_an_axis_may_begin_at_odd_coordinates_there() -> None:
    x, out, signs = torch.randn(4, 7, 9, 8), Rows.of(torch.empty(4, 7, 9, 8)), torch.ones(8)
    sums = winograd.BrickSums(torch.full((2, 7, 9, 2, 8), torch.nan), (2, 1, 1))
    pooled = winograd.Pooled(Rows.of(torch.full((2, 7, 9, 8), torch.nan)), signs, (2, 1, 1))
    packed = winograd.pack_weight(torch.randn(8, 8, 3, 3, 3), [8])
    winograd.forward(
        [Activation(Rows.of(x))], packed, None, out, origin=(0, -1, -1), sums=sums, pooled=pooled
    )  # fmt: skip
    assert torch.equal(sums.sums.view(-1, 2, 8), brick_moments(out.buffer, (2, 1, 1)))
    assert torch.equal(pooled.rows.buffer, torch.maximum(out.buffer[::2], out.buffer[1::2]))
    with pytest.raises(AssertionError, match="even coordinates"):
        winograd.forward(
            [Activation(Rows.of(x))], packed, None, out, origin=(0, 0, -1),
            pooled=winograd.Pooled(pooled.rows, signs, (1, 1, 2)),
        )  # fmt: skip


def test_other_kernels_and_strides_are_refused() -> None:
    for kernel, stride in (
        ((3, 3, 1), (1, 1, 1)),
        ((2, 3, 3), (1, 1, 1)),
        ((3, 3, 3), (1, 2, 2)),
        ((9, 3, 3), (1, 1, 1)),
    ):
        assert not winograd.applies(kernel, stride)
        with pytest.raises(AssertionError, match="no kernel"):
            winograd.pack_weight(torch.zeros(8, 8, *kernel), [8], stride)
    assert winograd.applies((5, 3, 3), (2, 1, 1))


@pytest.mark.parametrize(("taps", "step"), [(1, 1), (3, 1), (7, 1), (1, 2), (5, 2)])
def test_a_kernel_stays_within_the_memory_that_it_asks_for(
    taps: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what is planned is enough: values behind it are as they were."""
    asked: list[int] = []

    def run_guarded(work: Work | list[Work], items: int, floats: int = 0) -> None:
        memory = torch.full((floats + 4096,), 7.0)
        (work if callable(work) else work[0])(0, items, memory.data_ptr())
        assert (memory[floats:] == 7).all(), "written behind the end"
        asked.append(floats)

    monkeypatch.setattr(winograd.workers, "run", run_guarded)
    for sides, channels, outputs in (((9, 7, 30), [16, 8], 32), ((3, 30, 9), [64], 16), ((1, 1, 1), [8], 8)):
        inputs = [Activation(Rows.of(torch.randn(*sides, count))) for count in channels]
        weight = torch.randn(outputs, sum(channels), taps, 3, 3)
        out = Rows.of(torch.empty(-(-sides[0] // step), *sides[1:], outputs))
        winograd.forward(inputs, winograd.pack_weight(weight, channels, (step, 1, 1)), None, out)
        into = winograd.WeightSums(weight[:, : channels[0]], channels[:1], 1, image=True, stride=(step, 1, 1))
        winograd.add_for_image(inputs[0], out, into)
        into.finish()
        if step == 1:
            targets = [winograd.Target(Rows.of(torch.empty_like(x.rows.buffer))) for x in inputs]
            into = winograd.WeightSums(weight, channels, 1)
            winograd.backward(inputs, out, winograd.pack_turned_weight(weight, channels), targets, into)
            into.finish()
    assert len(asked) >= 12
