"""Sharpness-aware minimisation: the gradient at a point a little uphill.

Three algorithms that differ in the length of the way up. Both gradients of a step are those of one minibatch, or have
the same normal numbers; that is what amplifies the noise: on f = hx²/2 with constant noise USAM has the gradient noise
of SGD times 1 + ρh. ∇g is the Jacobian of g. Continuum limits: Compagnoni et al., "An SDE for modeling SAM", ICML 2023.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import number
from .optimizer import AbstractOptimizer, Need, Sampling, checked_batch


class SAM(AbstractOptimizer):
    """x ← x - η g(x + ρ g(x)/|g(x)|), ρ = `radius`; where g = 0 the way up is 0.

    Clock t = ηk. Continuum limit for ρ = O(√η): drift -∇(f + ρ E|g|) and D = η(Σ + ρ(S + Sᵀ))/2 with
    S = Cov(g, ∇g g/|g|). Without noise a run with constant ρ does not converge: on f = hx²/2 it ends in the 2-cycle
    |x| = ηhρ/(2-ηh).
    """

    needs: ClassVar[Need] = "gradient"
    learning_rate: Float[Array, ""]
    batch_size: int | None = eqx.field(static=True)
    sampling: Sampling = eqx.field(static=True)
    radius: Float[Array, ""]

    def __init__(self, learning_rate, batch_size=None, *, radius, sampling="with-replacement"):
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.batch_size, self.sampling = checked_batch(batch_size, sampling)
        self.radius = number("radius", radius, minimum=0)

    @property
    def clock(self):
        return self.learning_rate

    def init(self, x):
        return ()

    def step(self, k, x, state, gradient):
        g = gradient(x)
        up = _over(g, jnp.sqrt(g @ g))
        return x - self.learning_rate.astype(x.dtype) * gradient(x + self.radius.astype(x.dtype) * up), ()


class USAM(AbstractOptimizer):
    """x ← x - η g(x + ρ g(x)), ρ = `radius` with the units of a step: SAM without the normalisation.

    Clock t = ηk. Continuum limit for ρ = O(√η): drift -∇(f + ρ E|g|²/2) and D = η(Σ + ρ(S + Sᵀ))/2 with
    S = Cov(g, ∇g g). On f = hx²/2 with Var g = c the stationary variance is
    η(1+ρh)c/(h(2 - ηh(1+ρh))): it grows with ρ.
    """

    needs: ClassVar[Need] = "gradient"
    learning_rate: Float[Array, ""]
    batch_size: int | None = eqx.field(static=True)
    sampling: Sampling = eqx.field(static=True)
    radius: Float[Array, ""]

    def __init__(self, learning_rate, batch_size=None, *, radius, sampling="with-replacement"):
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.batch_size, self.sampling = checked_batch(batch_size, sampling)
        self.radius = number("radius", radius, minimum=0)

    @property
    def clock(self):
        return self.learning_rate

    def init(self, x):
        return ()

    def step(self, k, x, state, gradient):
        up = self.radius.astype(x.dtype) * gradient(x)
        return x - self.learning_rate.astype(x.dtype) * gradient(x + up), ()


class DNSAM(AbstractOptimizer):
    """x ← x - η g(x + ρ g(x)/|∇f(x)|), ρ = `radius`: SAM normalised by the gradient of the whole loss.

    Clock t = ηk. Continuum limit for ρ = O(√η): drift -(∇f + ρ E[∇g g]/|∇f|), which for noise that does not depend on
    x is -∇(f + ρ|∇f|), and D = η(Σ + ρ(S + Sᵀ))/2 with S = Cov(g, ∇g g)/|∇f|. Each step computes the gradient over
    all examples. Where ∇f = 0 the way up is 0 if g = 0, and infinite otherwise: such a run is reported as not finite.
    """

    needs: ClassVar[Need] = "gradient"
    learning_rate: Float[Array, ""]
    batch_size: int | None = eqx.field(static=True)
    sampling: Sampling = eqx.field(static=True)
    radius: Float[Array, ""]

    def __init__(self, learning_rate, batch_size=None, *, radius, sampling="with-replacement"):
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.batch_size, self.sampling = checked_batch(batch_size, sampling)
        self.radius = number("radius", radius, minimum=0)

    @property
    def clock(self):
        return self.learning_rate

    def init(self, x):
        return ()

    def step(self, k, x, state, gradient):
        whole = gradient.mean(x)
        up = _over(gradient(x), jnp.sqrt(whole @ whole))
        return x - self.learning_rate.astype(x.dtype) * gradient(x + self.radius.astype(x.dtype) * up), ()


def _over(g: Float[Array, " d"], norm: Float[Array, ""]) -> Float[Array, " d"]:
    # 0 where both are 0, and infinite where the norm alone is.
    return jnp.where(g == 0, jnp.zeros_like(g), g / norm)
