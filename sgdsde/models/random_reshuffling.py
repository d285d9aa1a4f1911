"""The flow of the mean iterate of SGD with random reshuffling."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from solvers.process import as_operator

from .._checks import number, traced
from .._operators import mean_over
from ..losses import AbstractFiniteSum
from .model import AbstractMemoryless, checked_sum, gradient_of_square


class RandomReshuffling(AbstractMemoryless):
    """The mean iterate of SGD over random shuffles, as a flow: dX/dt = -∇(f + (η/4m) Σ_k |∇f_k|²), without noise.

    An epoch takes the N examples in random order, in m = N/B batches of losses f_k; step k is at t = ηk, an epoch
    lasts ηm. The mean over shuffles after an epoch differs from the flow by O((ηm)³). In the mean over shuffles the
    added term is (η/4)(|∇f|² + s tr C) with the covariance C of the gradients of single examples (denominator N) and
    s = (N-B)/(B(N-1)): the iterate is pushed to where minibatches agree. For batches drawn independently, with or
    without replacement, there is no term in tr C: that is `GradientFlow(loss, η, order=2)`. For a fixed partition into
    batches give a loss whose examples are the batches, and B = 1.

    Only the mean is described. Fluctuations about it are anticorrelated within an epoch, and much smaller than those
    of independent batches.

    `TypeError` if the loss is not a finite sum, `ValueError` unless B divides N. Source: Smith, Dherin, Barrett and De,
    *On the origin of implicit regularization in stochastic gradient descent*, ICLR 2021.
    """

    loss: AbstractFiniteSum
    learning_rate: Float[Array, ""]
    batch_size: Float[Array, ""]

    def __init__(self, loss: AbstractFiniteSum, learning_rate, batch_size=1):
        self.loss = checked_sum(loss)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.batch_size = number("batch_size", batch_size, minimum=1)
        if not traced(self.batch_size) and loss.count % float(self.batch_size):
            raise ValueError(
                f"`batch_size` must divide the number {loss.count} of examples, but got "
                f"batch_size={float(self.batch_size):g}."
            )

    def drift(self, t, x):
        g, turn = gradient_of_square(self.loss, x)

        def turn_of_one(i):
            return gradient_of_square(lambda y: self.loss.examples(y, i[None])[0], x)[1]

        # ∇ tr C / 2: what single examples have in excess of the whole.
        excess = mean_over(self.loss.count, turn_of_one, x) - turn
        n, b = self.loss.count, self.batch_size.astype(x.dtype)
        share = (n - b) / (b * max(n - 1, 1))
        return -(g + 0.5 * self.learning_rate.astype(x.dtype) * (turn + share * excess))

    def noise(self, t, x):
        return as_operator(jnp.zeros((), x.dtype), x)

    @property
    def clock(self) -> Float[Array, ""]:
        """η: step k is at t = ηk."""
        return self.learning_rate
