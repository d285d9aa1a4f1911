"""The longest step with which a method is stable on a process, found by asking the method."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from ..process import AbstractDiffusion, Diffusion
from .brownian import increment, numbers_per_step
from .method import AbstractMethod

# States at which drift is made linear, half of them the farthest out; Jacobians of larger states are not formed.
_most_points, largest_dimension = 16, 64

# Modes of largest modulus that are looked at, and steps as parts of the one that was taken.
_most_modes = 32
_parts = 2.0 ** np.arange(-6, 3.25, 0.25)

# Growth of a decaying mode in a step by more than that is no rounding, in float32 either.
_growth = 1 + 1e-5


def modes(process: AbstractDiffusion, t: float, xs: Float[np.ndarray, "n d"]) -> Complex[np.ndarray, " k"]:
    """Eigenvalues with negative real part of the drift's Jacobian at some of the states, the fastest ones."""
    order = np.argsort(np.linalg.norm(xs, axis=1))
    far, some = order[-(_most_points // 2) :], order[:: -(-len(order) // (_most_points // 2))]
    points = xs[np.unique(np.concatenate([far, some]))]
    time = jnp.asarray(t, points.dtype)
    jacobians = jax.jit(jax.vmap(jax.jacfwd(lambda x: process.drift(time, x))))(jnp.asarray(points))
    found = np.linalg.eigvals(np.asarray(jacobians, np.float64)).ravel()
    found = found[found.real < 0].astype(np.complex128)
    return found[np.argsort(-np.abs(found))[:_most_modes]]


def longest_step(method: AbstractMethod, dt: float, rates: Complex[np.ndarray, " k"], dtype: Any) -> float:
    """The longest step below which no mode dX = λX grows, as far as a range of 1/64 to 8 times `dt` shows it.

    Infinite if none grows in the range, and 0 if some grow at all steps. Without noise: what noise does to stability in
    the mean square is not seen.
    """
    scaled = (rates[:, None] * _parts).ravel()
    start = np.stack([np.ones(scaled.size), np.zeros(scaled.size), scaled.real, scaled.imag], axis=1).astype(dtype)
    end = _after_a_step(method, jnp.asarray(start), jnp.asarray(dt, dtype))
    grows = ~(np.hypot(end[:, 0], end[:, 1]) <= _growth).reshape(len(rates), len(_parts))
    unstable = np.flatnonzero(grows.any(axis=0))
    if unstable.size == 0:
        return np.inf
    return 0.0 if unstable[0] == 0 else float(dt * _parts[unstable[0] - 1])


def _after_a_step(method: AbstractMethod, x: Float[Array, "n 4"], dt: Float[Array, ""]) -> Float[np.ndarray, "n 4"]:
    process = Diffusion(_linear, _none)
    need = method.needs(process, x[:1])
    # Of the Brownian motion that stays where it is.
    still = increment(need, x.shape[1], dt, jnp.zeros(numbers_per_step(need, x.shape[1], float(dt)), x.dtype))
    t = jnp.zeros_like(dt)
    return np.asarray(jax.jit(jax.vmap(lambda x: method.step(process, t, x, dt, still)))(x))


def _linear(t: Array, x: Float[Array, "4"]) -> Float[Array, "4"]:
    """The complex mode u' = λu, with λ a part of the state."""
    u, v, a, b = x
    return jnp.stack([a * u - b * v, b * u + a * v, jnp.zeros_like(a), jnp.zeros_like(b)])


def _none(t: Array, x: Float[Array, "4"]) -> Float[Array, ""]:
    return jnp.zeros((), x.dtype)
