"""The drift-implicit Euler method, for stiff drifts in few dimensions."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax

from .method import AbstractMethod

# Newton doubles the digits: after a correction of relative size ε^(2/3) the error is below the rounding ε, unless the
# drift is so curved that no such dt is of use. Where that takes more corrections than these, there is no solution near.
_close_enough = 2 / 3
_most_corrections = 32


class DriftImplicitEuler(AbstractMethod):
    """Drift-implicit Euler: x' = x + b(t + dt, x') dt + G(t, x) dW, solved by Newton's method.

    Stable at every dt where the drift pulls back, however stiff: for problems with curvatures of very different size,
    and for drifts that grow faster than linearly. The equation has one solution if dt times the largest eigenvalue of
    the symmetric part of ∂b/∂x is below 1; for a loss, if its most negative curvature is above -1/dt. Beyond, the path
    may jump between solutions. Where Newton's method does not converge the state becomes NaN, and the run reports it.

    Strong order 1/2 (1 when G is constant), weak order 1. Stable is not exact: at dt λ ≫ 1 it damps the fluctuations
    along that direction, to the variance s² dt / ((1 + λ dt)² - 1) instead of s²/2λ on dX = -λX dt + s dB.

    A few corrections a step, each with one drift, its dense Jacobian (d derivatives) and a solve (d³): for small d.
    A linear drift takes one, and one more to see that it was enough.

    Source: Kloeden and Platen, *Numerical Solution of Stochastic Differential Equations*, 1992, chapter 12.
    """

    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 1.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "ito"

    def needs(self, process, x):
        return "increment"

    def step(self, process, t, x, dt, increment):
        known = x + process.noise(t, x).mv(increment.dw)

        def residual(y):
            return y - known - process.drift(t + dt, y) * dt

        def correct(state):
            y, _, corrections = state
            correction = jnp.linalg.solve(jax.jacfwd(residual)(y), residual(y))
            return y - correction, jnp.max(jnp.abs(correction)), corrections + 1

        def proceed(state):
            y, size, corrections = state
            # A NaN ends it too.
            return (size > tolerance(y)) & (corrections < _most_corrections)

        def tolerance(y):
            return jnp.finfo(x.dtype).eps ** _close_enough * jnp.maximum(jnp.max(jnp.abs(known)), jnp.max(jnp.abs(y)))

        start = known, jnp.asarray(jnp.inf, x.dtype), jnp.asarray(0)
        y, size, _ = lax.while_loop(proceed, correct, start)
        return jnp.where(size <= tolerance(y), y, jnp.nan)
