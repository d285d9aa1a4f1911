r"""Mean exit times from balls of a rotationally symmetric process, by quadrature of the exact formula

    τ(r) = ∫_r^R e^(-Φ(y)) y^(1-d) ∫_0^y z^(d-1) e^(Φ(z)) / D_r(z) dz dy,

with Φ' = b / D_r + (d - 1)(D_t / D_r - 1) / r, which is regular at 0. Both integrals are sums of positive terms on
panels along which the integrands change by a bounded factor, in logarithms: times of 1e100 are as accurate as those
of 1.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import roots_sh_jacobi

from ..grid import evaluate

# Gauss-Legendre nodes of a panel for the result, and of a coarser rule that tells its error.
_nodes, _coarse_nodes = 8, 6

# The logarithms of the integrands change by at most this along a panel; and the number of panels is bounded.
_change = 1.0
_most_panels = 200_000


def exit_times(
    part, starts: Float[np.ndarray, " n"], radius: float
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Mean times to reach `radius` from the distances `starts`, all below, and an estimate of their errors.

    Raises `ArithmeticError` beyond 1e308.
    """
    edges = _panels(part, np.unique(np.concatenate([[0.0], starts, [radius]])))
    log_fine, log_coarse = (_log_times(part, edges, q)[np.searchsorted(edges, starts)] for q in (_nodes, _coarse_nodes))
    if not np.max(log_fine) < np.log(np.finfo(np.float64).max):
        raise ArithmeticError(
            "A mean exit time is beyond 1e308, the largest number of float64: the ball is practically never left. "
            "Raise the noise or make the ball smaller."
        )
    times = np.exp(log_fine)
    rounding = np.finfo(np.float64).eps * (len(edges) + np.abs(log_fine))
    return times, times * (np.abs(np.expm1(log_coarse - log_fine)) + rounding)


def _coefficients(part, r: Float[np.ndarray, "p q"]) -> tuple[Float[np.ndarray, "p q"], Float[np.ndarray, "p q"]]:
    # Φ' and D_r.
    def at(x):
        drift, radial, tangential = part.parts(jnp.zeros(()), x[0])
        return jnp.stack([drift / radial + part.surface_power * (tangential / radial - 1) / x[0], radial])

    values = evaluate(at, r.reshape(-1, 1)).reshape(*r.shape, 2)
    return values[..., 0], values[..., 1]


def _panels(part, edges: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """Each interval in so many geometric parts, or equal ones in the first, that integrands change by little."""
    xi, w = (0.5 * a for a in np.polynomial.legendre.leggauss(_nodes))
    low, length = edges[:-1, None], np.diff(edges)[:, None]
    slope, diffusion = _coefficients(part, low + length * (0.5 + xi))
    change = (np.abs(slope) * length) @ w + np.ptp(np.log(diffusion), axis=1)
    change[1:] += part.surface_power * np.log(edges[2:] / edges[1:-1])
    parts = np.ceil(np.maximum(change, 1.0) / _change)
    if not np.sum(parts) <= _most_panels:
        raise ValueError(
            f"The ball would need {np.sum(parts):.3g} panels, more than {_most_panels}: the drift is too strong for "
            "its noise there. Make the ball smaller."
        )
    if parts[0] > 1:
        return _panels(part, np.unique(np.concatenate([edges[1] * np.arange(1, parts[0]) / parts[0], edges])))
    pieces = [edges[:1]]
    for a, b, n in zip(edges[:-1], edges[1:], parts.astype(int), strict=True):
        inner = a * (b / a) ** (np.arange(1, n) / n) if a > 0 else []
        pieces += [np.append(inner, b)]
    return np.concatenate(pieces)


def _log_times(part, edges: Float[np.ndarray, " n"], nodes: int) -> Float[np.ndarray, " n"]:
    """log τ at the edges of the panels."""
    power = part.surface_power
    xi, w = np.polynomial.legendre.leggauss(nodes)
    xi, w = 0.5 * (1 + xi), 0.5 * w
    powers = np.arange(1, nodes + 1)
    to_powers = np.linalg.inv(np.vander(xi, increasing=True))
    within = (xi[:, None] ** powers / powers) @ to_powers
    length = np.diff(edges)
    y = edges[:-1, None] + length[:, None] * xi
    slope, diffusion = _coefficients(part, y)
    slope = slope * length[:, None]
    phi, rise = slope @ within.T, slope @ w
    # What is inside of y, relative to e^Φ y^(d-1) where the panel begins: first the panel's own part.
    log_surface = power * np.log(y[1:] / edges[1:-1, None])
    density = np.exp(phi[1:] + log_surface) / diffusion[1:] * length[1:, None]
    own, whole = density @ within.T, density @ w
    # Around 0, y^d ∫ s^(d-1) e^Φ(ys) / D(ys) ds by Gauss-Jacobi nodes; relative to e^Φ y^(d-1).
    s, weight = roots_sh_jacobi(nodes, power + 1, power + 1)
    ends = np.append(xi, 1.0) * edges[1]
    inner = ends[:, None] * s
    at = lambda r: ((r[..., None] / edges[1]) ** powers / powers) @ (to_powers @ slope[0])  # noqa: E731
    ratio = np.exp(at(inner) - at(ends)[:, None]) / _coefficients(part, inner)[1]
    first = ends * (ratio @ weight)
    # u = (inner integral) / (e^Φ y^(d-1)) from panel to panel.
    fall = np.exp(-rise[1:] - power * np.log(edges[2:] / edges[1:-1]))
    begin = np.empty(len(length) - 1)
    u = float(first[-1])
    for i, (f, total) in enumerate(zip(fall.tolist(), whole.tolist(), strict=True)):
        begin[i] = u
        u = (u + total) * f
    with np.errstate(over="ignore", invalid="ignore"):
        rate = np.concatenate([first[None, :-1], (begin[:, None] + own) * np.exp(-phi[1:] - log_surface)])
        steps = (rate @ w) * length
    with np.errstate(divide="ignore"):
        return np.append(np.log(np.cumsum(steps[::-1])[::-1]), -np.inf)
