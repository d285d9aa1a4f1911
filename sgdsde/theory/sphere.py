"""Integrals of powers of a quadratic form over a sphere, ∫ (νᵀAν)^{-q} dν, in any dimension and for any power.

They are what decides between minimisers: (νᵀHν)^{-k/2} integrates to a multiple of det(H)^{-1/2}, whatever H is,

    ∫_{S^{k-1}} (νᵀAν)^{-k/2} dν = |S^{k-1}| det(A)^{-1/2},   |S^{k-1}| = 2π^{k/2}/Γ(k/2)

(a Gaussian integral in polar coordinates). So the limit laws of loss-proportional and of constant noise, one written
with the integral and the other with the determinant, are the same. It is not 1/agm of the roots of the eigenvalues,
which for k = 2 is the mean of (νᵀAν)^{-1/2}.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy import special

from ._checked import definite, positive, symmetric, whole


def sphere_area(dim: int) -> float:
    """|S^{k-1}| = 2π^{k/2}/Γ(k/2), the area of the unit sphere of R^k; 2 for k = 1."""
    k = whole("dim", dim)
    return 2 * math.pi ** (k / 2) / math.gamma(k / 2)


def sphere_mean(A, power) -> float:
    """The mean of (νᵀAν)^{-q} over the unit sphere of R^k, A symmetric positive definite (k, k), q = `power` > 0.

    With νᵢ² distributed by Dirichlet(½, ..., ½) it is Carlson's R_{-q}(½, ..., ½; eigenvalues), computed to about 1e-13
    from one integral on a line, without sampling directions.
    """
    q = positive("power", power)
    a = np.linalg.eigvalsh(definite("A", A))
    return float(a[-1] ** -q * np.exp(_log_carlson(a / a[-1], q)))


def sphere_integral(A, power) -> float:
    """∫_{S^{k-1}} (νᵀAν)^{-q} dν; the sum over two points for k = 1."""
    return sphere_area(len(np.atleast_2d(A))) * sphere_mean(A, power)


def determinant_form(A) -> float:
    """|S^{k-1}| det(A)^{-1/2}, which equals `sphere_integral(A, k/2)`."""
    A = definite("A", A)
    return sphere_area(len(A)) * math.exp(-0.5 * np.linalg.slogdet(A)[1])


def agm_form(A) -> float:
    """2π/agm(√a₁, √a₂) for a 2 × 2 matrix: ∫ (νᵀAν)^{-1/2} dν over the circle (Gauss), not the limit weight.

    Only for showing that the weight of minimisers is not this.
    """
    a = np.linalg.eigvalsh(symmetric("A", A))
    if len(a) != 2 or not a[0] > 0:
        raise ValueError(f"`A` must be 2 × 2 and positive definite, but has the eigenvalues {a}.")
    x, y = np.sqrt(a)
    while abs(x - y) > 1e-15 * y:
        x, y = 0.5 * (x + y), math.sqrt(x * y)
    return 2 * math.pi / y


def _log_carlson(a: Float[np.ndarray, " k"], q: float) -> float:
    """log E (Σ aᵢwᵢ)^{-q}, w ~ Dirichlet(½, ..., ½), with aᵢ ≤ 1.

    Gamma variables give, for b = (½, ..., ½), c = k/2 and n with c + n > q,

        E = Γ(c) / (Γ(q) Γ(c+n-q)) ∫₀^∞ s^{q-1} Π(1 + aᵢs)^{-1/2} n! eₙ(s) ds.

    eₙ(s) is the coefficient of yⁿ in Π(1 - y/(1 + aᵢs))^{-1/2}: it comes from 1 = (Σ wᵢ)ⁿ, and all terms are positive.
    """
    c = len(a) / 2
    n = max(0, math.ceil(q - c + _margin))
    # In x = log s the integrand is analytic in a strip of width π and falls like e^{qx} and e^{-(c+n-q)x}.
    low, high = -_digits / q, _digits / (c + n - q) - math.log(a[0])
    x = np.arange(low, high, _spacing)
    ratio = 1 / (1 + a[:, None] * np.exp(x))
    powers, series = np.empty((n, x.size)), np.ones((n + 1, x.size))
    for m in range(1, n + 1):
        powers[m - 1] = 0.5 * np.sum(ratio**m, axis=0)
        # m e_m = Σ_j p_j e_{m-j}, from the logarithmic derivative.
        series[m] = np.sum(powers[:m] * series[m - 1 :: -1], axis=0) / m
    logs = q * x + 0.5 * np.sum(np.log(ratio), axis=0) + np.log(series[n]) + math.log(_spacing)
    constants = special.gammaln([c, n + 1, q, c + n - q])
    return float(special.logsumexp(logs) + constants[0] + constants[1] - constants[2] - constants[3])


# The sum over a spacing h has an error near exp(-2π²/h); tails are cut where they have fallen by exp(-38).
_spacing, _digits, _margin = 0.4, 38.0, 1.0
