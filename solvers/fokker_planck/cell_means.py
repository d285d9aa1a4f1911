r"""The mean of the stationary law over a cell, relative to its value at the centre, from drift and diffusion alone.

Along axis k through the centre of a cell, at detailed balance, log π = Φ - log D_kk + const, with Φ the integral of
ω = b_k / D_kk from the centre. Φ at the Gauss nodes of the two halves of the cell is the integral of the polynomial
through the values of ω there. That is Gauss collocation for Φ' = ω and the integral of π together, of order 2q for q
nodes (Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, II.7), so that

    a_k = (1 / width) ∫ e^Φ D_kk(centre) / D_kk dx

has an error of order 8 in the width. In more dimensions the mean is a = Π a_k, with an error of order 4, or none if π
is a product. A cell of volume V then has the mass a V π(centre), right to that order instead of the second.

The current through a face meets the law's mean over the face. The midpoint weight is that of a point of the face and
has to be multiplied by it: the geometric mean of a over the two cells, without the factors of the axis that crosses the
face, so that coordinates which do not see each other stay independent. Where Φ is linear the midpoint weight divided by
a is Scharfetter and Gummel's, and follows the drift exactly; that weight itself must not be divided once more, and is
multiplied by the geometric mean of all factors.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from .._tracing import Numbers, logsumexp, namespace

# Where log π changes across a cell by more than the limit up to which an edge counts as resolved, the mean may be
# exp(100) times the value at the centre, and rates that were to have such masses would not follow the drift. From
# `_fades` times this limit on log a is reduced, to none at `_gone` times. Of (1, 2), (2, 4) and (4, 8) these gave the
# closest transients of an Ornstein-Uhlenbeck process whose law is 1 to 4 cells wide.
_fades, _gone = 1.0, 2.0


def log_axis_means(
    omega: Float[Numbers, "..."],
    diffusion: Float[Numbers, "..."],
    centre: Float[Numbers, "..."],
    length: Float[np.ndarray, "n 2"],
    axis: int,
    resolved: float,
    known: Any = 0.0,
) -> Float[Numbers, "..."]:
    """log a_k of each cell, reduced to zero where the grid does not resolve the law.

    From ω and D_kk at the nodes, (n, 2, q) in place of the axis k of n cells: on the low half and on the high half of
    each cell, of that `length`; and from D_kk at the centres. An edge counts as resolved if Φ changes by less than
    `resolved` along it. What is `known` of Φ in closed form, at the nodes, is not part of ω.
    """
    xp = namespace(omega, diffusion)
    omega, diffusion = (xp.moveaxis(v, (axis, axis + 1, axis + 2), (-3, -2, -1)) for v in (omega, diffusion))
    centre = xp.moveaxis(centre, axis, -1)
    slope = omega * length[..., None]
    log_d = xp.log(diffusion / centre[..., None, None])
    primitive, weight = _primitive(omega.shape[-1])
    phi = xp.einsum("hjm,...nhm->...nhj", primitive, slope)
    share = np.log(weight) + np.log(length / length.sum(axis=1, keepdims=True))[..., None]
    log_mean = xp.asarray(logsumexp(phi + known - log_d + share, axis=(-2, -1)))
    change = xp.abs(slope @ weight).sum(axis=-1) + xp.ptp(log_d, axis=(-2, -1))
    return xp.moveaxis(log_mean * _kept(change / resolved), -1, axis)


def face_means(
    log_means: tuple[Float[Numbers, "..."], ...], k: int, midpoint: Bool[Numbers, "..."]
) -> tuple[Float[Numbers, "..."], Float[Numbers, "..."], Float[Numbers, "..."]]:
    """log a of the cells below and above each face of axis k, and what log W is to be raised by there.

    All with axis k last; `midpoint` tells the edges with that weight. The last face leads to the first cell.
    """
    xp = namespace(midpoint, *log_means)
    log_a, along = (xp.moveaxis(m, k, -1) for m in (sum(log_means[1:], log_means[0]), log_means[k]))
    log_a_after, along_after = (xp.roll(m, -1, axis=-1) for m in (log_a, along))
    geometric = 0.5 * (log_a + log_a_after)
    return log_a, log_a_after, geometric - xp.where(midpoint, 0.5 * (along + along_after), 0.0)


def _kept(change: Float[Numbers, "..."]) -> Float[Numbers, "..."]:
    s = namespace(change).clip((change - _fades) / (_gone - _fades), 0.0, 1.0)
    return 1 - s * s * (3 - 2 * s)


def _primitive(nodes: int) -> tuple[Float[np.ndarray, "2 q q"], Float[np.ndarray, " q"]]:
    # S with Φ_j = length · Σ_m S_jm ω_m, from the centre to node j of the half below it and of that above; weights.
    x, w = np.polynomial.legendre.leggauss(nodes)
    x, w = 0.5 * (1 + x), 0.5 * w
    powers = np.arange(1, nodes + 1)
    # Integrals from 0 of the polynomials that are 1 at one node and 0 at the others.
    from_low_end = (x[:, None] ** powers / powers) @ np.linalg.inv(np.vander(x, increasing=True))
    return np.stack([from_low_end - w, from_low_end]), w
