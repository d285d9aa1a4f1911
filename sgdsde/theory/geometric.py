"""Loss-proportional noise on f = λ|x|²/2 in R^d: the radius is a geometric Brownian motion, known exactly.

dX = -λX dt + √(κλ)|X| dB (D = κf I, Itô, t = η · steps), and with r = |X|

    r_t = r₀ exp(λ(κ(d-2)/2 - 1)t + √(κλ) W_t),

W independent of the direction X/|X|, which is Brownian motion on the sphere at the clock κλt. For
2/d < κ < 2/(d-2) the iterate converges almost surely while E f → ∞: averages over samples then mislead.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy import special

from ._checked import not_negative, positive, whole
from .existence import Window


def lyapunov_exponent(temperature, dim: int = 1, curvature=1.0) -> float:
    """d log r/dt = λ(κ(d-2)/2 - 1), almost surely; negative iff κ < 2/(d-2)."""
    kappa, d, lam = _parameters(temperature, dim, curvature)
    return lam * (0.5 * kappa * (d - 2) - 1)


def moment_rate(order, temperature, dim: int = 1, curvature=1.0) -> float:
    """Λ(q) in E r_t^q = r₀^q e^{Λ(q)t}: λq(κ(q + d - 2)/2 - 1); negative iff 0 < q < 2/κ - d + 2."""
    kappa, d, lam = _parameters(temperature, dim, curvature)
    return lam * order * (0.5 * kappa * (order + d - 2) - 1)


def deceptive_window(dim: int) -> Window:
    """2/d < κ < 2/(d-2): r → 0 almost surely, but E f → ∞; from 2/d on without bound for d ≤ 2."""
    d = whole("dim", dim)
    return Window(2 / d, 2 / (d - 2) if d > 2 else math.inf)


def radius_cdf(ratio, t, temperature, dim: int = 1, curvature=1.0) -> Float[np.ndarray, "..."]:
    """P(r_t ≤ ratio · r₀) at t > 0: log r is normal. Its median is exp(t · lyapunov_exponent)."""
    kappa, _, lam = _parameters(temperature, dim, curvature)
    mean = lyapunov_exponent(temperature, dim, curvature) * positive("t", t)
    with np.errstate(divide="ignore"):
        return np.asarray(special.ndtr((np.log(np.asarray(ratio)) - mean) / math.sqrt(kappa * lam * t)))


def ever_exceeds(ratio, temperature, dim: int = 1) -> float:
    """P(sup_t r_t > c r₀) = c^{-2(1/κ - (d-2)/2)} for c = `ratio` ≥ 1; 1 where κ ≥ 2/(d-2)."""
    kappa, d, _ = _parameters(temperature, dim, 1.0)
    if not ratio >= 1:
        raise ValueError(f"`ratio` must be at least 1, because r starts at r₀, but got ratio={ratio}.")
    return float(min(1.0, ratio ** (-2 * (1 / kappa - (d - 2) / 2))))


def mean(x0, t, curvature=1.0) -> Float[np.ndarray, "..."]:
    """E X_t = x₀ e^{-λt}, at every temperature."""
    return np.asarray(x0 * np.exp(-positive("curvature", curvature) * np.asarray(t)))


def discrete_growth(learning_rate, temperature, dim: int = 1, curvature=1.0) -> float:
    """The factor (1 - ηλ)² + dκηλ of E|X|², and of E f, in one step of SGD with Gaussian noise of this covariance.

    It is also the factor of Euler-Maruyama with the step η. Below 1 iff κ < (2 - ηλ)/d.
    """
    kappa, d, lam = _parameters(temperature, dim, curvature)
    step = positive("learning_rate", learning_rate) * lam
    return (1 - step) ** 2 + d * kappa * step


def _parameters(temperature, dim, curvature) -> tuple[float, int, float]:
    return not_negative("temperature", temperature), whole("dim", dim), positive("curvature", curvature)
