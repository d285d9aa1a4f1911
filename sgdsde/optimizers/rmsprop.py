"""RMSProp: steps divided by a running root mean square of the gradient."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import fraction, number
from .optimizer import AbstractOptimizer, Need, Sampling, checked_batch


class RMSProp(AbstractOptimizer):
    """v ← βv + (1-β) g(x)², x ← x - η g(x)/(√v + ε), component by component, from v = `initial`.

    v is the running mean of the square itself, not of the variance: it follows diag Σ only where the noise is large
    against ∇f. In optax this is `rmsprop(η, decay=β, eps=ε, eps_in_sqrt=False, initial_scale=initial)`.

    Clock t = η²k: with Cov g = s²Σ, the continuum limit keeps sη, εη and (1-β)/η² fixed while η → 0. It is
    dX = -P⁻¹(∇f dt + sη Σ^½ dB), du = (1-β)/η² (diag Σ - u) dt with u = v/s² and P = sη√u + εη. So a batch κ times as
    large calls for √κ η, 1-κ(1-β) and ε/√κ, and not for κη as SGD does. Source: Malladi, Lyu, Panigrahi and Arora, "On
    the SDEs and scaling rules for adaptive gradient algorithms", NeurIPS 2022.
    """

    needs: ClassVar[Need] = "gradient"
    learning_rate: Float[Array, ""]
    batch_size: int | None = eqx.field(static=True)
    sampling: Sampling = eqx.field(static=True)
    decay: Float[Array, ""]
    epsilon: Float[Array, ""]
    initial: Float[Array, ""]

    def __init__(
        self, learning_rate, batch_size=None, *, decay=0.9, epsilon=1e-8, initial=0.0, sampling="with-replacement"
    ):
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.batch_size, self.sampling = checked_batch(batch_size, sampling)
        self.decay = fraction("decay", decay)
        self.epsilon = number("epsilon", epsilon, minimum=0)
        self.initial = number("initial", initial, minimum=0)

    @property
    def clock(self):
        return self.learning_rate**2

    def init(self, x):
        return jnp.full_like(x, self.initial.astype(x.dtype))

    def step(self, k, x, state, gradient):
        eta, beta, epsilon = (a.astype(x.dtype) for a in (self.learning_rate, self.decay, self.epsilon))
        g = gradient(x)
        v = beta * state + (1 - beta) * g**2
        return x - eta * g / (jnp.sqrt(v) + epsilon), v
