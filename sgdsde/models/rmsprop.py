"""RMSProp in continuous time."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import fraction, number, scalar_valued
from .._operators import row_squares, transformed
from ..noise import AbstractGradientNoise
from .model import AbstractModel, checked_loss, checked_noise, gradient


class RMSProp(AbstractModel):
    """RMSProp in continuous time, of the state (w, v) in R^2d, with the clock t = η²k of step k (Itô):

    dw = -P⁻¹ (∇f(w) dt + η Σ(w)^½ dB),  dv = c (diag Σ(w) - v) dt,  P = η (√v + ε),  c = (1-β)/η².

    The limit of v ← βv + (1-β)g², w ← w - ηg/(√v + ε), component by component, with `decay` β. In the literature
    Cov g = s²Σ, and the limit is η → 0 with sη, εη and c fixed and u = v/s² in the place of v: noise that grows as
    1/η. So the equation holds where the noise is large against ∇f; v really follows diag Σ + (∇f)². Fluctuations of
    v, which are of higher order for smooth noise, are left out. As everywhere, `noise` gives D = ηΣ/2 of plain SGD,
    on the clock of SGD.

    `initial(x)` starts at v = diag Σ(x), where the running mean ends, and `initial(x, v)` elsewhere. From v = 0, as
    many implementations start, the first steps are η/√(1-β) long and no limit describes them.

    On f = hw²/2 with Var g = c_g and ε = 0 the stationary variance is η√c_g/(2h): a batch κ times as large calls for
    the learning rate √κ η, and for κη in SGD. See `square_root_rule`.

    `ValueError` unless 0 ≤ β < 1 and ε ≥ 0. Source: Malladi, Lyu, Panigrahi and Arora, *On the SDEs and scaling rules
    for adaptive gradient algorithms*, NeurIPS 2022.
    """

    loss: Callable
    gradient_noise: AbstractGradientNoise
    learning_rate: Float[Array, ""]
    decay: Float[Array, ""]
    epsilon: Float[Array, ""]

    def __init__(self, loss: Callable, noise: AbstractGradientNoise, learning_rate, decay=0.9, epsilon=1e-8):
        self.loss, self.gradient_noise = checked_loss(loss), checked_noise(noise)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.decay = fraction("decay", decay)
        self.epsilon = number("epsilon", epsilon, minimum=0)

    def drift(self, t, x):
        w, v = jnp.split(x, 2)
        c = ((1 - self.decay) / self.clock).astype(x.dtype)
        variances = row_squares(self._root(w)) / self.learning_rate.astype(x.dtype)
        return jnp.concatenate([-gradient(self.loss, w) / self._scale(v), c * (variances - v)])

    def noise(self, t, x):
        w, v = jnp.split(x, 2)
        factor = jnp.sqrt(self.learning_rate.astype(x.dtype)) / self._scale(v)
        return transformed(lambda dw: jnp.concatenate([factor * dw, jnp.zeros_like(dw)]), self._root(w))

    @property
    def clock(self) -> Float[Array, ""]:
        """η²: step k is at t = η²k."""
        return self.learning_rate**2

    def initial(self, x: Float[Array, " d"], v: Float[Array, " d"] | None = None) -> Float[Array, " state"]:
        """(x, v), with the variances of the gradient at x for v unless it is given."""
        v = row_squares(self._root(x)) / self.learning_rate.astype(x.dtype) if v is None else v
        return jnp.concatenate([x, v])

    def position(self, state: Float[Array, "*batch state"]) -> Float[Array, "*batch d"]:
        """w."""
        return state[..., : state.shape[-1] // 2]

    def square_root_rule(self, factor) -> dict[str, Float[Array, ""]]:
        """The learning rate, decay and ε with which batches `factor` times as large give the same law of w.

        They are √κ η, 1 - κ(1-β) and ε/√κ, as keywords of this class; the noise must be given its new batch size by
        the caller. Then the equation is the same, with v/κ in the place of v. `ValueError` if κ(1-β) > 1.
        """
        return square_root_rule(factor, self.learning_rate, self.epsilon, decay=self.decay)

    def _root(self, w):
        return self.gradient_noise.operator(scalar_valued(self.loss), self.learning_rate, w)

    def _scale(self, v):
        return self.learning_rate.astype(v.dtype) * (jnp.sqrt(v) + self.epsilon.astype(v.dtype))


def square_root_rule(factor, learning_rate, epsilon, **decays: Float[Array, ""]) -> dict[str, Float[Array, ""]]:
    """The rule for `RMSProp` and `Adam`: what becomes of η, ε and the factors of the running means."""
    factor = number("factor", factor, positive=True)
    scaled = {name: fraction(name, 1 - factor * (1 - beta)) for name, beta in decays.items()}
    root = jnp.sqrt(factor)
    return {"learning_rate": root * learning_rate, **scaled, "epsilon": epsilon / root}
