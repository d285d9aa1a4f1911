r"""The thermodynamic force a = D⁻¹(b - ∇·D) of a process with a full tensor D, and its integrals along edges.

The current is J = b ρ - ∇·(D ρ) = D (a ρ - ∇ρ). In equilibrium a = ∇ log ρ; its circulation is what drives currents.
Where D is degenerate, D⁻¹ is the pseudo-inverse, and J has one more term v ρ, v being the part of b - ∇·D along the
directions without diffusion.

All in units of cells: with the widths S of a cell, Dˢ = S⁻¹ D S⁻¹, aˢ = S a and vˢ = S⁻¹ v.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from ..process import AbstractDiffusion
from .coefficients import central_divergences, check_finite
from .process_values import at_points

# Gauss-Legendre nodes on a piece, as for diagonal tensors on half an edge.
_x, _w = np.polynomial.legendre.leggauss(4)
_nodes, _weights = 0.5 * (1 + _x), 0.5 * _w

# Pieces at a time: bounded memory, and one compiled program for all.
_pieces_at_a_time = 1 << 15

# An eigenvalue of Dˢ below this fraction of the largest counts as zero: far above the rounding of G Gᵀ, 1e-16, and so
# small that drift along its direction dominates diffusion in every cell, where the scheme is upwind in any case.
null = 1e-10
# Determinants of Dˢ / tr Dˢ above this have no such eigenvalue: with it they are below 1e-10.
_regular = 1e-9
# What rounding leaves of a drift that diffusion carries, as a fraction.
_rounding = 1e-11


class Force:
    """aˢ and vˢ of a process at any points."""

    def __init__(self, process: AbstractDiffusion):
        self.process = process

    def __call__(
        self, points: Float[np.ndarray, "n d"], sizes: Float[np.ndarray, "n d"]
    ) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
        """aˢ and vˢ at the points, in cells of the widths `sizes`."""
        drift, tensor, divergence = at_points(_parts, self.process, points)
        check_finite("drift", drift, points)
        check_finite("noise", tensor, points)
        rough = ~np.isfinite(divergence).all(axis=1)
        if np.any(rough):
            divergence = divergence.copy()
            divergence[rough] = central_divergences(self.process, points[rough], sizes[rough])
        scaled = tensor / (sizes[:, :, None] * sizes[:, None, :])
        return _split(scaled, (drift - divergence) / sizes, (np.abs(drift) + np.abs(divergence)) / sizes)

    def integrals(
        self,
        start: Float[np.ndarray, "n d"],
        end: Float[np.ndarray, "n d"],
        sizes: Float[np.ndarray, "n d"],
        wrap: Callable,
    ) -> tuple[Float[np.ndarray, " n"], bool]:
        """∫ a·dx along straight pieces, by four Gauss nodes, and whether all of the drift is carried by diffusion.

        `wrap` brings points beyond the faces of periodic axes back.
        """
        totals, carried = [np.zeros(0)], True
        for i in range(0, len(start), _pieces_at_a_time):
            these = slice(i, i + _pieces_at_a_time)
            x, step = start[these], end[these] - start[these]
            points = x[:, None] + _nodes[:, None] * step[:, None]
            size = np.repeat(sizes[these], len(_nodes), axis=0)
            a, v = self(wrap(points.reshape(size.shape)), size)
            carried = carried and not np.any(v)
            totals.append(np.sum((a / size).reshape(points.shape) * step[:, None], axis=2) @ _weights)
        return np.concatenate(totals), carried


def _parts(process: AbstractDiffusion, x):
    t = jnp.zeros((), x.dtype)
    tensor = lambda y: process.diffusion(t, y)  # noqa: E731
    return process.drift(t, x), tensor(x), jnp.trace(jax.jacfwd(tensor)(x), axis1=1, axis2=2)


def _split(
    tensor: Float[np.ndarray, "n d d"], drift: Float[np.ndarray, "n d"], size: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    # The vectors a and v with tensor @ a + v = drift, v without a part that the tensor carries.
    trace = np.trace(tensor, axis1=1, axis2=2)
    relative = tensor / np.where(trace > 0, trace, 1.0)[:, None, None]
    regular: Bool[np.ndarray, " n"] = np.linalg.det(relative) > _regular
    force, rest = np.zeros_like(drift), np.zeros_like(drift)
    force[regular] = np.linalg.solve(relative[regular], drift[regular][..., None])[..., 0] / trace[regular][:, None]
    if not np.all(regular):
        part = _pseudo_split(tensor[~regular], drift[~regular])
        force[~regular] = part[0]
        rest[~regular] = np.where(np.abs(part[1]) > _rounding * np.max(size[~regular], axis=1)[:, None], part[1], 0.0)
    return force, rest


def _pseudo_split(
    tensor: Float[np.ndarray, "n d d"], drift: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    values, vectors = np.linalg.eigh(tensor)
    carries = values > null * values[:, -1:]
    parts = np.einsum("nij,ni->nj", vectors, drift)
    force = np.where(carries, parts / np.where(carries, values, 1.0), 0.0)
    rest = np.where(carries, 0.0, parts)
    return np.einsum("nij,nj->ni", vectors, force), np.einsum("nij,nj->ni", vectors, rest)
