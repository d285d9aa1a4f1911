"""Stochastic gradient descent with momentum, in the forms that are in use."""

from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import fraction, number
from .optimizer import AbstractOptimizer, Need, Sampling, checked_batch

MomentumForm = Literal["heavy-ball", "nesterov", "ema", "delayed"]


class Momentum(AbstractOptimizer):
    """SGD along a running sum or mean m of gradients, with the factor β = `momentum` in [0, 1).

    - "heavy-ball": m ← βm + g(x), x ← x - ηm;
    - "nesterov": m ← βm + g(x), x ← x - η(g(x) + βm);
    - "ema": m ← βm + (1-β) g(x), x ← x - ηm, the heavy ball with the learning rate (1-β)η;
    - "delayed": both sides of "ema" at once, x ← x - ηm with the *old* m: what
      "m_{t+1} = βm_t + (1-β)∇L(w_t), w_{t+1} = w_t - ηm_t" says when it is taken literally.

    m starts at 0. Clock t = ηk. Continuum limits of the means, "ema" and "delayed": for fixed β and η → 0 that of SGD
    with the same η; for 1-β = γη the underdamped dX = -m dt, dm = γ(∇f - m) dt + γ√(ηΣ) dB. The sums are the mean with
    η/(1-β) in the place of η.

    On f = hx²/2 with Var g = c and a = η(1-β)h, the stationary variance of x and the limit of stability are

    - "ema": (1+β)ηc / (h(2(1+β) - a)), and ηh < 2(1+β)/(1-β);
    - "delayed": (1+β+a)η(1-β)c / ((1-β-a)h(2(1+β)+a)), and ηh < 1 whatever β is: the delay takes away what momentum
      gains in stability.
    """

    needs: ClassVar[Need] = "gradient"
    learning_rate: Float[Array, ""]
    batch_size: int | None = eqx.field(static=True)
    sampling: Sampling = eqx.field(static=True)
    momentum: Float[Array, ""]
    form: MomentumForm = eqx.field(static=True)

    def __init__(self, learning_rate, batch_size=None, *, momentum=0.9, form="heavy-ball", sampling="with-replacement"):
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.batch_size, self.sampling = checked_batch(batch_size, sampling)
        self.momentum = fraction("momentum", momentum)
        if form not in ("heavy-ball", "nesterov", "ema", "delayed"):
            raise ValueError(f'`form` must be "heavy-ball", "nesterov", "ema" or "delayed", but got {form!r}.')
        self.form = form

    @property
    def clock(self):
        return self.learning_rate

    def init(self, x):
        return jnp.zeros_like(x)

    def step(self, k, x, state, gradient):
        eta, beta = self.learning_rate.astype(x.dtype), self.momentum.astype(x.dtype)
        g = gradient(x)
        m = beta * state + (g if self.form in ("heavy-ball", "nesterov") else (1 - beta) * g)
        if self.form == "nesterov":
            return x - eta * (g + beta * m), m
        return x - eta * (state if self.form == "delayed" else m), m
