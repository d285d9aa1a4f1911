r"""The weights of one edge of the grid: how much of its two cells' mass crosses a face in unit time.

Along an edge of length `dist` from the centre of cell i to that of cell j, the current J is nearly constant, and
q = D ρ obeys q' = ω q - J with ω = b / D. With Φ(x) the integral of ω from centre i to x and Ω = Φ(centre j),

    J = (q_i - q_j e^(-Ω)) / ∫ e^(-Φ) dx = (W / dist) (q_i - q_j e^(-Ω)),   W = dist / ∫ e^(-Φ) dx.

No derivative of D appears. Any W > 0 gives a positive, conservative scheme in which J = 0 exactly when
q_j = q_i e^Ω; how fast mass moves depends on W:

- midpoint, ∫ e^(-Φ) ≈ dist e^(-Φ(face)):  W = e^R, W e^(-Ω) = e^(-L), with Ω = R + L split at the face;
- Φ linear (Scharfetter-Gummel):           W = B(-Ω), W e^(-Ω) = B(Ω), B(x) = x / (e^x - 1).

The first is the more accurate for decay rates and transients where the grid resolves the law. The second has the
upwind limit W = Ω where the drift dominates; there the first would move mass exponentially fast.
"""

import numpy as np
from jaxtyping import Float

# An edge is resolved, and gets the midpoint weight, if |R| + |L| is at most this. Both weights are second order. Up to
# here the midpoint gave decay rates 3 to 100 times closer (Student law, κ = 0.2) and equally close stationary laws
# without detailed balance, at the price of an entropy production 5 times farther off. Beyond, it moves mass too fast:
# 2 sinh(Ω / 2) / Ω = 1.18 times at Ω = 2 and 6.8 times at Ω = 8.
resolved_edge = 2.0


def bernoulli(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """B(x) = x / (e^x - 1), to rounding for every x, with B(0) = 1; it underflows to 0 beyond x = 745."""
    size = np.abs(x)
    # B(-|x|) = |x| / (1 - e^-|x|), and B(|x|) = e^-|x| B(-|x|): nothing overflows.
    at_minus = np.where(size > 0, size / -np.expm1(-np.where(size > 0, size, 1.0)), 1.0)
    return np.where(x > 0, np.exp(-size) * at_minus, at_minus)


def edge_weights(
    right: Float[np.ndarray, "..."],
    left: Float[np.ndarray, "..."],
    resolved: float | Float[np.ndarray, "..."] = resolved_edge,
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """W and W e^(-Ω) of edges with the integrals of ω `right` = R, up to the face, and `left` = L, from there on."""
    midpoint = np.abs(right) + np.abs(left) <= resolved
    omega = right + left
    out = np.where(midpoint, np.exp(np.where(midpoint, right, 0.0)), bernoulli(-omega))
    back = np.where(midpoint, np.exp(np.where(midpoint, -left, 0.0)), bernoulli(omega))
    return out, back
