"""Leimkuhler-Matthews in the coordinate in which one-dimensional noise is additive."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from ..process import noise_structure
from .method import AbstractPostprocessed

# Steps of the classical Runge-Kutta method along the flow of the noise.
_flow_steps = 2


class Lamperti(AbstractPostprocessed):
    """The method of Leimkuhler and Matthews for y = ∫ dx / g(x), where dy = (b/g - g'/2) dt + dB, in one dimension.

    Neither y nor its inverse is ever formed: adding Δ to y moves x along the flow Φ of dx/dy = g(x) for a time Δ, which
    two Runge-Kutta steps follow to O(Δ⁵). One step is x' = Φ(√h R + h a(Φ(½√h R; x)); x) with a = b/g - g'/2, and
    Φ(½√h R; x) is what is looked at. Order 2 for the invariant law, weak order 1 at finite times; strong order 1/2,
    because what is looked at is half an increment ahead of the Brownian motion. 17 evaluations of g a step. Needs one
    Brownian motion and a g that does not vanish; in more dimensions use `TimeChanged(LeimkuhlerMatthews())` for noise
    that is a multiple of the identity.
    """

    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 1.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "ito"

    def needs(self, process, x):
        _, m = noise_structure(process, x[0])
        if x.shape[1] != 1 or m != 1:
            raise ValueError(
                f"`Lamperti` is for one dimension and one Brownian motion, got {x.shape[1]} and {m}. Use "
                "`TimeChanged(LeimkuhlerMatthews())` for noise that is a multiple of the identity."
            )
        return "increment"

    def step(self, process, t, x, dt, increment):
        looked_at = self.leave(process, t, x, dt, increment)
        g, slope = jax.jvp(lambda x: _noise(process, t, x), (looked_at,), (jnp.ones_like(x),))
        force = process.drift(t, looked_at) / g - 0.5 * slope
        return _flow(process, t, x, increment.dw + dt * force)

    def enter(self, process, t, x, dt, increment):
        return _flow(process, t, x, -0.5 * increment.dw)

    def leave(self, process, t, y, dt, increment):
        return _flow(process, t, y, 0.5 * increment.dw)


def _noise(process, t, x):
    return process.noise(t, x).mv(jnp.ones_like(x))


def _flow(process, t, x, length):
    """The solution of dx/dy = g(t, x) after `length` in y."""
    h = length / _flow_steps
    for _ in range(_flow_steps):
        k1 = _noise(process, t, x)
        k2 = _noise(process, t, x + 0.5 * h * k1)
        k3 = _noise(process, t, x + 0.5 * h * k2)
        k4 = _noise(process, t, x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x
