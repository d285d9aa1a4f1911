"""SGD with momentum as underdamped motion."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import number, scalar_valued, traced
from .._operators import transformed
from ..noise import AbstractGradientNoise
from .model import AbstractModel, checked_loss, checked_noise, gradient


class Momentum(AbstractModel):
    """SGD with momentum in continuous time: dw = -m dt, dm = γ(∇f(w) - m) dt + γ sqrt(ηΣ(w)) dB (Itô), γ = (1-β)/η.

    The limit of m ← βm + (1-β)g, w ← w - ηm as η → 0 with γ fixed; g has covariance Σ, and D = ηΣ/2 is what `noise`
    says. Step k is at t = ηk. The state is (w, m), of dimension 2d; there is no noise in w. If instead β is fixed as
    η → 0, the limit is that of SGD without momentum and with the same η: `SGD`.

    `Momentum.heavy_ball` is for the form m ← μm + g, w ← w - ηm. The variant in which w moves with the old m has the
    same limit. On a quadratic of curvature h with constant variance c the stationary law is Gaussian with
    Var w = ηc/(2h), Var m = γηc/2 for every γ. Noise that depends on w has no relation of fluctuation and dissipation
    with the friction γ, and no stationary law in closed form.

    `ValueError` unless 0 ≤ β < 1.
    """

    loss: Callable
    gradient_noise: AbstractGradientNoise
    learning_rate: Float[Array, ""]
    beta: Float[Array, ""]

    def __init__(self, loss: Callable, noise: AbstractGradientNoise, learning_rate, beta):
        self.loss, self.gradient_noise = checked_loss(loss), checked_noise(noise)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.beta = decay("beta", beta)

    @classmethod
    def heavy_ball(cls, loss: Callable, noise: AbstractGradientNoise, learning_rate, momentum) -> "Momentum":
        """The model of m ← μm + g, w ← w - ηm, with `learning_rate` η and `momentum` μ.

        That is the form of the class with m/(1-μ) in the place of m and η(1-μ)⁻¹ in the place of η: a step takes the
        time η/(1-μ), the friction is γ = (1-μ)²/η, and the m of the state is (1-μ) times that of the algorithm.
        """
        rate, mu = number("learning_rate", learning_rate, positive=True), decay("momentum", momentum)
        return cls(loss, noise, rate / (1 - mu), mu)

    @property
    def friction(self) -> Float[Array, ""]:
        """γ = (1-β)/η, per time."""
        return (1 - self.beta) / self.learning_rate

    def drift(self, t, x):
        w, m = jnp.split(x, 2)
        return jnp.concatenate([-m, self.friction.astype(x.dtype) * (gradient(self.loss, w) - m)])

    def noise(self, t, x):
        w, _ = jnp.split(x, 2)
        friction = self.friction.astype(x.dtype)
        root = self.gradient_noise.operator(scalar_valued(self.loss), self.learning_rate, w)
        return transformed(lambda dm: jnp.concatenate([jnp.zeros_like(dm), friction * dm]), root)

    @property
    def step_time(self) -> Float[Array, ""]:
        """η: step k is at t = ηk. For `heavy_ball` this η is learning rate/(1-μ)."""
        return self.learning_rate

    def initial(self, x: Float[Array, " d"]) -> Float[Array, " state"]:
        """(x, 0)."""
        return jnp.concatenate([x, jnp.zeros_like(x)])

    def position(self, state: Float[Array, "*batch state"]) -> Float[Array, "*batch d"]:
        """w."""
        return state[..., : state.shape[-1] // 2]


def decay(name: str, value) -> Float[Array, ""]:
    """A weight of a moving average: at least 0 and below 1."""
    value = number(name, value, minimum=0)
    if not traced(value) and not value < 1:
        raise ValueError(f"`{name}` must be below 1, but got {name}={float(value):.6g}.")
    return value
