"""The invariant law f^(-p) on R^n × R^k with the minimisers {z = 0}, seen along them at a finite temperature.

Coordinates are x = (φ, z) with φ in R^n and z in R^k; f vanishes at z = 0 and is quadratic across. The marginal of φ
integrates f^(-p) over the whole fibre of z. It tends to det(H)^{-1/2} as κ ↓ κ_c = 2/(k-2), with a correction of first
order in ε = k/2 - p that depends on f far from the minimisers:

    marginal ∝ det(H)^{-1/2} [1 + εR(φ) + O(ε²)].

For constant noise the correction is O(T), and local.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from scipy.special import roots_gegenbauer

from solvers import Density, Grid
from solvers.grid import evaluate

from .._checks import scalar_valued
from ._checked import positive, whole
from .manifold import cell_nodes, require_supercritical
from .sphere import sphere_area


def fibre_density(loss: Callable, grid: Grid, codim: int, temperature) -> Density:
    """The law of φ, on `grid` (and normalised there), under f^(-p), p = 1 + 1/κ; `loss` is a function of (φ, z).

    Relative errors are near 1e-6 for smooth losses. `ValueError` unless κ > κ_c and f grows fast enough along the
    fibres, like |z|^γ with pγ > k. Needs 64-bit JAX.
    """
    k, p = whole("codim", codim), 1 + 1 / positive("temperature", temperature)
    require_supercritical(temperature, k)
    points, quadrature = cell_nodes(grid)
    log_mass, log_last = evaluate(_log_fibre_mass(scalar_valued(loss), k, p), points).T
    if not np.all(log_last < log_mass - _vanished):
        raise ValueError(
            f"f^(-p) with p={p:.6g} cannot be integrated far out along the fibre at φ = "
            f"{points[np.argmax(log_last - log_mass)]}: f must grow like |z|^γ, pγ > k."
        )
    density = np.exp(log_mass - np.max(log_mass)).reshape(grid.size, -1) @ quadrature
    mass = density.reshape(grid.shape) * grid.volumes
    return Density(grid, mass / mass.sum())


def fibre_correction(loss: Callable, phi, codim: int) -> float:
    """R(φ) = lim_{δ→0} {(√det H/c_k) ∫_{f>δ} f^{-k/2} dz + log δ}, c_k = |S^{k-1}| 2^{k/2-1}: the correction per ε.

    Only differences between points matter. For f = λ(φ)g(z) it is log λ plus a constant, as then the marginal is
    λ^{-p}. `ValueError` unless f^{-k/2} is integrable far out.
    """
    k, phi = whole("codim", codim), jnp.atleast_1d(jnp.asarray(phi, jnp.float64))
    f = scalar_valued(loss)
    directions, weights, r, steps = _polar(k)
    logs = k * jnp.log(r) - 0.5 * k * jax.jit(lambda phi: _log_values(f, phi, directions, r)[1])(phi)
    if not float(jnp.max(logs[:, -1])) < -_vanished:
        raise ValueError("f^(-k/2) cannot be integrated far out along the fibre: f must grow faster than |z|².")
    outer = jnp.sum(weights[:, None] * steps * jnp.exp(logs))
    # Below the first radius f is r²/2, down to where it is δ; the terms in log δ cancel.
    inner = sphere_area(k) * 2 ** (0.5 * k) * (math.log(_inner) - 0.5 * math.log(2))
    return float((outer + inner) / (sphere_area(k) * 2 ** (k / 2 - 1)))


def _log_fibre_mass(f: Callable, k: int, p: float) -> Callable:
    """φ -> (log ∫ f^(-p) dz, log of the part at the last radius)."""
    directions, weights, r, steps = _polar(k)
    epsilon = 0.5 * k - p
    inner = math.log(sphere_area(k)) + p * math.log(2) + 2 * epsilon * math.log(_inner) - math.log(2 * epsilon)

    def at(phi: Float[Array, " n"]):
        log_volume, values = _log_values(f, phi, directions, r)
        logs = k * jnp.log(r) - p * values + jnp.log(weights)[:, None]
        mass = jnp.logaddexp(logsumexp(logs + jnp.log(steps)), inner)
        return log_volume + jnp.stack([mass, logsumexp(logs[:, -1])])

    return at


def _log_values(f: Callable, phi, directions, r) -> tuple[Float[Array, ""], Float[Array, "m r"]]:
    """log det(H)^{-1/2}, and log f at z = L^{-T}w for H = LLᵀ and w of every direction and radius.

    In w the loss is |w|²/2 near 0, whatever H is: few directions suffice.
    """
    k = directions.shape[1]
    L = jnp.linalg.cholesky(jax.hessian(lambda z: f(jnp.concatenate([phi, z])))(jnp.zeros(k)))
    ways = solve_triangular(L, directions.T, lower=True, trans=1).T

    def at(way, radius):
        return jnp.log(f(jnp.concatenate([phi, radius * way])))

    return -jnp.sum(jnp.log(jnp.diagonal(L))), jax.vmap(lambda way: jax.vmap(lambda s: at(way, s))(r))(ways)


def _polar(k: int):
    """Directions on the sphere with weights, radii, and steps of log radius."""
    directions, weights = _sphere_rule(k)
    x, w = np.polynomial.legendre.leggauss(_nodes)
    edges = np.linspace(math.log(_inner), _outer, _panels + 1)
    half = 0.5 * np.diff(edges)[:, None]
    logs = 0.5 * (edges[1:] + edges[:-1])[:, None] + half * x
    arrays = directions, weights, np.exp(logs).ravel(), (half * w).ravel()
    return tuple(jnp.asarray(a) for a in arrays)


def _sphere_rule(k: int) -> tuple[Float[np.ndarray, "m k"], Float[np.ndarray, " m"]]:
    """A product rule on S^{k-1}: equidistant angles on the circle, Gauss-Gegenbauer in every further coordinate."""
    if k == 1:
        return np.array([[1.0], [-1.0]]), np.ones(2)
    angle = 2 * np.pi * np.arange(2 * _directions) / (2 * _directions)
    points, weights = np.stack([np.cos(angle), np.sin(angle)], axis=1), np.full(len(angle), np.pi / _directions)
    for dim in range(3, k + 1):
        t, w = roots_gegenbauer(_directions, dim / 2 - 1) if dim > 3 else np.polynomial.legendre.leggauss(_directions)
        ring = np.sqrt(1 - t**2)[:, None, None] * points
        points = np.concatenate([ring, np.broadcast_to(t[:, None, None], (*ring.shape[:2], 1))], axis=2).reshape(
            -1, dim
        )
        weights = np.outer(w, weights).ravel()
    return points, weights


# Radii from 1e-4, below which f is quadratic to 1e-8, to e^40; Gauss panels in their logarithm; directions an axis.
_inner, _outer, _panels, _nodes, _directions = 1e-4, 40.0, 40, 6, 6

# The integrand at the last radius must be below e^{-20} of the integral.
_vanished = 20.0
