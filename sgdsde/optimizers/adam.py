"""Adam: momentum, divided by a running root mean square of the gradient."""

from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import fraction, number
from .optimizer import AbstractOptimizer, Need, Sampling, checked_batch

AdamForm = Literal["bias-corrected", "simplified"]


class Adam(AbstractOptimizer):
    """m ← β₁m + (1-β₁) g, v ← β₂v + (1-β₂) g², both from 0, and a step along m/√v, component by component.

    - "bias-corrected": x ← x - η m̂/(√v̂ + ε), m̂ = m/(1-β₁^(k+1)) and v̂ = v/(1-β₂^(k+1)) with the new m and v of
      step k = 0, 1, ...: Adam as published and as in optax;
    - "simplified": x ← x - η m/(√v + ε) with the *old* m and v, as "w_{t+1} = w_t - η m_t/(√v_t + ε)" says when it is
      taken literally. The first step is 0. Without the correction early steps are (1-β₁^k)/√(1-β₂^k) times as long:
      3.2 times at k = 1, 6.6 at k = 12 for the usual β₁ = 0.9 and β₂ = 0.999.

    Clock t = η²k: with Cov g = s²Σ, the continuum limit keeps sη, εη, c₁ = (1-β₁)/η² and c₂ = (1-β₂)/η² fixed while
    η → 0. It is dX = -(√γ₂/γ₁) P⁻¹ m dt, dm = c₁(∇f - m) dt + sη c₁ Σ^½ dB, du = c₂(diag Σ - u) dt with u = v/s²,
    P = sη√u + εη√γ₂ and γ_i = 1 - exp(-c_i t). Source: Malladi, Lyu, Panigrahi and Arora, "On the SDEs and scaling
    rules for adaptive gradient algorithms", NeurIPS 2022.
    """

    needs: ClassVar[Need] = "gradient"
    learning_rate: Float[Array, ""]
    batch_size: int | None = eqx.field(static=True)
    sampling: Sampling = eqx.field(static=True)
    beta1: Float[Array, ""]
    beta2: Float[Array, ""]
    epsilon: Float[Array, ""]
    form: AdamForm = eqx.field(static=True)

    def __init__(
        self,
        learning_rate,
        batch_size=None,
        *,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        form="bias-corrected",
        sampling="with-replacement",
    ):
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.batch_size, self.sampling = checked_batch(batch_size, sampling)
        self.beta1, self.beta2 = fraction("beta1", beta1), fraction("beta2", beta2)
        self.epsilon = number("epsilon", epsilon, minimum=0)
        if form not in ("bias-corrected", "simplified"):
            raise ValueError(f'`form` must be "bias-corrected" or "simplified", but got {form!r}.')
        if form == "simplified" and self.epsilon == 0:
            raise ValueError('`epsilon` must be positive with form="simplified", whose first step is 0/ε.')
        self.form = form

    @property
    def clock(self):
        return self.learning_rate**2

    def init(self, x):
        return jnp.zeros_like(x), jnp.zeros_like(x)

    def step(self, k, x, state, gradient):
        eta, epsilon = self.learning_rate.astype(x.dtype), self.epsilon.astype(x.dtype)
        beta1, beta2 = self.beta1.astype(x.dtype), self.beta2.astype(x.dtype)
        g = gradient(x)
        m, v = beta1 * state[0] + (1 - beta1) * g, beta2 * state[1] + (1 - beta2) * g**2
        if self.form == "simplified":
            return x - eta * state[0] / (jnp.sqrt(state[1]) + epsilon), (m, v)
        t = k.astype(x.dtype) + 1
        return x - eta * (m / (1 - beta1**t)) / (jnp.sqrt(v / (1 - beta2**t)) + epsilon), (m, v)
