r"""Integrals along straight pieces of line, from which schemes on a line are exact and cut edges have their length.

Along a piece from x to x + Δ, 0 ≤ s ≤ 1, let Φ(s) = ∫_0^s Δᵀ D⁻¹ b ds and let |Δ| be its length. The current of
`weights` meets the resistance R = |Δ| ∫ e^(-Φ) ds. The function ψ(s) = ∫_0^s e^(-Φ) / ∫_0^1 e^(-Φ) solves Lψ = 0 on a
line, from 0 at x to 1 at the other end, and 1 - ψ is that part of the mass e^Φ / D of the piece which belongs to x:

    M = |Δ| ∫ (1 - ψ) e^Φ / D ds.

Both are sums of positive terms, given as logarithms: nothing cancels or overflows. On steep pieces Gauss-Legendre
nodes are moved towards the end at which an exponential integrand lives: if Φ is linear it may be of any steepness.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from .._tracing import Numbers, logsumexp, namespace
from ..grid import Grid
from ..process import AbstractDiffusion
from .assembly import Boundary
from .coefficients import coefficients
from .regions import wrapped

# Gauss-Legendre nodes on [0, 1]: the error falls with the eighth power of the length.
_x, _w = np.polynomial.legendre.leggauss(4)
_s, _weight = 0.5 * (1 + _x), 0.5 * _w
_to_powers = np.linalg.inv(np.vander(_s, increasing=True)).T


# Nodes are moved where Φ changes by more than this. Below, equal rules on all pieces are better: sums over the grid of
# a peak that they resolve converge faster than any power.
_steep = 4.0


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """For each piece Φ(1), and log R and log M as seen from either end: from the far one Φ is 0 there, too."""

    omega: Float[Numbers, " n"]
    log_resistance: Float[Numbers, " n"]
    log_mass: Float[Numbers, " n"]
    log_resistance_back: Float[Numbers, " n"]
    log_mass_back: Float[Numbers, " n"]


def integrate(
    process: AbstractDiffusion,
    grid: Grid,
    boundary: tuple[Boundary, ...],
    start: Float[np.ndarray, "n d"],
    step: Float[np.ndarray, "n d"],
) -> Pieces:
    """The integrals over the pieces from `start` to `start + step`, for diagonal D."""
    drift, diffusion = coefficients(process, wrapped(grid, boundary, piece_points(start, step)))
    return pieces_at(step, drift, diffusion)


def piece_points(start: Float[np.ndarray, "n d"], step: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m d"]:
    """The nodes at which `pieces_at` needs drift and diffusion, piece by piece."""
    return (start[:, None] + _s[:, None] * step[:, None]).reshape(-1, start.shape[1])


def pieces_at(step: Float[np.ndarray, "n d"], drift: Float[Numbers, "m d"], diffusion: Float[Numbers, "m d"]) -> Pieces:
    """`integrate` from b and the diagonal of D at the `piece_points`."""
    shape = (len(step), len(_s), step.shape[1])
    drift, diffusion = drift.reshape(shape), diffusion.reshape(shape)
    xp = namespace(drift, diffusion)
    slope = xp.sum(step[:, None] * drift / diffusion, axis=-1)
    log_length = np.log(np.linalg.norm(step, axis=1))
    log_inverse = xp.log(xp.sum(step[:, None] ** 2 / diffusion, axis=-1)) - 2 * log_length[:, None]
    forth = _resistance_and_mass(slope, log_inverse)
    # Nodes are symmetric. Taking Φ(1) off instead would leave nothing of the far end of a steep piece.
    back = _resistance_and_mass(-slope[:, ::-1], log_inverse[:, ::-1])
    return Pieces(slope @ _weight, *(a + log_length for a in (*forth, *back)))


def _resistance_and_mass(
    slope: Float[Numbers, "n q"], log_inverse: Float[Numbers, "n q"]
) -> tuple[Float[Numbers, " n"], Float[Numbers, " n"]]:
    """log R and log M without |Δ|, from dΦ/ds and log(1 / D) at the nodes."""
    xp = namespace(slope, log_inverse)
    # Polynomials in s through the nodes.
    phi = xp.pad(slope @ _to_powers / np.arange(1.0, len(_s) + 1), [(0, 0), (1, 0)])
    log_inverse = log_inverse @ _to_powers
    zero, one = np.zeros(len(phi)), np.ones(len(phi))
    omega = slope @ _weight
    s, log_w = _rule(xp.maximum(-omega, 0.0), zero, one)
    before, after = _log_integral(phi, xp.zeros_like(s), s), _log_integral(phi, s, xp.ones_like(s))
    share = after - xp.logaddexp(before, after)
    mass = logsumexp(log_w + _at(phi, s) + _at(log_inverse, s) + share, axis=-1)
    return _log_integral(phi, zero[:, None], one[:, None])[:, 0], mass + _layer(omega)


def _layer(omega: Float[Numbers, " n"]) -> Float[Numbers, " n"]:
    # Where Φ rises steeply, (1 - ψ) e^Φ is 1 - e^(-Ω(1-s)) times a smooth function. The rule does not see the layer at
    # s = 1: the logarithm of the ratio that makes it right for a linear Φ.
    xp = namespace(omega)
    rise = xp.where(omega > _steep, omega, 1.0)
    exact = 1 + xp.expm1(-rise) / rise
    seen = -xp.expm1(-rise[:, None] * (1 - _s)) @ _weight
    return xp.where(omega > _steep, xp.log(exact / seen), 0.0)


def _log_integral(
    phi: Float[Numbers, "n powers"], low: Float[Numbers, "n k"], high: Float[Numbers, "n k"]
) -> Float[Numbers, "n k"]:
    """The logarithm of ∫ e^(-Φ) ds from `low` to `high`."""
    s, log_w = _rule(_at(phi, high) - _at(phi, low), low, high)
    values = _at(phi, s.reshape(len(phi), -1)).reshape(s.shape)
    return logsumexp(log_w - values, axis=-1)


def _rule(
    omega: Float[Numbers, "*n"], low: Float[Numbers, "*n"], high: Float[Numbers, "*n"]
) -> tuple[Float[Numbers, "*n q"], Float[Numbers, "*n q"]]:
    """Nodes and log weights from `low` to `high`; exact for e^(-Ωσ), 0 ≤ σ ≤ 1 being the part of the way, if steep.

    Then the variable t with dt ∝ e^(-|Ω|σ) dσ, σ from the end where the integrand is large, has Gauss-Legendre nodes.
    """
    xp = namespace(omega, low, high)
    size = xp.abs(omega)[..., None]
    steep = size > _steep
    a = xp.where(steep, size, 1.0)
    sigma = xp.where(steep, -xp.log1p(_s * xp.expm1(-a)) / a, _s)
    log_slope = xp.where(steep, xp.log(-xp.expm1(-a) / a) + a * sigma, 0.0)
    length = (high - low)[..., None]
    s = xp.where(omega[..., None] >= 0, low[..., None] + length * sigma, high[..., None] - length * sigma)
    # Nodes may coincide with an end: then there is nothing between.
    there = length > 0
    return s, xp.where(there, xp.log(_weight * xp.where(there, length, 1.0)), -np.inf) + log_slope


def _at(polynomial: Float[Numbers, "n powers"], s: Float[Numbers, "n k"]) -> Float[Numbers, "n k"]:
    value = namespace(polynomial, s).zeros_like(s)
    for coefficient in polynomial.T[::-1]:
        value = value * s + coefficient[:, None]
    return value
