"""An explicit Runge-Kutta method of weak order 2, for every form of noise."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..process import noise_structure
from .method import AbstractMethod
from .probing import is_additive, is_separable

# m(m-1)/2 signs and 2m + 2 evaluations of G a step.
_most_motions = 32


class WeakRK2(AbstractMethod):
    """Platen's explicit weak scheme: x' = x + ½ (b + b(t + dt, x + b dt + G dW)) dt + N, with N made from values of G.

    For noise that does not commute, with R = x + b dt, R_r± = R ± g_r √dt and g_r the r-th column of G,

        N = ½ (G + (1 - m) G(R)) dW + ¼ Σ_r [(G(R_r+) + G(R_r-)) dW + (G(R_r+) - G(R_r-)) (dW_r dW + V_r) / √dt],

    all but the first G at t + dt. The V_r, rows of an antisymmetric matrix of signs ±dt less dt I, replace Lévy areas.
    Terms are collected such that one pair of points serves a motion; Platen's own scheme takes two. Cost a step: two
    drifts and

    - constant noise, one motion, or a diagonal G whose i-th entry depends on x_i alone: 3 evaluations of G;
    - G = s(x) I with d ≥ 2, as in loss-proportional noise: 3 of s and its gradient, and 2d numbers. What multiplies
      V_r is known from ∇s, and Σ_r ∂_r² s is estimated without bias along one direction of signs;
    - any other G: 2m + 2 evaluations of G and m(m+1)/2 numbers, at most 32 motions.

    Strong order 1/2, weak order 2: for expectations at a finite time, at steps well below the relaxation time. *Not*
    for invariant laws at large steps, whose tails it cuts off, nor for paths. G must be smooth: the root of a loss is
    not where the loss is 0.

    Source: Kloeden and Platen, *Numerical Solution of Stochastic Differential Equations*, 1992, section 15.1.
    """

    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 2.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "ito"

    def needs(self, process, x):
        kind, m = noise_structure(process, x[0])
        if m == 1 or is_additive(process, x) or (kind == "diagonal" and is_separable(process, x)):
            return "increment"
        if kind == "isotropic":
            return "time"
        if m > _most_motions:
            raise ValueError(
                f"`WeakRK2` evaluates this noise twice for each of its {m} Brownian motions, and is limited to "
                f"{_most_motions}. Use `EulerMaruyama`, or return the noise as a scalar if it is a multiple of the "
                "identity."
            )
        return "signs"

    def step(self, process, t, x, dt, increment):
        b = process.drift(t, x)
        end, moved = t + dt, x + b * dt
        predicted = process.drift(end, moved + process.noise(t, x).mv(increment.dw))
        if increment.dz is not None:
            noise = _isotropic(process, t, x, dt, increment, moved)
        elif increment.signs is not None:
            noise = _general(process, t, x, dt, increment, moved)
        else:
            noise = _commuting(process, t, x, dt, increment, moved)
        return x + 0.5 * dt * (b + predicted) + noise


def _commuting(process, t, x, dt, increment, moved):
    """Noise of columns that do not act on each other: all may be shifted at once."""
    dw, root = increment.dw, jnp.sqrt(dt)
    operator = process.noise(t, x)
    shift = root * operator.mv(jnp.ones_like(dw))
    tilt = (dw**2 - dt) / root
    ahead = process.noise(t + dt, moved + shift).mv(dw + tilt)
    behind = process.noise(t + dt, moved - shift).mv(dw - tilt)
    return 0.25 * (2 * operator.mv(dw) + ahead + behind)


def _isotropic(process, t, x, dt, increment, moved):
    def s(t, y):
        return process.noise(t, y).mv(jnp.ones_like(y))[0]

    dw = increment.dw
    # What ∫ W ds has of its own, as standard normal numbers independent of dw.
    z = jnp.sqrt(12 / dt**3) * (increment.dz - 0.5 * dt * dw)
    s_x, gradient = jax.value_and_grad(s, argnums=1)(t, x)
    shift = jnp.sqrt(dt) * s_x * jnp.where(z < 0, -1, 1).astype(x.dtype)
    along = 0.25 * (2 * s_x + s(t + dt, moved + shift) + s(t + dt, moved - shift)) * dw
    v = s_x * gradient
    norm = jnp.sqrt(v @ v)
    # Σ_r v_r V_r without its mean has the covariance dt² (|v|² I - v vᵀ).
    across = norm * z - (v @ z) / jnp.where(norm > 0, norm, 1.0) * v
    return along + 0.5 * ((v @ dw) * dw - dt * v + dt * across)


def _general(process, t, x, dt, increment, moved):
    dw, m, root = increment.dw, increment.dw.size, jnp.sqrt(dt)
    operator = process.noise(t, x)
    tilts = (jnp.outer(dw, dw) + _areas(dt, increment.signs, m)) / root

    def at(y, w):
        return process.noise(t + dt, y).mv(w)

    def pair(column, tilt):
        return at(moved + root * column, dw + tilt) + at(moved - root * column, dw - tilt)

    pairs = jax.vmap(pair)(operator.as_matrix().T, tilts)
    return 0.5 * (operator.mv(dw) + (1 - m) * at(moved, dw)) + 0.25 * jnp.sum(pairs, axis=0)


def _areas(dt, signs, m: int) -> Float[Array, "m m"]:
    """The matrix V: independent signs ±dt above the diagonal, their opposites below, and -dt on it."""
    upper = jnp.zeros((m, m), signs.dtype).at[np.triu_indices(m, 1)].set(signs)
    return dt * (upper - upper.T - jnp.eye(m, dtype=signs.dtype))
