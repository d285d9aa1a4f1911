"""Stochastic gradient descent."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array, Float

from .._checks import number
from .optimizer import AbstractOptimizer, Need, Sampling, checked_batch


class SGD(AbstractOptimizer):
    """x ← x - η g(x).

    Clock t = ηk. Continuum limit dX = -∇f dt + √(ηΣ) dB, D = ηΣ/2, with Σ = Cov g: `sgdsde.SGD`. For minibatches of B
    out of N examples Σ = C/B when drawn with replacement, (N-B)/(N-1) C/B without, where C is the covariance of the
    gradient of one example. On f = xᵀHx/2 with constant Σ the stationary covariance P solves
    HP + PH - ηHPH = ηΣ, and η must be less than 2/λ_max(H).
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
        return x - self.learning_rate.astype(x.dtype) * gradient(x), ()
