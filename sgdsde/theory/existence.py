"""For which temperatures a power law f^(-p) exists, p = 1 + 1/κ: the conditions at the minimisers and far out.

Noise D = κf I on a loss in d dimensions whose zeros form a compact manifold of codimension k, with a Hessian of rank k
there, and f ~ |x|^γ far out. The law is integrable iff d/γ < p < k/2. As p > 1 this needs k ≥ 3 and κ > κ_c = 2/(k-2):
below κ_c SGD converges to the minimisers. A loss with f > 0 needs only p > d/γ.
"""

import math
from typing import NamedTuple

from ._checked import positive, whole


class Window(NamedTuple):
    """An open interval of temperatures, empty if `low` ≥ `high`."""

    low: float
    high: float

    def __contains__(self, temperature) -> bool:
        return self.low < temperature < self.high


def critical_temperature(codim: int) -> float:
    """κ_c = 2/(k-2): for f quadratic across its zeros, of codimension k, f^(-p) is integrable there iff κ > κ_c.

    Infinite for k ≤ 2: then every κ leads to the minimisers. It is also where the transverse Lyapunov exponent changes
    sign, whatever the curvatures (`transverse_exponent`).
    """
    k = whole("codim", codim)
    return 2 / (k - 2) if k > 2 else math.inf


def normalisable_temperatures(dim: int, growth, codim: int | None = None, threshold: float | None = None) -> Window:
    """The κ for which f^(-1-1/κ) has a finite integral, f ~ |x|^γ far out with γ = `growth` (inf: any κ).

    `codim` is that of the zeros of f, at which f is quadratic; None if f > 0 everywhere. For degenerate zeros give
    the real log canonical threshold instead, p < `threshold` (k/2 for quadratic ones; Σ 1/m_i for f = Σ x_i^{m_i}).

    The window may be empty: with γ ≤ 2, in particular for a globally Lipschitz gradient, zeros of f leave no κ
    at all, because d/γ ≥ d/2 ≥ k/2.
    """
    d, gamma = whole("dim", dim), float(growth)
    if not gamma > 0:
        raise ValueError(f"`growth` must be positive, but got growth={growth}. A loss that does not grow has no law.")
    if codim is not None:
        if threshold is not None or whole("codim", codim) > d:
            raise ValueError("`codim` must be at most `dim`, and given without `threshold`.")
        threshold = codim / 2
    least = d / gamma
    high = 1 / (least - 1) if least > 1 else math.inf
    if threshold is None:
        return Window(0.0, high)
    if not positive("threshold", threshold) > 1:
        return Window(math.inf, high)
    return Window(1 / (threshold - 1), high)


def why_not(temperature, dim: int, growth, codim: int | None = None) -> str:
    """Which condition fails for f^(-1-1/κ), in words; empty if none does. Arguments as `normalisable_temperatures`."""
    kappa = positive("temperature", temperature)
    p = 1 + 1 / kappa
    window = normalisable_temperatures(dim, growth, codim)
    reasons = []
    if codim is not None and not kappa > window.low:
        reasons.append(
            f"p = {p:.6g} is not below k/2 = {codim / 2:g}: SGD converges to the minimisers, where every law is "
            "invariant"
        )
    if not kappa < window.high:
        reasons.append(f"p = {p:.6g} is not above d/γ = {dim / growth:.6g}: mass escapes to infinity")
    return "; ".join(reasons)
