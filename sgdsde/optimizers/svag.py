"""SVAG: SGD with shorter steps and as much more noise, to see whether SGD is near its continuum limit."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import number
from .optimizer import AbstractOptimizer, Need, Sampling, checked_batch


class SVAG(AbstractOptimizer):
    """x ← x - (η/l)(r₊ g₁(x) + r₋ g₂(x)), r± = (1 ± √(2l-1))/2, with two independent minibatches, l = `amplification`.

    The noise has l times the covariance of that of SGD and the step is an l-th of its, so that ηΣ, and with it the
    continuum limit dX = -∇f dt + √(ηΣ) dB, is that of SGD with the learning rate η for every l ≥ 1. l = 1 is SGD;
    l → ∞ comes to the limit. Clock t = (η/l)k: l steps stand for one of SGD. Source: Li, Malladi and Arora, "On the
    validity of modeling SGD with stochastic differential equations (SDEs)", NeurIPS 2021.
    """

    needs: ClassVar[Need] = "pair"
    learning_rate: Float[Array, ""]
    batch_size: int | None = eqx.field(static=True)
    sampling: Sampling = eqx.field(static=True)
    amplification: Float[Array, ""]

    def __init__(self, learning_rate, batch_size=None, *, amplification, sampling="with-replacement"):
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.batch_size, self.sampling = checked_batch(batch_size, sampling)
        self.amplification = number("amplification", amplification, minimum=1)

    @property
    def clock(self):
        return self.learning_rate / self.amplification

    def init(self, x):
        return ()

    def step(self, k, x, state, gradient):
        root = jnp.sqrt(2 * self.amplification.astype(x.dtype) - 1)
        g = 0.5 * ((1 + root) * gradient(x) + (1 - root) * gradient.other(x))
        return x - self.clock.astype(x.dtype) * g, ()
