"""Steps along the signs of the gradient."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import number
from .optimizer import AbstractOptimizer, Need, Sampling, checked_batch


class SignSGD(AbstractOptimizer):
    """x ← x - η sign(g(x)), component by component; the sign of 0 is 0.

    Clock t = ηk. Continuum limit for normal noise of variance s² in a component: drift -erf(∂f/(√2 s)) and
    D = (η/2)(1 - erf²(∂f/(√2 s))). Source: Compagnoni et al., "Adaptive methods through the lens of SDEs", ICLR 2025.
    """

    needs: ClassVar[Need] = "gradient"
    learning_rate: Float[Array, ""]
    batch_size: int | None = eqx.field(static=True)
    sampling: Sampling = eqx.field(static=True)

    def __init__(self, learning_rate, batch_size=None, *, sampling="with-replacement"):
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.batch_size, self.sampling = checked_batch(batch_size, sampling)

    @property
    def clock(self):
        return self.learning_rate

    def init(self, x):
        return ()

    def step(self, k, x, state, gradient):
        return x - self.learning_rate.astype(x.dtype) * jnp.sign(gradient(x)), ()
