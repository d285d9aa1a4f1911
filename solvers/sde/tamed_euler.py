"""The tamed Euler method, for drifts that grow faster than linearly."""

from typing import ClassVar, Literal

import jax.numpy as jnp

from .method import AbstractMethod


class TamedEuler(AbstractMethod):
    """Tamed Euler: x' = x + b(t, x) dt / (1 + dt |b(t, x)|) + G(t, x) dW, with the Euclidean norm.

    For drifts that pull back faster than linearly, as for a quartic loss: there the moments of Euler-Maruyama diverge
    as dt → 0, because of a few paths that explode, and these converge. The drift moves a path by less than 1 in a step.
    So the unit of x matters, dt |b| must be small where the paths usually are, and a start far out comes back slowly.

    Strong order 1/2 and weak order 1, for a drift that is one-sided Lipschitz and grows polynomially with its
    derivative. Only the drift is tamed: G must grow at most linearly. Loss-proportional noise of a quartic loss does
    not; use `TimeChanged` for it. One drift and one noise a step. The invariant law is no better than
    Euler-Maruyama's.

    Source: Hutzenthaler, Jentzen and Kloeden, "Strong convergence of an explicit numerical method for SDEs with
    nonglobally Lipschitz continuous coefficients", Annals of Applied Probability, 2012.
    """

    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 1.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "ito"

    def needs(self, process, x):
        return "increment"

    def step(self, process, t, x, dt, increment):
        b = process.drift(t, x)
        return x + b * (dt / (1 + dt * jnp.sqrt(b @ b))) + process.noise(t, x).mv(increment.dw)
