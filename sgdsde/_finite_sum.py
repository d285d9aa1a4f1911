"""What a loss over examples is: the mean of the losses of N examples, each of which can be asked for."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class AbstractFiniteSum(eqx.Module):
    """f(x) = (1/N) Σ_i l_i(x), the mean of the losses of N examples: what minibatches are drawn from.

    Stochastic gradients, their exact covariance and the minibatch noise need the single losses; anything else takes
    such a loss as any other function of one point.
    """

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """The number N of examples."""

    @abc.abstractmethod
    def examples(self, x: Float[Array, " d"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        """l_i(x) for the examples i in `index`, in the dtype of x."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """f(x), over all examples."""


class AbstractSquaredLoss(AbstractFiniteSum):
    """A finite sum of squared errors: l_i(x) = floor + r_i(x)²/2 with the residual r_i = h_i(x) - y_i of a label y_i.

    Noise on the labels needs the residuals: with the label y_i + ε the residual is r_i - ε.
    """

    @abc.abstractmethod
    def residuals(self, x: Float[Array, " d"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        """r_i(x) for the examples i in `index`, in the dtype of x."""


def in_dtype_of(x: Float[Array, "..."], leaf: Any) -> Any:
    return leaf.astype(x.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def one_number(value: Any, x: Float[Array, "..."], what: str = "loss(x, example)") -> Float[Array, ""]:
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(f"`{what}` must return one number, but returned shape {value.shape}.")
    return value.astype(x.dtype)
