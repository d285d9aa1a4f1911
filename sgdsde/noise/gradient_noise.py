"""What a gradient noise is, and what those with a σ share."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from solvers.process import as_operator


class AbstractGradientNoise(eqx.Module):
    """A rule for the noise of a stochastic gradient. Parameters are array fields, so that a sweep compiles once."""

    @abc.abstractmethod
    def operator(
        self, loss: Callable, learning_rate: Float[Array, ""], x: Float[Array, " d"]
    ) -> lx.AbstractLinearOperator:
        """G at the point x, with G Gᵀ / 2 = D(x), in the dtype of x."""


def twice(learning_rate: Float[Array, ""], sigma: Float[Array, ""], x: Float[Array, " d"]) -> Float[Array, ""]:
    """2ησ in the dtype of the state: D = ησ I has G = sqrt(2ησ) I."""
    return 2 * learning_rate.astype(x.dtype) * sigma.astype(x.dtype)


def matrix_operator(g: Float[Array, "d m"], x: Float[Array, " d"]) -> lx.AbstractLinearOperator:
    """G as an operator: in one dimension a matrix is a diagonal, which more methods can use."""
    return as_operator(g[:, 0] if g.shape == (1, 1) else g, x)


def root_of(f: Float[Array, ""]) -> Float[Array, ""]:
    """√f, with the derivative 0 at f = 0, where it has none: G ∂G ∝ ∂f, which Milstein needs, is 0 at a minimum."""
    zero = f == 0
    return jnp.where(zero, jnp.zeros_like(f), jnp.sqrt(jnp.where(zero, jnp.ones_like(f), f)))
