"""Identities that hold in any stationary state: is a run, or a density, stationary? Each gives both sides.

`expect` is an average over the stationary law: `Density.expect`, or `lambda fn: np.mean(jax.vmap(fn)(samples), 0)`.
Itô, t = η · steps. The moments must be finite; for power laws with heavy tails they need not be.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._checked import positive


class Relation(NamedTuple):
    """The two sides of an identity; equal in the stationary state."""

    left: float
    right: float


def discrete(positions, gradients, learning_rate) -> Relation:
    """E θ·g = (η/2) E|g|² for SGD at any learning rate η, loss and noise (Yaida 2018): from E|θ⁺|² = E|θ|².

    `positions` (n, d) are the θ where the stochastic `gradients` (n, d) were taken, not where the steps led. A shift of
    the origin changes the left side by a multiple of E g = 0.
    """
    theta, g = (np.asarray(a, dtype=np.float64) for a in (positions, gradients))
    if theta.ndim != 2 or theta.shape != g.shape:
        raise ValueError(
            f"`positions` and `gradients` must both have the shape (n, d), but have {theta.shape} and {g.shape}."
        )
    left = float(np.mean(np.sum(theta * g, axis=1)))
    return Relation(left, 0.5 * positive("learning_rate", learning_rate) * float(np.mean(np.sum(g * g, axis=1))))


def virial(loss: Callable, diffusion: Callable, expect: Callable) -> Relation:
    """E x·∇f = E tr D: stationarity of |x|²/2 under dX = -∇f dt + √(2D) dB, for any D(x) (a matrix, `diffusion(x)`).

    Constant noise D = T I gives E x·∇f = dT; D = κf I gives E x·∇f = dκ E f.
    """
    gradient = jax.grad(loss)
    return _relation(expect, lambda x: jnp.vdot(x, gradient(x)), lambda x: jnp.trace(diffusion(x)))


def dissipation(loss: Callable, diffusion: Callable, expect: Callable) -> Relation:
    """E|∇f|² = E tr(D ∇²f): stationarity of f itself, for any D(x) (a matrix, `diffusion(x)`).

    Constant noise gives E|∇f|² = T E Δf; D = κf I gives E|∇f|² = κ E fΔf; with D = ηC/(2B) on a quadratic,
    E|∇f|² = η tr(CH)/(2B).
    """
    gradient, hessian = jax.grad(loss), jax.hessian(loss)
    return _relation(expect, lambda x: jnp.sum(gradient(x) ** 2), lambda x: jnp.vdot(diffusion(x), hessian(x)))


def _relation(expect: Callable, left: Callable, right: Callable) -> Relation:
    return Relation(float(expect(left)), float(expect(right)))
