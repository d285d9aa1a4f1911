"""Isotropic gradient noise: the same everywhere, or proportional to the loss."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from solvers.process import as_operator

from .._checks import number, scalar_valued
from .gradient_noise import AbstractGradientNoise, root_of, twice


class Constant(AbstractGradientNoise):
    """The same isotropic noise everywhere: D = ησ I, from a gradient covariance Σ = 2σ I.

    The invariant law is Gibbs, ∝ exp(-f/ησ): the model is the overdamped Langevin equation of temperature ησ. If
    instead the gradient has covariance s I, pass σ = s/2 (see `sgdsde.noise`). `ValueError` if σ is negative or not
    finite; σ = 0 is gradient flow.
    """

    sigma: Float[Array, ""]

    def __init__(self, sigma):
        self.sigma = number("sigma", sigma, minimum=0)

    def operator(self, loss, learning_rate, x):
        return as_operator(jnp.sqrt(twice(learning_rate, self.sigma, x)), x)


class LossProportional(AbstractGradientNoise):
    """Isotropic noise that vanishes with the loss: D = ησ f I, from a gradient covariance Σ = 2σ f I.

    The invariant law, where it exists, is the power law ∝ f^(-1 - 1/ησ). If instead Σ = s f I, pass σ = s/2
    (see `sgdsde.noise`).

    Where f < 0 the noise is NaN, which the solvers report; add a constant to the loss. Points with f = 0 absorb.
    `ValueError` if σ is negative or not finite.
    """

    sigma: Float[Array, ""]

    def __init__(self, sigma):
        self.sigma = number("sigma", sigma, minimum=0)

    def operator(self, loss, learning_rate, x):
        f = scalar_valued(loss)(x)
        return as_operator(jnp.sqrt(twice(learning_rate, self.sigma, x)) * root_of(f), x)
