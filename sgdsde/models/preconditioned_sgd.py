"""SGD with a preconditioner: natural gradient, Newton's method, or any other matrix."""

from collections.abc import Callable

import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from solvers.process import as_operator, noise_kind

from .._checks import array, number, scalar_valued
from .._operators import transformed
from ..noise import AbstractGradientNoise
from .model import AbstractMemoryless, checked_loss, checked_noise, gradient


class PreconditionedSGD(AbstractMemoryless):
    """Preconditioned SGD in continuous time: dX = -F∇f dt + sqrt(η) FΣ^½ dB (Itô), that is D = (η/2) FΣFᵀ.

    The limit of X ← X - ηF(X)g for an F that does not see the minibatch; step k is at t = ηk. There is no ∇·F in the
    drift, unlike in samplers, where it makes the invariant law exp(-f/T). `preconditioner` is a matrix (d, d), the
    diagonal (d,) of one, or a JAX function of x that returns either, as for natural gradient the inverse of the Fisher
    information. It should be positive definite: then the loss decreases on average where there is no noise.

    On a quadratic the stationary covariance P solves FHP + PHFᵀ = ηFΣFᵀ; for F = H⁻¹ it is (η/2) H⁻¹ΣH⁻¹.

    `ValueError` for an F of another shape.
    """

    loss: Callable
    gradient_noise: AbstractGradientNoise
    learning_rate: Float[Array, ""]
    matrix: Float[Array, "..."] | None
    function: Callable | None

    def __init__(self, loss: Callable, noise: AbstractGradientNoise, learning_rate, preconditioner):
        self.loss, self.gradient_noise = checked_loss(loss), checked_noise(noise)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.function = preconditioner if callable(preconditioner) else None
        self.matrix = None if callable(preconditioner) else array("preconditioner", preconditioner)

    def drift(self, t, x):
        return -_product(self._at(x), gradient(self.loss, x))

    def noise(self, t, x):
        F = self._at(x)
        root = self.gradient_noise.operator(scalar_valued(self.loss), self.learning_rate, x)
        if F.ndim == 1 and noise_kind(root) != "general":
            return as_operator(F * root.mv(jnp.ones_like(x)), x)
        return _times(F, root)

    @property
    def clock(self) -> Float[Array, ""]:
        """η: step k is at t = ηk."""
        return self.learning_rate

    def _at(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        F = jnp.asarray(self.matrix if self.function is None else self.function(x)).astype(x.dtype)
        if F.shape not in (x.shape, (x.size, x.size)):
            raise ValueError(
                f"`preconditioner` must be a matrix {(x.size, x.size)}, its diagonal {x.shape}, or a function of x "
                f"that returns either, for x of shape {x.shape}, but got shape {F.shape}."
            )
        return F[:, 0] if F.shape == (1, 1) else F


def _product(F: Float[Array, "..."], v: Float[Array, " d"]) -> Float[Array, " d"]:
    return F @ v if F.ndim == 2 else F * v


def _times(F: Float[Array, "..."], root: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    return transformed(lambda v: _product(F, v), root)
