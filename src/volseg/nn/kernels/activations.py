"""Activations as kernels compute them, lane by lane, and their derivatives: the same bits wherever a voxel lies.

All but the leaky ReLU are made of one exponential and one division. `exponential` is at most 1 ulp from the true value,
sigmoid 3 ulp; an activation and its derivative are within 3e-7 of the true ones, or of their size where that is above
1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import pi, sqrt

from volseg.networks.description import ActivationKind
from volseg.nn.kernels.jit.language import Function, Vector


def activated(f: Function, kind: ActivationKind, x: Vector, slope: Vector, gain: Vector | None) -> Vector:
    """Write down: ``activation(x) * gain``.

    slope  of a leaky ReLU, which has no `gain`
    """
    if kind == "leaky_relu":
        return f.leaky(x, slope)
    value, _ = _value_and_derivative(f, kind, x)
    return value * _factor(gain)


def gradient_before(
    f: Function, kind: ActivationKind, gradient: Vector, x: Vector, slope: Vector, gain: Vector | None
) -> Vector:
    """Write down: `gradient` times the derivative of `activated` at x."""
    if kind == "leaky_relu":
        return f.leaky_gradient(gradient, x, slope)
    _, derivative = _value_and_derivative(f, kind, x)
    return gradient * _factor(gain) * derivative


def _factor(gain: Vector | None) -> Vector:
    assert gain is not None, "activations other than the leaky ReLU have a factor behind them"
    return gain


def _value_and_derivative(f: Function, kind: ActivationKind, x: Vector) -> tuple[Vector, Vector]:
    """Write down an activation and its derivative; of what nobody uses no machine code is made."""
    match kind:
        case "gelu":
            return _gelu(f, x)
        case "gelu_tanh":
            return _gelu_tanh(f, x)
    share, rest = _sigmoid(f, x)
    if kind == "silu":
        return x * share, f.fma(x * share, rest, share)
    return share, share * rest


_LIMIT = 80.0
"""Of what `exponential` is taken of: beyond it, products with its results would soon be denormal, which is slow."""

_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXPONENTIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def exponential(f: Function, x: Vector) -> Vector:
    """Write down e^x for x from -80 to 80; of what lies beyond, that of the nearer end; not a number stays that.

    Moshier's expf of the Cephes library: with n = round(x / ln 2) and ln 2 in two parts, e^x = 2^n * e^(x - n ln 2),
    the second factor by a polynomial of degree 5 on [-ln 2 / 2, ln 2 / 2].
    """
    low, high, magic = f.constant(-_LIMIT), f.constant(_LIMIT), f.constant(1.5 * 2**23)
    x = f.take_where_above(low, x, low, x)
    x = f.take_where_above(x, high, high, x)
    shifted = f.fma(x, f.constant(_LOG2_E), magic)
    n = shifted - magic
    rest = f.fma(n, f.constant(-_LN2_HIGH), x)
    rest = f.fma(n, f.constant(-_LN2_LOW), rest)
    value = f.fma(_polynomial(f, rest, _EXPONENTIAL), rest * rest, rest) + f.constant(1)
    return value * f.power_of_two(shifted)


_LOGARITHM = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip


def logarithm(f: Function, x: Vector) -> Vector:
    """Write down ln x of normal numbers above zero, 1 ulp from the true value or 1e-7 where that is near zero.

    Moshier's logf of the Cephes library: with x = 2^n * (1 + r), r from sqrt(1/2) - 1 to sqrt(2) - 1, ln(1 + r) is
    r - r^2 / 2 + r^3 times a polynomial of degree 8, and n ln 2 is added in two parts. Of 1 it is exactly zero;
    not a number stays that.
    """
    unit, border = f.constant(1), f.constant(sqrt(2))
    n, fraction = f.split_power(x)
    n = f.take_where_above(fraction, border, n + unit, n)
    rest = f.take_where_above(fraction, border, fraction * f.constant(0.5), fraction) - unit
    square = rest * rest
    value = f.fma(n, f.constant(_LN2_LOW), _polynomial(f, rest, _LOGARITHM) * rest * square)
    value = f.fma(n, f.constant(_LN2_HIGH), f.fma(square, f.constant(-0.5), value) + rest)
    return f.take_where_equal(x, x, value, x)


def _polynomial(f: Function, x: Vector, coefficients: Sequence[float]) -> Vector:
    """Horner's rule, the highest power first."""
    return reduce(lambda total, c: f.fma(total, x, c), [f.constant(c) for c in coefficients])


def _sigmoid(f: Function, x: Vector) -> tuple[Vector, Vector]:
    """1 / (1 + e^-x), and one less that, without cancellation."""
    power, unit = exponential(f, -x), f.constant(1)
    share = unit / (unit + power)
    return share, power * share


_ERF_STEP, _ERF = 0.3275911, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def _gelu(f: Function, x: Vector) -> tuple[Vector, Vector]:
    """x * Phi(x), Phi the normal distribution (Hendrycks & Gimpel, "Gaussian error linear units", 2016).

    erf by formula 7.1.26 of Abramowitz & Stegun, "Handbook of mathematical functions" (after Hastings, 1955), whose
    error is at most 1.5e-7: 1 - (a1 t + ... + a5 t^5) e^(-z^2) with t = 1 / (1 + p z), z = |x| / sqrt 2.
    """
    zero, half, unit = f.constant(0), f.constant(0.5), f.constant(1)
    size = f.take_where_above(zero, x, -x, x)
    t = unit / f.fma(size, f.constant(_ERF_STEP / sqrt(2)), unit)
    power = exponential(f, x * x * f.constant(-0.5))
    tail = _polynomial(f, t, _ERF) * t * power * half
    share = f.take_where_above(x, zero, unit - tail, tail)
    return x * share, f.fma(x * f.constant(1 / sqrt(2 * pi)), power, share)


_TANH_SCALE, _TANH_CUBE = 2 * sqrt(2 / pi), 0.044715


def _gelu_tanh(f: Function, x: Vector) -> tuple[Vector, Vector]:
    """x * (1 + tanh(u)) / 2 = x * sigmoid(2 u) with u = sqrt(2 / pi) * (x + 0.044715 x^3), as in the same paper."""
    square, scale, cube = x * x, f.constant(_TANH_SCALE), f.constant(_TANH_SCALE * _TANH_CUBE)
    share, rest = _sigmoid(f, x * f.fma(square, cube, scale))
    steepness = f.fma(square, f.constant(3 * _TANH_SCALE * _TANH_CUBE), scale)
    return x * share, f.fma(x * share, rest * steepness, share)
