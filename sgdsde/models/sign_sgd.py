"""SignSGD in continuous time."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, Float

from solvers.process import as_operator, noise_kind

from .._checks import number, scalar_valued
from .._operators import row_squares
from .._roots import hessian_root
from ..noise import AbstractGradientNoise
from .model import AbstractMemoryless, checked_loss, checked_noise, gradient

# Nodes of the quadrature for the covariance of signs: to 10 digits unless a correlation is within 1 % of ±1.
_nodes = 24


class SignSGD(AbstractMemoryless):
    """SignSGD with Gaussian gradient noise in continuous time: dX = -E sign(g) dt + sqrt(η Cov(sign g)) dB (Itô).

    The limit of X ← X - η sign(g), g ~ N(∇f, Σ), with step k at t = ηk. Component by component E sign(g) is
    erf(∂f/√(2Σ_ii)) and its variance 1 - erf². Where the noise is isotropic or diagonal so is G; else correlated
    components have correlated signs, whose covariance is computed from the orthant probabilities of pairs, with one
    eigendecomposition a call: for d ≲ 100. Where a component has no noise, its sign has none.

    Noise that is not Gaussian has other signs; for a few examples the law of the sign is far from this one. For ∂f
    small against the noise SignSGD is SGD with the learning rate η√(2/(πΣ_ii)). With f = hx²/2 and Σ = s² the
    stationary variance is near ηs√(π/2)/(2h).

    Source: Compagnoni, Liu, Islamov, Proske, Orvieto and Lucchi, *Adaptive methods through the lens of SDEs*, 2025.
    """

    loss: Callable
    gradient_noise: AbstractGradientNoise
    learning_rate: Float[Array, ""]

    def __init__(self, loss: Callable, noise: AbstractGradientNoise, learning_rate):
        self.loss, self.gradient_noise = checked_loss(loss), checked_noise(noise)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)

    def drift(self, t, x):
        return -_mean_sign(self._signal(x, self._root(x)))

    def noise(self, t, x):
        root, rate = self._root(x), self.learning_rate.astype(x.dtype)
        signal = self._signal(x, root)
        variances = 1 - _mean_sign(signal) ** 2
        if noise_kind(root) != "general":
            return as_operator(jnp.sqrt(rate * variances), x)
        matrix = root.as_matrix()
        covariance = _covariance_of_signs(signal, _correlations(matrix @ matrix.T))
        covariance = covariance - jnp.diag(jnp.diagonal(covariance)) + jnp.diag(variances)
        return as_operator(jnp.sqrt(rate) * hessian_root(covariance, jnp.zeros((), x.dtype), "clip"), x)

    @property
    def clock(self) -> Float[Array, ""]:
        """η: step k is at t = ηk."""
        return self.learning_rate

    def _root(self, x):
        return self.gradient_noise.operator(scalar_valued(self.loss), self.learning_rate, x)

    def _signal(self, x, root):
        # The gradient in standard deviations of its noise.
        variances, slope = row_squares(root) / self.learning_rate.astype(x.dtype), gradient(self.loss, x)
        noisy = variances > 0
        deviation = jnp.sqrt(jnp.where(noisy, variances, jnp.ones_like(variances)))
        return jnp.where(noisy, slope / deviation, jnp.where(slope == 0, slope, jnp.sign(slope) * jnp.inf))


def _mean_sign(signal: Float[Array, " d"]) -> Float[Array, " d"]:
    return erf(signal / jnp.sqrt(jnp.asarray(2, signal.dtype)))


def _correlations(covariance: Float[Array, "d d"]) -> Float[Array, "d d"]:
    deviation = jnp.sqrt(jnp.diagonal(covariance))
    product = deviation[:, None] * deviation
    return jnp.clip(jnp.where(product > 0, covariance / jnp.where(product > 0, product, 1), 0), -1, 1)


def _covariance_of_signs(signal: Float[Array, " d"], correlation: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Cov(sign(a_i + Z_i), sign(a_j + Z_j)), i ≠ j, for standard normal Z: 4 ∫ φ₂(a_i, a_j; r) dr for r from 0 to ρ_ij.

    By Plackett's identity; with r = sin θ the integrand is exp(-(a² - 2ab sin θ + b²)/(2cos²θ))/2π dθ.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_nodes)
    half = 0.5 * jnp.arcsin(correlation)
    angle = half[..., None] * jnp.asarray(1 + nodes, signal.dtype)
    # Beyond this the normal density is 0 in double precision, and ∞ - ∞ is avoided.
    a = jnp.clip(signal, -40, 40)
    a, b = a[:, None, None], a[None, :, None]
    exponent = -(a**2 - 2 * a * b * jnp.sin(angle) + b**2) / (2 * jnp.cos(angle) ** 2)
    return 2 / np.pi * half * jnp.sum(jnp.asarray(weights, signal.dtype) * jnp.exp(exponent), axis=-1)
