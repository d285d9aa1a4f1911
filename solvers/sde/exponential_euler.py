"""The exponential Euler method, exact in law where the drift is linear and the noise constant."""

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..process import noise_structure
from .method import AbstractMethod

# Taylor series are summed where dt |J| ≤ 1/2, up to 1/17! of the first term: below the rounding of float64.
_terms = 17


def _square(linear) -> Float[Array, "d d"] | None:
    if linear is None:
        return None
    matrix = jnp.asarray(linear)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise ValueError(
            f"`linear` of `ExponentialEuler` must be a square matrix of floating dtype, got shape {matrix.shape}, "
            f"{matrix.dtype}."
        )
    return matrix


class ExponentialEuler(AbstractMethod):
    """Exponential Euler: x' = x + φ₁(J dt) b(t, x) dt + ξ, with φ₁(z) = (e^z - 1)/z and J the Jacobian ∂b/∂x at (t, x).

    ξ is normal with the covariance ∫₀^dt e^{Js} G Gᵀ e^{Jᵀs} ds. So a step is *exact in law* for every dt where
    dX = (A X + a) dt + G dB with constant A, a and G, whether A is symmetric, stable, stiff or none of these: in
    particular for SGD on a quadratic loss. In general J and G are frozen for a step. `ExponentialEuler(linear=A)` takes
    J = A everywhere, for a drift A x + n(x) with n small or slow: no derivatives, and one matrix exponential a step
    for all paths if G is constant too.

    ξ is the linear map of the increments with this covariance that is nearest to ∫₀^dt e^{J(dt-s)} G dW. It takes dW if
    m ≥ d, dW and ∫ W ds if d ≤ 2m, as for a momentum without noise on the position; for still fewer motions add columns
    of zeros to G.

    Strong order 1/2 (1 when G is constant), weak order 1. Stable at every dt for linear stiff drifts, and for nonlinear
    ones as far as J says what the drift does within a step: not across the steep walls of a quartic loss.

    For small d: dense matrices of size d × d, some 70 products of them and two decompositions a step and path, unless
    J and G do not depend on x; then a step of all paths does it once.

    Source for the drift: Hochbruck and Ostermann, "Exponential integrators", Acta Numerica 19, 2010.
    """

    linear: Float[Array, "d d"] | None = eqx.field(default=None, converter=_square)

    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 1.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "ito"

    def needs(self, process, x):
        _, m = noise_structure(process, x[0])
        d = x.shape[1]
        if self.linear is not None and self.linear.shape != (d, d):
            raise ValueError(
                f"`linear` of `ExponentialEuler` must have shape {(d, d)} for states of shape {(d,)}, got "
                f"{self.linear.shape}."
            )
        if d > 2 * m:
            raise ValueError(
                f"`ExponentialEuler` needs at least d/2 Brownian motions to have the covariance of a step in d={d} "
                f"dimensions, and this noise has {m}. Return it as a matrix of shape {(d, d)} with columns of zeros."
            )
        return "increment" if m >= d else "time"

    def step(self, process, t, x, dt, increment):
        def drift(y):
            return process.drift(t, y)

        jacobian = jax.jacfwd(drift)(x) if self.linear is None else self.linear.astype(x.dtype)
        g = process.noise(t, x).as_matrix()
        mean, weighted, covariance = propagators(jacobian, g @ g.T, dt)
        numbers, nearest = increment.dw / jnp.sqrt(dt), mean @ g / jnp.sqrt(dt)
        if increment.dz is not None:
            # What ∫ W ds has of its own, as standard normal numbers.
            rest = jnp.sqrt(12 / dt**3) * (increment.dz - 0.5 * dt * increment.dw)
            numbers = jnp.concatenate([numbers, rest])
            nearest = jnp.concatenate([nearest, jnp.sqrt(12 / dt**3) * (weighted - 0.5 * dt * mean) @ g], axis=1)
        return x + mean @ drift(x) + _nearest_factor(covariance, nearest) @ numbers


def propagators(
    a: Float[Array, "d d"], c: Float[Array, "d d"], dt: Float[Array, ""]
) -> tuple[Float[Array, "d d"], Float[Array, "d d"], Float[Array, "d d"]]:
    """∫₀^dt e^{As} ds, ∫₀^dt s e^{As} ds and ∫₀^dt e^{As} C e^{Aᵀs} ds.

    By Taylor series for a fraction of dt, doubled until it is dt: no difference of large terms, and no inverse of A.
    """
    norm = dt * jnp.max(jnp.sum(jnp.abs(a), axis=0))
    doublings = jnp.where(norm > 0.5, jnp.ceil(jnp.log2(2 * norm)), 0)
    # NaN, from a path that has blown up, ends as NaN and not as a loop without end.
    doublings = jnp.where(jnp.isfinite(doublings), doublings, 0).astype(jnp.int32)
    h = dt * 2.0 ** (-doublings).astype(dt.dtype)
    eye = jnp.eye(a.shape[0], dtype=a.dtype)

    def add(n, state):
        power, term, mean, weighted, covariance = state
        n = n.astype(dt.dtype)
        power = a @ power * (h / n)
        term = (a @ term + term @ a.T) * (h / n)
        return power, term, mean + power, weighted + h * n / (n + 1) * power, covariance + term

    power, term = h * eye, h * c
    state = power, term, power, 0.5 * h * power, term
    _, _, mean, weighted, covariance = lax.fori_loop(jnp.asarray(2), _terms + 1, add, state)

    def double(_, state):
        h, grown, mean, weighted, covariance = state
        # With e^{Ah} - I instead of e^{Ah}, as many doublings lose no digits.
        weighted = 2 * weighted + h * mean + grown @ (weighted + h * mean)
        covariance = covariance + (eye + grown) @ covariance @ (eye + grown).T
        return 2 * h, 2 * grown + grown @ grown, 2 * mean + grown @ mean, weighted, covariance

    _, _, mean, weighted, covariance = lax.fori_loop(0, doublings, double, (h, a @ mean, mean, weighted, covariance))
    return mean, weighted, covariance


def _nearest_factor(covariance: Float[Array, "d d"], nearest: Float[Array, "d k"]) -> Float[Array, "d k"]:
    """The L with L Lᵀ the covariance for which L z is nearest to the given matrix times z, in the mean square.

    Distances are in standard deviations of each coordinate, which may differ by powers of dt. Needs k ≥ d.
    """
    scale = jnp.sqrt(jnp.diag(covariance))
    scale = jnp.where(scale == 0, 1, scale)[:, None]
    values, vectors = jnp.linalg.eigh(covariance / (scale * scale.T))
    # Rounding may leave a zero below zero.
    root = vectors * jnp.sqrt(jnp.maximum(values, 0)) @ vectors.T
    u, _, v = jnp.linalg.svd(root @ (nearest / scale), full_matrices=False)
    return scale * (root @ u @ v)
