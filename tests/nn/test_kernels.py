"""The convolution kernels against torch's own, the rule that makes their bits the same, and the cliff they avoid."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracles import relative_error, serial_grid
from volseg.nn.convert import partition_module
from volseg.nn.kernels.convolution import convolve, transposed_convolve, weight_gradient


def draw(seed: int) -> dict:
    """Settings of a small convolution: kernels 1..7, also on one axis only, strides, dilations, groups, thin inputs."""
    r = random.Random(seed)
    kernel = (r.choice([1, 2, 3, 5, 7]),) * 3 if r.random() < 0.7 else tuple(r.choice([1, 2, 3, 4]) for _ in range(3))
    stride = (r.choice([1, 1, 2, 3]),) * 3 if r.random() < 0.7 else tuple(r.choice([1, 2]) for _ in range(3))
    dilation = (r.choice([1, 1, 1, 2]),) * 3
    groups = r.choice([1, 1, 1, 2, 4])
    smallest = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    return {
        "kernel": kernel, "stride": stride, "dilation": dilation, "groups": groups, "samples": r.choice([1, 1, 2]),
        "inputs": groups * r.choice([1, 2, 5, 8]), "outputs": groups * r.choice([1, 3, 4]),
        "shape": tuple(n + r.choice([0, 1, 2, 5]) for n in smallest),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(60))
def test_kernels_equal_torch(seed: int, dtype: torch.dtype) -> None:
    """Value, gradient of the input and gradient of the weight, against F.conv3d and its autograd in float64."""
    s = draw(seed)
    generator = torch.Generator().manual_seed(seed)
    settings = s["stride"], s["dilation"], s["groups"]
    x = torch.randn((s["samples"], s["inputs"], *s["shape"]), generator=generator, dtype=torch.float64)
    weight = torch.randn((s["outputs"], s["inputs"] // s["groups"], *s["kernel"]), generator=generator).double()
    bias = torch.randn(s["outputs"], generator=generator).double() if seed % 2 else None
    x.requires_grad_()
    weight.requires_grad_()
    expected = F.conv3d(x, weight, bias, s["stride"], 0, s["dilation"], s["groups"])
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    expected.backward(upstream)
    assert x.grad is not None
    assert weight.grad is not None

    plain = [t.detach().to(dtype) for t in (x, weight, upstream)]
    y = convolve(plain[0], plain[1], None if bias is None else bias.to(dtype), *settings)
    back = transposed_convolve(plain[2], plain[1], *settings, s["shape"])
    slope = weight_gradient(plain[0], plain[2], plain[1], *settings)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert relative_error(y.double(), expected.detach()) < tolerance, s
    assert relative_error(back.double(), x.grad) < tolerance, s
    assert relative_error(slope.double(), weight.grad) < tolerance, s


def whole_and_part(seed: int) -> tuple[Tensor, Tensor, str]:
    """The same outputs computed from a whole input and from a window of it."""
    r = random.Random(seed)
    kernel = r.choice([1, 3, 3, 3, 5, 7])
    inputs, outputs = (r.choice([1, 2, 3, 4, 8, 16, 17, 32, 64, 128, 256]) for _ in range(2))
    if kernel >= 5:
        inputs, outputs = min(inputs, 32), min(outputs, 32)
    stride, dilation = (r.choice([1, 1, 1, 2]) for _ in range(2))
    reach = dilation * (kernel - 1)
    most = 20 if inputs * outputs * kernel**3 < 100_000 else 7
    sides = [r.randint(1, most) for _ in range(3)]  # of the whole output
    starts = [r.randint(0, n - 1) for n in sides]
    stops = [r.randint(a + 1, n) for a, n in zip(starts, sides, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((1, inputs, *((n - 1) * stride + reach + 1 for n in sides)), generator=generator)
    weight = torch.randn((outputs, inputs, *(kernel,) * 3), generator=generator)
    bias = torch.randn(outputs, generator=generator) if r.random() < 0.5 else None
    settings = (stride,) * 3, (dilation,) * 3, 1
    window = tuple(slice(a * stride, (b - 1) * stride + reach + 1) for a, b in zip(starts, stops, strict=True))
    origin = -(starts[0] % 2), -(starts[1] % 2), -(starts[2] % 2)
    part = convolve(x[(..., *window)].clone(), weight, bias, *settings, origin)
    whole = convolve(x, weight, bias, *settings)[(..., *map(slice, starts, stops))]
    what = f"{inputs}->{outputs} k{kernel} s{stride} d{dilation}: {sides} from {starts} to {stops}"
    return whole, part, what


@pytest.mark.parametrize("threads", [1, 2])
def test_a_voxel_has_the_same_bits_in_a_whole_and_in_a_part(threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        for seed in range(400):
            whole, part, what = whole_and_part(1000 * threads + seed)
            assert torch.equal(whole, part), what
    finally:
        torch.set_num_threads(1)


def primitives(work: Callable[[], object], capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The direction of every oneDNN convolution or product that `work` ran."""
    capfd.readouterr()
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        work()
    lines = [line.split(",") for line in capfd.readouterr().out.splitlines() if line.startswith("onednn_verbose")]
    return [field for line in lines if "convolution" in line for field in line if field in DIRECTIONS]


DIRECTIONS = ("forward_training", "forward_inference", "backward_data", "backward_weights")


def operations(work: Callable[[], object]) -> set[str]:
    """The names of the operations that `work` called."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return {event.key for event in profile.key_averages()}


# All with N = 1 and C * D * H <= 20480 at the input, the output, or both; thin shells and coarse levels too.
CLIFF = {
    "16 to 16 at 32": (nn.Conv3d(16, 16, 3, padding=1), (32, 32, 32)),
    "64 to 128 at 8": (nn.Conv3d(64, 128, 3, padding=1), (8, 8, 8)),
    "one slice": (nn.Conv3d(8, 8, 3, padding=1), (1, 16, 16)),
    "one voxel": (nn.Conv3d(8, 8, 3, padding=1), (1, 1, 1)),
    "one channel": (nn.Conv3d(1, 8, 3, padding=1), (16, 16, 16)),
    "k5": (nn.Conv3d(4, 4, 5, padding=2), (12, 12, 12)),
    "head": (nn.Conv3d(16, 3, 1), (16, 16, 16)),
    "stride 2": (nn.Conv3d(8, 8, 3, stride=2, padding=1), (16, 16, 16)),
    "dilation 2": (nn.Conv3d(8, 8, 3, padding=2, dilation=2), (16, 16, 16)),
    "up-convolution k2 s2": (nn.ConvTranspose3d(16, 8, 2, stride=2), (8, 8, 8)),
    "up-convolution k3 s2": (nn.ConvTranspose3d(16, 8, 3, stride=2, padding=1, output_padding=1), (8, 8, 8)),
}


@pytest.mark.parametrize("name", CLIFF)
def test_no_convolution_falls_off_the_cliff(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Forward and both gradients run in kernels of volseg's own, or else in oneDNN."""
    layer, shape = CLIFF[name]
    own = not name.startswith("dilation")
    x = torch.randn((1, layer.in_channels, *shape), requires_grad=True)
    twin = partition_module(layer, serial_grid())
    y: list[Tensor] = []
    assert not any("slow_conv" in n for n in operations(lambda: y.append(twin(x))))
    ran = primitives(lambda: twin(x), capfd)
    assert own == (ran == [])
    assert own or any(direction.startswith("forward") for direction in ran)
    upstream = torch.randn_like(y[0])
    assert not any("slow_conv" in n for n in operations(lambda: y[0].backward(upstream, retain_graph=True)))
    ran = primitives(lambda: y[0].backward(upstream), capfd)
    if layer.kernel_size[0] in (1, 2):
        return  # their weight gradient is a matrix product
    assert own == (ran == [])
    assert own or any(direction.startswith("forward") for direction in ran), "gradient of the input"
    assert own or "backward_weights" in ran, "gradient of the weight"


def test_the_cliff_is_there_to_fall_off(capfd: pytest.CaptureFixture[str]) -> None:
    """Else the test above could not fail: torch's own layer does call the slow kernel, forward and backward."""
    x = torch.randn((1, 16, 16, 16, 16), requires_grad=True)
    weight = torch.randn((16, 16, 3, 3, 3), requires_grad=True)
    y: list[Tensor] = []
    assert any("slow_conv3d" in n for n in operations(lambda: y.append(F.conv3d(x, weight, padding=1))))
    assert primitives(lambda: F.conv3d(x, weight, padding=1), capfd) == []
    assert primitives(lambda: y[0].sum().backward(), capfd) == []
