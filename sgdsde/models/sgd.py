"""Stochastic gradient descent as an Itô diffusion."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
from jaxtyping import Array, Float

from solvers import AbstractDiffusion

from .._checks import number, scalar_valued
from ..noise import AbstractGradientNoise

if TYPE_CHECKING:
    import diffrax


class SGD(AbstractDiffusion):
    """Stochastic gradient descent in continuous time: dX = -∇f(X) dt + sqrt(2D(X)) dB (Itô).

    `loss` is a JAX function f of one point (d,) and returns one number; `noise` says what D is (`sgdsde.noise`).
    Time is learning rate times steps: step k of SGD is at t = ηk. The equation is the weak limit of
    X ← X - ηg with E g = ∇f and Cov g = Σ, for which D = ηΣ/2. Euler-Maruyama with dt = η is SGD with Gaussian noise
    itself, not its limit: take dt well below η to compare the two.

    A loss that does not return one number raises `ValueError` or `TypeError` when it is first used.
    """

    loss: Callable
    gradient_noise: AbstractGradientNoise
    learning_rate: Float[Array, ""]

    def __init__(self, loss: Callable, noise: AbstractGradientNoise, learning_rate):
        if not callable(loss):
            raise TypeError(f"`loss` must be a function of one point x of shape (d,), but got {loss!r}.")
        if not isinstance(noise, AbstractGradientNoise):
            raise TypeError(f"`noise` must be one of `sgdsde.noise`, such as `noise.Constant(0.5)`, but got {noise!r}.")
        self.loss = loss
        self.gradient_noise = noise
        self.learning_rate = number("learning_rate", learning_rate, positive=True)

    def drift(self, t, x):
        return -jax.grad(scalar_valued(self.loss))(x)

    def noise(self, t, x):
        return self.gradient_noise.operator(scalar_valued(self.loss), self.learning_rate, x)

    @property
    def temperature(self) -> Float[Array, ""]:
        """ησ, the factor of D: the temperature T of exp(-f/T), and the κ of f^(-1-1/κ).

        `AttributeError` for a noise that has no σ.
        """
        sigma = getattr(self.gradient_noise, "sigma", None)
        if sigma is None:
            raise AttributeError(
                f"A model with the noise {type(self.gradient_noise).__name__} has no temperature: that is ησ, and this "
                "noise has no σ."
            )
        return self.learning_rate * sigma

    def terms(self, path: "diffrax.AbstractPath") -> "diffrax.MultiTerm":
        """This process as diffrax terms, so that any Itô solver of diffrax runs on it.

        `path` is the driving Brownian motion of shape (m,), for example
        `diffrax.VirtualBrownianTree(t0, t1, tol, shape=(m,), key=key)`; m = d for isotropic noise.
        """
        import diffrax

        return diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, y, args: self.drift(t, y)),
            diffrax.ControlTerm(lambda t, y, args: self.noise(t, y), path),
        )
