"""Gradient flow, to first and to second order in the learning rate."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from solvers.process import as_operator

from .._checks import number
from .model import AbstractMemoryless, checked_loss, gradient, gradient_of_square


class GradientFlow(AbstractMemoryless):
    """Gradient flow dX/dt = -∇f(X), or to second order dX/dt = -∇(f + (η/4)|∇f|²)(X): a diffusion without noise.

    Step k of gradient descent with learning rate η is at t = ηk. Over a fixed time it stays within O(η) of the flow,
    and within O(η²) of that with `order=2`. The latter is also the flow of the mean of SGD with independent
    minibatches, with a local error O(η³): where minibatches are drawn independently, the mean iterate feels no
    gradient of their variance. It does where they are shuffled: `RandomReshuffling`.

    `ValueError` for another order. Source: Barrett and Dherin, *Implicit gradient regularization*, ICLR 2021.
    """

    loss: Callable
    learning_rate: Float[Array, ""]
    order: Literal[1, 2] = eqx.field(static=True)

    def __init__(self, loss: Callable, learning_rate, order: Literal[1, 2] = 1):
        self.loss = checked_loss(loss)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        if order not in (1, 2):
            raise ValueError(f"`order` must be 1 or 2, but got {order!r}.")
        self.order = order

    def drift(self, t, x):
        if self.order == 1:
            return -gradient(self.loss, x)
        g, turn = gradient_of_square(self.loss, x)
        return -(g + 0.5 * self.learning_rate.astype(x.dtype) * turn)

    def noise(self, t, x):
        return as_operator(jnp.zeros((), x.dtype), x)

    @property
    def clock(self) -> Float[Array, ""]:
        """η: step k is at t = ηk."""
        return self.learning_rate
