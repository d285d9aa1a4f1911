"""SGD with momentum as underdamped motion."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import fraction, number, scalar_valued
from .._operators import transformed
from ..noise import AbstractGradientNoise
from .model import AbstractModel, checked_loss, checked_noise, gradient


class Momentum(AbstractModel):
    """SGD with momentum β in continuous time, of the state (w, m) in R^2d: Itô, with D = ηΣ/2 as `noise` says.

    - form "ema", of m ← βm + (1-β)g, w ← w - ηm: dw = -m dt, dm = γ(∇f(w) - m) dt + γ sqrt(ηΣ(w)) dB;
    - form "heavy-ball", of m ← βm + g, w ← w - ηm: the same for (1-β)m with the learning rate η/(1-β), so that
      dw = -m dt, dm = (∇f(w)/η - γm) dt + sqrt(Σ(w)/η) dB.

    γ = (1-β)/η is the friction, step k is at t = ηk, and there is no noise in w. The mean "ema" has this limit as
    η → 0 with γ fixed, and so has the variant of it in which w moves with the old m. If instead β is fixed, the limit
    is that of SGD without momentum: `SGD` with η for the mean, and with η/(1-β) for the heavy ball.

    On a quadratic of curvature h with Var g = c the stationary law of "ema" is Gaussian with Var w = ηc/(2h) and
    Var m = γηc/2, for every γ. Noise that depends on w and the friction γ are in no relation of fluctuation and
    dissipation, and there is no stationary law in closed form.

    `ValueError` unless 0 ≤ β < 1.
    """

    loss: Callable
    gradient_noise: AbstractGradientNoise
    learning_rate: Float[Array, ""]
    momentum: Float[Array, ""]
    form: Literal["heavy-ball", "ema"] = eqx.field(static=True)

    def __init__(self, loss: Callable, noise: AbstractGradientNoise, learning_rate, momentum=0.9, form="heavy-ball"):
        self.loss, self.gradient_noise = checked_loss(loss), checked_noise(noise)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.momentum = fraction("momentum", momentum)
        if form not in ("heavy-ball", "ema"):
            raise ValueError(f'`form` must be "heavy-ball" or "ema", but got {form!r}.')
        self.form = form

    @property
    def friction(self) -> Float[Array, ""]:
        """γ = (1-β)/η, per time."""
        return (1 - self.momentum) / self.learning_rate

    def drift(self, t, x):
        w, m = jnp.split(x, 2)
        force = self._gain.astype(x.dtype) * gradient(self.loss, w)
        return jnp.concatenate([-m, force - self.friction.astype(x.dtype) * m])

    def noise(self, t, x):
        w, _ = jnp.split(x, 2)
        gain = self._gain.astype(x.dtype)
        root = self.gradient_noise.operator(scalar_valued(self.loss), self.learning_rate, w)
        return transformed(lambda dm: jnp.concatenate([jnp.zeros_like(dm), gain * dm]), root)

    @property
    def clock(self) -> Float[Array, ""]:
        """η: step k is at t = ηk."""
        return self.learning_rate

    def initial(self, x: Float[Array, " d"]) -> Float[Array, " state"]:
        """(x, 0)."""
        return jnp.concatenate([x, jnp.zeros_like(x)])

    def position(self, state: Float[Array, "*batch state"]) -> Float[Array, "*batch d"]:
        """w."""
        return state[..., : state.shape[-1] // 2]

    @property
    def _gain(self) -> Float[Array, ""]:
        # How much of a gradient enters m, per time.
        return self.friction if self.form == "ema" else 1 / self.learning_rate
