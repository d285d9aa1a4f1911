"""Stochastic gradient descent with a preconditioner: natural gradient, Newton, or any other matrix."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import array, number
from .optimizer import AbstractOptimizer, Need, Sampling, checked_batch


class PreconditionedSGD(AbstractOptimizer):
    """x ← x - η F(x) g(x), with a positive definite F that does not see the minibatch.

    `preconditioner` is a matrix (d, d), the diagonal (d,) of one, or a JAX function of x that returns either; for
    natural gradient the inverse of the Fisher information at x.

    Clock t = ηk. Continuum limit dX = -F∇f dt + √η F Σ^½ dB (Itô, D = ηFΣFᵀ/2): the divergence of F, which belongs to
    samplers, is not in its drift. On f = xᵀHx/2 with constant F and Σ the stationary covariance P solves
    FHP + PHF - ηFHPHF = ηFΣF; for F = H⁻¹ it is η/(2-η) H⁻¹ΣH⁻¹.

    `ValueError` for an F of another shape. A function F is the user's to keep positive definite.
    """

    needs: ClassVar[Need] = "gradient"
    learning_rate: Float[Array, ""]
    batch_size: int | None = eqx.field(static=True)
    sampling: Sampling = eqx.field(static=True)
    matrix: Float[Array, "..."] | None
    function: Callable | None

    def __init__(self, learning_rate, batch_size=None, *, preconditioner, sampling="with-replacement"):
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.batch_size, self.sampling = checked_batch(batch_size, sampling)
        self.function = preconditioner if callable(preconditioner) else None
        self.matrix = None if callable(preconditioner) else array("preconditioner", preconditioner)

    @property
    def clock(self):
        return self.learning_rate

    def init(self, x):
        return ()

    def step(self, k, x, state, gradient):
        F = self._matrix_at(x)
        direction = F @ gradient(x) if F.ndim == 2 else F * gradient(x)
        return x - self.learning_rate.astype(x.dtype) * direction, ()

    def _matrix_at(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        F = self.matrix if self.function is None else jnp.asarray(self.function(x))
        assert F is not None
        if F.shape not in (x.shape, (x.size, x.size)):
            raise ValueError(
                f"`preconditioner` must have shape {(x.size, x.size)} or {x.shape} for x of shape {x.shape}, but has "
                f"shape {F.shape}."
            )
        return F.astype(x.dtype)
