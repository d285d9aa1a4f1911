"""Where SGD with loss-proportional noise ends on a flat manifold of minimisers, at temperatures below κ_c.

f = λ|z|²/2 on R^n × R^k with D = κf I: the manifold is {z = 0}, φ in R^n moves along it. For κ < 2/(k-2) the distance
r = |z| goes to 0 and φ_t to a random limit,

    φ_∞ - φ₀ ~ (r₀/√(2ν)) t_{2ν},   ν = 1/κ - (k-2)/2,

an n-dimensional Student law: the harmonic measure seen from (φ₀, r₀) (Dufresne's perpetuity). No stationary law selects
among the minimisers; f = 0 absorbs.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy import special

from ._checked import not_negative, positive, whole
from .existence import critical_temperature


def degrees_of_freedom(temperature, codim: int) -> float:
    """2ν = 2/κ - k + 2. `ValueError` from κ_c = 2/(k-2) on, where the path does not converge."""
    kappa = positive("temperature", temperature)
    limit = critical_temperature(codim)
    if not kappa < limit:
        raise ValueError(
            f"`temperature` must be below κ_c = 2/(k-2) = {limit:.6g} for codim={codim}, but got {kappa:g}: SGD does "
            "not converge to the manifold."
        )
    return 2 / kappa - codim + 2


def pdf(displacement, distance, temperature, codim: int) -> Float[np.ndarray, "..."]:
    """The density Γ(ν + n/2)/(π^{n/2} Γ(ν)) r₀^{2ν} (r₀² + |φ|²)^{-ν - n/2} of φ_∞ - φ₀, shape (..., n).

    `distance` is r₀, the initial distance from the manifold.
    """
    phi = np.asarray(displacement, dtype=np.float64)
    if phi.ndim == 0:
        raise ValueError("`displacement` must have the shape (..., n), coordinates last, but is a number.")
    nu, r0, n = degrees_of_freedom(temperature, codim) / 2, positive("distance", distance), phi.shape[-1]
    log_constant = special.gammaln(nu + n / 2) - special.gammaln(nu) - n / 2 * math.log(math.pi) - n * math.log(r0)
    return np.asarray(np.exp(log_constant - (nu + n / 2) * np.log1p(np.sum((phi / r0) ** 2, axis=-1))))


def beyond(radius, distance, temperature, codim: int, dim: int = 1) -> Float[np.ndarray, "..."]:
    """P(|φ_∞ - φ₀| > radius) on a manifold of dimension n = `dim`: the incomplete beta function I(ν, n/2)."""
    nu, n = degrees_of_freedom(temperature, codim) / 2, whole("dim", dim)
    ratio = np.asarray(radius, dtype=np.float64) / positive("distance", distance)
    return np.asarray(special.betainc(nu, n / 2, 1 / (1 + ratio**2)))


def limit_variance(distance, temperature, codim: int, dim: int = 1) -> float:
    """E|φ_∞ - φ₀|² = n r₀²/(2(ν - 1)); inf for ν ≤ 1, that is κ ≥ 2/k."""
    nu = degrees_of_freedom(temperature, codim) / 2
    return math.inf if nu <= 1 else whole("dim", dim) * positive("distance", distance) ** 2 / (2 * (nu - 1))


def variance(t, distance, temperature, codim: int, dim: int = 1, curvature=1.0) -> Float[np.ndarray, "..."]:
    """E|φ_t - φ₀|² = nκλr₀² (e^{Lt} - 1)/L, L = λ(κk - 2), at every temperature."""
    kappa, lam, k = positive("temperature", temperature), positive("curvature", curvature), whole("codim", codim)
    rate, t = lam * (kappa * k - 2), np.asarray(t, dtype=np.float64)
    elapsed = t if rate == 0 else np.expm1(rate * t) / rate
    return np.asarray(whole("dim", dim) * kappa * lam * positive("distance", distance) ** 2 * elapsed)


def drift(distance, temperature, codim: int, log_slope) -> tuple[float, float]:
    """(E[φ_∞ - φ₀], its variance) for f = λ(φ)|z|²/2 from a small distance r₀, with `log_slope` λ'/λ at φ₀.

    -(λ'/λ) r₀²/(2(2 - κk)) and κr₀²/(2 - κk), up to O(r₀⁴): towards smaller curvature. Gradient flow (κ = 0) has the
    same bias times (2 - κk)/2: noise enlarges it, but it stays of the order r₀². `ValueError` from κ = 2/k on.
    """
    kappa, k, r0 = not_negative("temperature", temperature), whole("codim", codim), positive("distance", distance)
    if not kappa * k < 2:
        raise ValueError(f"`temperature` must be below 2/k = {2 / k:.6g}, where the variance is finite, got {kappa:g}.")
    return -float(log_slope) * r0**2 / (2 * (2 - kappa * k)), kappa * r0**2 / (2 - kappa * k)
