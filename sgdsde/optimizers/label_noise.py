"""Stochastic gradient descent on squared errors with fresh noise on the labels."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array, Float

from .._checks import number
from .optimizer import AbstractOptimizer, Need, Sampling, checked_batch


class LabelNoiseSGD(AbstractOptimizer):
    """x ← x - η ∇[(1/2B) Σ_i (r_i(x) - ε_i)²] over a minibatch, with independent ε_i ~ N(0, `std`²) in every step.

    The loss must have labels, with residuals r_i = h_i(x) - y_i: `sg.losses.LeastSquares` or `sg.losses.SquaredLoss`.
    `batch_size=None` puts noise on all labels in every step.

    Clock t = ηk. Where all residuals are 0 the noise of the minibatch is gone and that of the labels is left, of
    covariance Σ = (std²/B) E ∇h∇hᵀ = (std²/B) H: it has the shape of the Hessian. On the manifold of such points the
    limit is the flow of -∇ tr H, at the slower time η²k. Source for that: Li, Wang and Arora, "What happens after SGD
    reaches zero loss?", ICLR 2022.
    """

    needs: ClassVar[Need] = "labels"
    learning_rate: Float[Array, ""]
    batch_size: int | None = eqx.field(static=True)
    sampling: Sampling = eqx.field(static=True)
    std: Float[Array, ""]

    def __init__(self, learning_rate, batch_size=None, *, std, sampling="with-replacement"):
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.batch_size, self.sampling = checked_batch(batch_size, sampling)
        self.std = number("std", std, minimum=0)

    @property
    def clock(self):
        return self.learning_rate

    def init(self, x):
        return ()

    def step(self, k, x, state, gradient):
        return x - self.learning_rate.astype(x.dtype) * gradient.relabelled(x, self.std), ()
