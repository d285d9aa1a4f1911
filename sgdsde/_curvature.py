"""Products of a vector with the four matrices of a finite sum: Hessian, covariance, Gauss-Newton and Fisher.

Each costs a few passes over the examples; neither a matrix nor the gradients of single examples are stored.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ._finite_sum import AbstractFiniteSum, AbstractSquaredLoss, in_dtype_of, one_number
from ._operators import ExampleRoot
from .model_loss import ModelLoss

# Gradients of single examples are held at once up to so many numbers.
_at_once = 1 << 20

# Columns of a matrix are computed so many at a time: for each of them a chunk of examples is in memory.
columns_at_once = 16


def hessian_product(loss: Callable, x: Float[Array, " d"], v: Float[Array, " d"]) -> Float[Array, " d"]:
    """H v with the Hessian H of f."""
    return jax.jvp(jax.grad(loss), (x,), (v,))[1]


def covariance_product(loss: AbstractFiniteSum, x: Float[Array, " d"], v: Float[Array, " d"]) -> Float[Array, " d"]:
    """C v with C = (1/N) Σ_i (∇l_i - ∇f)(∇l_i - ∇f)ᵀ: one forward product and one backward."""
    root = ExampleRoot(loss.examples, x, jnp.ones((), x.dtype) / jnp.sqrt(loss.count), loss.count, True)
    return root.mv(root.transpose().mv(v))


def gauss_newton_product(loss: Any, x: Float[Array, " d"], v: Float[Array, " d"]) -> Float[Array, " d"]:
    """G v with G = (1/N) Σ_i J_iᵀ ∂²l_i/∂z² J_i, J_i = ∂z_i/∂x for the outputs z; without weight decay."""

    def mean_loss(z):
        if isinstance(loss, AbstractSquaredLoss):
            return 0.5 * jnp.mean(z**2)
        return jnp.mean(loss.of_outputs(z, jnp.arange(loss.count)))

    z, u = jax.jvp(lambda x: outputs(loss, x), (x,), (v,))
    return _pulled_back(loss, x, jax.jvp(jax.grad(mean_loss), (z,), (u,))[1])


def fisher_product(loss: ModelLoss, classes: Array, x: Float[Array, " d"], v: Float[Array, " d"]) -> Float[Array, " d"]:
    """F v with F = (1/N) Σ_i Σ_y p_i(y) ∇l_i(y) ∇l_i(y)ᵀ over the `classes` y, p_i(y) = exp(-l_i(y))."""
    z, u = jax.jvp(lambda x: outputs(loss, x), (x,), (v,))
    values, slopes = jax.jvp(lambda z: class_losses(loss, classes, z), (z,), (u,))
    _, pull_back = jax.vjp(lambda z: class_losses(loss, classes, z), z)
    return _pulled_back(loss, x, pull_back(jnp.exp(-values) * slopes / loss.count)[0])


def has_outputs(loss: Any) -> bool:
    """Whether the losses of the examples are known as functions of outputs."""
    return isinstance(loss, AbstractSquaredLoss) or (isinstance(loss, ModelLoss) and loss.predict is not None)


def outputs(loss: Any, x: Float[Array, " d"]) -> Float[Array, "N ..."]:
    """The outputs of a model for all examples; of a squared loss its residuals, which differ by constants."""
    index = jnp.arange(loss.count)
    return loss.residuals(x, index) if isinstance(loss, AbstractSquaredLoss) else loss.outputs(x, index)


def class_losses(loss: ModelLoss, classes: Array, z: Float[Array, "N ..."]) -> Float[Array, "N classes"]:
    """The loss of each example if its label were each of the classes, for given outputs."""

    def one(output, label):
        return one_number(loss.loss(output, in_dtype_of(output, label)), output, "per_example_loss")

    return jax.vmap(lambda output: jax.vmap(lambda label: one(output, label))(classes))(z)


def centred_squares(loss: AbstractFiniteSum, x: Float[Array, " d"]) -> Float[Array, " N"]:
    """|∇l_i - ∇f|² for each example, whose mean is tr C: as many operations as one gradient of f."""
    mean = jax.grad(loss)(x)

    def one(i):
        return jnp.sum((jax.grad(lambda x: loss.examples(x, i[None])[0])(x) - mean) ** 2)

    return for_each(one, loss.count, max(1, _at_once // x.size))


def for_each(term: Callable, count: int, at_once: int) -> Any:
    """term(0), ..., term(count - 1), stacked, so many `at_once` at most."""
    groups = -(-count // at_once)
    width = -(-count // groups)
    # Some are computed twice, so that all groups are of one size and one program.
    index = jnp.pad(jnp.arange(count), (0, groups * width - count)).reshape(groups, width)
    values = lax.map(jax.vmap(term), index)
    return jax.tree.map(lambda leaf: leaf.reshape(groups * width, *leaf.shape[2:])[:count], values)


def _pulled_back(loss: Any, x: Float[Array, " d"], weights: Float[Array, "N ..."]) -> Float[Array, " d"]:
    return jax.vjp(lambda x: outputs(loss, x), x)[1](weights)[0]
