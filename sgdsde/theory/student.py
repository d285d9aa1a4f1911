"""Closed forms for f = curvature · (scale² + |x|²)/2 with noise D = κ f I: the Student diffusion, κ = ησ.

dX = -λX dt + sqrt(κλ(s² + |X|²)) dB with the curvature λ and the scale s. Its invariant law is f^(-p), p = 1 + 1/κ, a
Student distribution, which exists iff p > d/2. Rates are per unit of t (learning rate times steps).
"""

import math

import numpy as np
from jaxtyping import Float
from scipy import special
from scipy.linalg import expm


def pdf(x, temperature: float, scale: float = 1.0) -> Float[np.ndarray, "..."]:
    """The invariant density Γ(p)/(π^(d/2) Γ(p - d/2)) s^(2p-d) (s² + |x|²)^(-p) at points x, shape (..., d)."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim == 0:
        raise ValueError("`x` must have the shape (..., d), with the coordinates along the last axis, but is a number.")
    d = x.shape[-1]
    p = _power(temperature, scale, d)
    log_constant = special.gammaln(p) - special.gammaln(p - d / 2) - d / 2 * math.log(math.pi) - d * math.log(scale)
    return np.asarray(np.exp(log_constant - p * np.log1p(np.sum((x / scale) ** 2, axis=-1))))


def cdf(x, temperature: float, scale: float = 1.0) -> Float[np.ndarray, "..."]:
    """P(X ≤ x) of the invariant law in one dimension, for x of any shape."""
    p = _power(temperature, scale, 1)
    return np.asarray(special.stdtr(2 * p - 1, np.asarray(x) / scale * math.sqrt(2 * p - 1)))


def outside_ball(radius, temperature: float, scale: float = 1.0, dim: int = 1) -> Float[np.ndarray, "..."]:
    """P(|X| > radius) of the invariant law: the incomplete beta function I_{s²/(s²+R²)}(p - d/2, d/2)."""
    p = _power(temperature, scale, dim)
    return np.asarray(special.betainc(p - dim / 2, dim / 2, 1 / (1 + (np.asarray(radius) / scale) ** 2)))


def moment(order: float, temperature: float, scale: float = 1.0, dim: int = 1) -> float:
    """E |X|^order of the invariant law: inf from the order 2p - d = 2 + 2/κ - d on."""
    p = _power(temperature, scale, dim)
    if not order > -dim:
        raise ValueError(f"`order` must be above -d={-dim}, but got {order}.")
    if order >= 2 * p - dim:
        return math.inf
    log = special.gammaln([(dim + order) / 2, p - (dim + order) / 2, dim / 2, p - dim / 2])
    return float(scale**order * np.exp(log[0] + log[1] - log[2] - log[3]))


def eigenvalues(temperature: float, curvature: float = 1.0, dim: int = 1) -> Float[np.ndarray, " n"]:
    """The isolated eigenvalues of minus the generator in L²(invariant law), ascending, each value once.

    λ/2 · (2n - κ[n(n+d-2) - l(l+d-2)]) for n = l + 2j < 1 + 1/κ - d/2; l ≤ 1 when d = 1. They are rates of decay;
    0 comes first. Above `continuum` the spectrum is continuous, though eigenvalues of higher l may lie in it.
    """
    p = _power(temperature, 1.0, dim)
    levels = range(math.ceil(p - dim / 2 - 1e-12))
    pairs = [(n, m) for n in levels for m in range(n % 2, n + 1, 2) if dim > 1 or m <= 1]
    rates = [2 * n - temperature * (n * (n + dim - 2) - m * (m + dim - 2)) for n, m in pairs]
    return 0.5 * curvature * np.unique(np.round(rates, 12))


def continuum(temperature: float, curvature: float = 1.0, dim: int = 1) -> float:
    """Where the continuous spectrum of minus the generator starts: λκ/2 · (1/κ - (d-2)/2)²."""
    _power(temperature, 1.0, dim)
    return 0.5 * curvature * temperature * (1 / temperature - (dim - 2) / 2) ** 2


def mean(x0, t, curvature: float = 1.0) -> Float[np.ndarray, "..."]:
    """E X_t = x₀ e^(-λt), at every temperature."""
    return np.asarray(x0 * np.exp(-curvature * np.asarray(t)))


def second_moment(
    square, t, temperature: float, curvature: float = 1.0, scale: float = 1.0, dim: int = 1
) -> Float[np.ndarray, "..."]:
    """E |X_t|² from |x₀|² = `square`: it relaxes at the rate λ(2 - dκ), slower than the gap when κ is large.

    At dκ ≥ 2 it grows without bound: linearly at equality, else exponentially.
    """
    rate, source = curvature * (2 - dim * temperature), dim * temperature * curvature * scale**2
    t = np.asarray(t, dtype=np.float64)
    # (1 - e^{-rt})/r, which is t at r = 0.
    elapsed = t if rate == 0 else -np.expm1(-rate * t) / rate
    return np.asarray(square * np.exp(-rate * t) + source * elapsed)


def fourth_moment(x0: float, t: float, temperature: float, curvature: float = 1.0, scale: float = 1.0) -> float:
    """E X_t⁴ from the point x₀, in one dimension: m₄' = -λ(4 - 6κ)m₄ + 6κλs²m₂, together with `second_moment`.

    It converges iff κ < 2/3.
    """
    rate = curvature * np.array([-(4 - 6 * temperature), -(2 - temperature)])
    pull = curvature * temperature * scale**2
    system = np.array([[rate[0], 6 * pull, 0.0], [0.0, rate[1], pull], [0.0, 0.0, 0.0]])
    return float((expm(system * t) @ np.array([x0**4, x0**2, 1.0]))[0])


def transition_pdf(
    x, t: float, x0: float, temperature: float, curvature: float = 1.0, scale: float = 1.0
) -> Float[np.ndarray, "..."]:
    """The density of X_t at x started from x0, in one dimension, for κ = 2/(2N-1), N = 1, 2, ...: 2, 2/3, 2/5, ...

    With s = λ = 1, y = asinh x, τ = κt and Δ = y - y₀ it is

        (cosh y₀/cosh y)^N / cosh y · { exp(-N²τ/2 - Δ²/2τ)/√(2πτ)
          + Σ_k ψ_k(y) ψ_k(y₀) e^{-(N²-k²)τ/2} ½[erf((kτ+Δ)/√(2τ)) + erf((kτ-Δ)/√(2τ))] },  k = 1, ..., N,

    with ψ_k = √(k (N-k)!/(N+k)!) P_N^k(tanh y), the bound states of a reflectionless potential. `ValueError` for
    other temperatures.
    """
    N = round(1 / temperature + 0.5) if temperature > 0 else 0
    if N < 1 or not math.isclose(temperature, 2 / (2 * N - 1), rel_tol=1e-9):
        raise ValueError(
            f"`temperature` must be 2/(2N-1) for a whole N, one of 2, 2/3, 2/5, ..., but got {temperature}. "
            "There is no closed form for other values."
        )
    if not t > 0:
        raise ValueError(f"`t` must be positive, but got t={t}.")
    y, y0, tau = np.arcsinh(np.asarray(x) / scale), math.asinh(x0 / scale), temperature * curvature * t
    delta, width = y - y0, math.sqrt(2 * tau)
    total = np.exp(-(N**2) * tau / 2 - delta**2 / (2 * tau)) / math.sqrt(2 * math.pi * tau)
    for k in range(1, N + 1):
        norm = k * math.factorial(N - k) / math.factorial(N + k)
        states = norm * special.lpmv(k, N, np.tanh(y)) * special.lpmv(k, N, math.tanh(y0))
        spread = 0.5 * (special.erf((k * tau + delta) / width) + special.erf((k * tau - delta) / width))
        total = total + states * math.exp(-(N**2 - k**2) * tau / 2) * spread
    return np.asarray((np.cosh(y0) / np.cosh(y)) ** N / np.cosh(y) * total / scale)


def _power(temperature: float, scale: float, dim: int) -> float:
    """p = 1 + 1/κ, checked to give a law in `dim` dimensions."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` must be positive and finite, but got temperature={temperature}.")
    if not 0 < scale < math.inf:
        raise ValueError(f"`scale` must be positive and finite, but got scale={scale}.")
    p = 1 + 1 / temperature
    if dim < 1 or not p > dim / 2:
        raise ValueError(
            f"In dim={dim} the law f^(-p), p = 1 + 1/κ, needs p > d/2, but κ={temperature:g} gives p={p:g}. "
            "Below κ = 2/(d-2) it exists."
        )
    return p
