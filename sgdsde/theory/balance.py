"""The two-parameter linear network l = (uw - y)²/2 with random labels y ~ N(μ, s²): SGD noise of rank one, solved.

dθ = -∇L dt + √η s (w, u) dB, Itô, t = η · steps, batch size 1: the sample gradient is (uw - y)(w, u), whose covariance
at every θ is s²(w, u)(w, u)ᵀ. The noise leaves u² - w² free of noise but not conserved (law of balance, Ziyin et al.).
"""

import math

import numpy as np
from jaxtyping import Float
from scipy import special

from ._checked import positive


def imbalance(u0, w0, t, learning_rate, label_variance) -> Float[np.ndarray, "..."]:
    """u_t² - w_t² = (u₀² - w₀²) e^{-ηs²t}, on every path: noise balances the layers, gradient flow does not."""
    rate = positive("learning_rate", learning_rate) * positive("label_variance", label_variance)
    return np.asarray((u0**2 - w0**2) * np.exp(-rate * np.asarray(t)))


def collapse_rate(label_mean, label_variance) -> float:
    """η = 2μ/s²: from here on v = uw → 0 almost surely instead of settling near μ. μ > 0."""
    return 2 * positive("label_mean", label_mean) / positive("label_variance", label_variance)


def exponent_at_zero(label_mean, label_variance, learning_rate) -> float:
    """d log v/dt near v = uw = 0 on u = w: 2μ - ηs²; negative means collapse."""
    return 2 * float(label_mean) - positive("learning_rate", learning_rate) * positive("label_variance", label_variance)


def product_law(label_mean, label_variance, learning_rate) -> tuple[float, float]:
    """(shape, rate) of the Gamma law of v = uw on u = w > 0: μ/(ηs²) - 1/2 and 1/(ηs²).

    dv = 2v(μ - v) dt + ηs²v dt + 2√(ηs²) v dB. Mean μ - ηs²/2: SGD is biased towards 0. `ValueError` from
    `collapse_rate` on.
    """
    noise = positive("learning_rate", learning_rate) * positive("label_variance", label_variance)
    if not 2 * label_mean > noise:
        raise ValueError(
            f"`learning_rate` must be below 2μ/s² = {2 * label_mean / label_variance:.6g}, but got {learning_rate}: "
            "there uw collapses to 0."
        )
    return label_mean / noise - 0.5, 1 / noise


def product_pdf(v, label_mean, label_variance, learning_rate) -> Float[np.ndarray, "..."]:
    """The stationary density of v = uw > 0."""
    shape, rate = product_law(label_mean, label_variance, learning_rate)
    v = np.asarray(v, dtype=np.float64)
    return np.asarray(np.exp(shape * math.log(rate) - special.gammaln(shape) + special.xlogy(shape - 1, v) - rate * v))


def product_cdf(v, label_mean, label_variance, learning_rate) -> Float[np.ndarray, "..."]:
    """P(uw ≤ v) in the stationary state."""
    shape, rate = product_law(label_mean, label_variance, learning_rate)
    return np.asarray(special.gammainc(shape, rate * np.asarray(v, dtype=np.float64)))


def product_moments(label_mean, label_variance, learning_rate) -> tuple[float, float]:
    """The stationary mean μ - ηs²/2 and variance ηs²(μ - ηs²/2) of v = uw; E u² = E w² = E v."""
    shape, rate = product_law(label_mean, label_variance, learning_rate)
    return shape / rate, shape / rate**2


def excess_risk(label_mean, label_variance, learning_rate) -> float:
    """E (v - μ)²/2 in the stationary state."""
    mean, variance = product_moments(label_mean, label_variance, learning_rate)
    return 0.5 * (variance + (mean - label_mean) ** 2)
