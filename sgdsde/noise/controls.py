"""What a noise is not: controls that share its trace and lack its shape, or its dependence on the point."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from solvers.process import as_operator

from .._checks import array, scalar_valued
from .._operators import row_squares
from .._roots import hessian_root
from .gradient_noise import AbstractGradientNoise, matrix_operator

Shape = Literal["isotropic", "diagonal", "Hessian"]


class Frozen(AbstractGradientNoise):
    """The noise that `noise` has at the point `at` (d,), everywhere: D(x) = D(at), of the right shape in one place."""

    noise: AbstractGradientNoise
    at: Float[Array, " d"]

    def __init__(self, noise: AbstractGradientNoise, at):
        self.noise, self.at = _checked(noise), array("at", at)
        if self.at.ndim != 1:
            raise ValueError(f"`at` must be one point of shape (d,), but got shape {self.at.shape}.")

    def operator(self, loss, learning_rate, x):
        if x.shape != self.at.shape:
            raise ValueError(f"`at` has shape {self.at.shape}, but x has shape {x.shape}.")
        return self.noise.operator(loss, learning_rate, self.at.astype(x.dtype))


class EqualTrace(AbstractGradientNoise):
    """A noise of another shape with the trace that `noise` has at each point: tr Σ'(x) = tr Σ(x).

    - shape "diagonal": Σ' = diag Σ, its correlations taken away;
    - shape "isotropic": Σ' = (tr Σ/d) I;
    - shape "Hessian": Σ' = (tr Σ/tr H₊) H₊, H₊ = V diag(max(λ, 0)) Vᵀ of the Hessian of the loss. One Hessian and one
      eigendecomposition a call: for d ≲ 100. NaN where no curvature is positive, which the solvers report.

    The trace of a minibatch noise takes the gradients of all examples, one by one if they are large.
    `TypeError` or `ValueError` for what is no noise or none of the shapes.
    """

    noise: AbstractGradientNoise
    shape: Shape = eqx.field(static=True)

    def __init__(self, noise: AbstractGradientNoise, shape: Shape):
        self.noise, self.shape = _checked(noise), shape
        if shape not in ("isotropic", "diagonal", "Hessian"):
            raise ValueError(f'`shape` must be "isotropic", "diagonal" or "Hessian", but got {shape!r}.')

    def operator(self, loss, learning_rate, x):
        squares = row_squares(self.noise.operator(loss, learning_rate, x))
        if self.shape == "diagonal":
            return as_operator(jnp.sqrt(squares), x)
        if self.shape == "isotropic":
            return as_operator(jnp.sqrt(jnp.mean(squares)), x)
        root = hessian_root(jax.hessian(scalar_valued(loss))(x), jnp.zeros((), x.dtype), "clip")
        return matrix_operator(jnp.sqrt(jnp.sum(squares) / jnp.sum(root**2)) * root, x)


def _checked(noise: AbstractGradientNoise) -> AbstractGradientNoise:
    if not isinstance(noise, AbstractGradientNoise):
        raise TypeError(f"`noise` must be one of `sgdsde.noise`, such as `noise.Constant(0.5)`, but got {noise!r}.")
    return noise
