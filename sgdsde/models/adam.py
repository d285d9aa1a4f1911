"""Adam in continuous time."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import fraction, number, scalar_valued
from .._operators import row_squares, transformed
from ..noise import AbstractGradientNoise
from .model import AbstractModel, checked_loss, checked_noise, gradient
from .rmsprop import square_root_rule


class Adam(AbstractModel):
    """Adam in continuous time, of the state (w, m, v) in R^3d, with the clock t = η²k of step k (Itô):

    dw = -m̂ / (η(√v̂ + ε)) dt,  dm = c₁ (∇f(w) - m) dt + c₁η Σ(w)^½ dB,  dv = c₂ (diag Σ(w) - v) dt,

    c_i = (1-β_i)/η². In the form "bias-corrected" m̂ = m/γ₁ and v̂ = v/γ₂ with γ_i = 1 - exp(-c_i t), and the start
    is m = v = 0 at t = 0, as `initial` says; where γ = 0 their limits ∇f and diag Σ are taken. In the form
    "simplified", without the correction, m̂ = m and v̂ = v: it is autonomous, and what the other becomes for t ≫ 1/c₂.

    In the literature Cov g = s²Σ, u = v/s², and the first equation reads
    dw = -(√γ₂/γ₁) m / (sη√u + εη√γ₂) dt. Limit and validity are those of `RMSProp`: noise large against ∇f. As
    everywhere, `noise` gives D = ηΣ/2 of plain SGD, on the clock of SGD.

    On f = hw²/2 with Var g = c and ε = 0 the stationary variance of w is η√c/(2h), whatever β₁ is.

    `ValueError` unless 0 ≤ β_i < 1 and ε ≥ 0, or for an unknown form. Source: Malladi, Lyu, Panigrahi and Arora, *On
    the SDEs and scaling rules for adaptive gradient algorithms*, NeurIPS 2022.
    """

    loss: Callable
    gradient_noise: AbstractGradientNoise
    learning_rate: Float[Array, ""]
    beta1: Float[Array, ""]
    beta2: Float[Array, ""]
    epsilon: Float[Array, ""]
    form: Literal["bias-corrected", "simplified"] = eqx.field(static=True)

    def __init__(
        self,
        loss: Callable,
        noise: AbstractGradientNoise,
        learning_rate,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        form="bias-corrected",
    ):
        self.loss, self.gradient_noise = checked_loss(loss), checked_noise(noise)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.beta1, self.beta2 = fraction("beta1", beta1), fraction("beta2", beta2)
        self.epsilon = number("epsilon", epsilon, minimum=0)
        if form not in ("bias-corrected", "simplified"):
            raise ValueError(f'`form` must be "bias-corrected" or "simplified", but got {form!r}.')
        self.form = form

    def drift(self, t, x):
        w, m, v = jnp.split(x, 3)
        rate, (c1, c2) = self.learning_rate.astype(x.dtype), self._rates(x)
        slope, variances = gradient(self.loss, w), row_squares(self._root(w)) / rate
        direction, square = m, v
        if self.form == "bias-corrected":
            direction, square = _corrected(m, c1 * t, slope), _corrected(v, c2 * t, variances)
        step = direction / (rate * (jnp.sqrt(square) + self.epsilon.astype(x.dtype)))
        return jnp.concatenate([-step, c1 * (slope - m), c2 * (variances - v)])

    def noise(self, t, x):
        w, _, _ = jnp.split(x, 3)
        factor = self._rates(x)[0] * jnp.sqrt(self.learning_rate.astype(x.dtype))

        def into_momentum(dm):
            return jnp.concatenate([jnp.zeros_like(dm), factor * dm, jnp.zeros_like(dm)])

        return transformed(into_momentum, self._root(w))

    @property
    def clock(self) -> Float[Array, ""]:
        """η²: step k is at t = η²k."""
        return self.learning_rate**2

    def initial(self, x: Float[Array, " d"]) -> Float[Array, " state"]:
        """(x, 0, 0); for "simplified" with ε = 0, whose first step would be 0/0, (x, 0, diag Σ(x))."""
        v = jnp.zeros_like(x)
        if self.form == "simplified":
            variances = row_squares(self._root(x)) / self.learning_rate.astype(x.dtype)
            v = jnp.where(self.epsilon > 0, v, variances)
        return jnp.concatenate([x, jnp.zeros_like(x), v])

    def position(self, state: Float[Array, "*batch state"]) -> Float[Array, "*batch d"]:
        """w."""
        return state[..., : state.shape[-1] // 3]

    def square_root_rule(self, factor) -> dict[str, Float[Array, ""]]:
        """The η, β_i and ε with which batches `factor` times as large give the same law of w.

        They are √κ η, 1 - κ(1-β_i) and ε/√κ, as keywords of this class; the noise must be given its new batch size by
        the caller. Then the equation is the same, with v/κ in the place of v. `ValueError` if κ(1-β_i) > 1.
        """
        return square_root_rule(factor, self.learning_rate, self.epsilon, beta1=self.beta1, beta2=self.beta2)

    def _rates(self, x):
        return ((1 - self.beta1) / self.clock).astype(x.dtype), ((1 - self.beta2) / self.clock).astype(x.dtype)

    def _root(self, w):
        return self.gradient_noise.operator(scalar_valued(self.loss), self.learning_rate, w)


def _corrected(mean, age, limit):
    """A running mean from 0, divided by its total weight 1 - exp(-age); `limit` at age 0."""
    weight = -jnp.expm1(-jnp.asarray(age, mean.dtype))
    return jnp.where(weight > 0, mean / jnp.where(weight > 0, weight, jnp.ones_like(weight)), limit)
