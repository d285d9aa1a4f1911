"""Stochastic gradient descent as an Itô diffusion."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from solvers.process import AbstractJointDiffusion

from .._checks import number, scalar_valued
from ..noise import AbstractGradientNoise, Minibatch
from .model import AbstractMemoryless, checked_loss, checked_noise, gradient


class SGD(AbstractMemoryless, AbstractJointDiffusion):
    """Stochastic gradient descent in continuous time: dX = -∇f(X) dt + sqrt(2D(X)) dB (Itô).

    `loss` is a JAX function f of one point (d,) and returns one number; `noise` says what D is (`sgdsde.noise`).
    Time is learning rate times steps: step k of SGD is at t = ηk. The equation is the weak limit of
    X ← X - ηg with E g = ∇f and Cov g = Σ, for which D = ηΣ/2. Euler-Maruyama with dt = η is SGD with Gaussian noise
    itself, not its limit: take dt well below η to compare the two.

    With the noise `noise.Minibatch(loss, B)` of the very `loss`, a step of Euler-Maruyama takes one backward pass for
    drift and noise together.

    With `noise.Constant(T)` and learning rate 1 it is the overdamped Langevin equation dX = -∇f dt + sqrt(2T) dB.

    A loss that does not return one number raises `ValueError` or `TypeError` when it is first used.
    """

    loss: Callable
    gradient_noise: AbstractGradientNoise
    learning_rate: Float[Array, ""]
    one_sum: bool = eqx.field(static=True)

    def __init__(self, loss: Callable, noise: AbstractGradientNoise, learning_rate):
        self.loss, self.gradient_noise = checked_loss(loss), checked_noise(noise)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.one_sum = isinstance(noise, Minibatch) and noise.loss is loss

    def drift(self, t, x):
        return -gradient(self.loss, x)

    def noise(self, t, x):
        return self.gradient_noise.operator(scalar_valued(self.loss), self.learning_rate, x)

    def euler(self, t, x, dt, dw):
        if not self.one_sum:
            return x + self.drift(t, x) * dt + self.noise(t, x).mv(dw)
        root: Any = self.noise(t, x)
        # -∇f dt is one more weight, the same for all examples.
        return x + root.along(root.weights(dw) - dt / root.count)

    @property
    def clock(self) -> Float[Array, ""]:
        """η: step k is at t = ηk."""
        return self.learning_rate

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
