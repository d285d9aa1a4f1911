"""Minibatch noise of n orthonormal data, f = Σ r_i²/(2n): low-rank noise with exact moments, discrete and continuous.

The gradient of example i is r_i a_i with aᵢ·aⱼ = δᵢⱼ, so that SGD multiplies each residual by a random factor, and
components orthogonal to the data never move. Its SDE is dr_i = -(r_i/n) dt + √(η/(bn)) r_i dB_i with
⟨B_i, B_j⟩ = δᵢⱼ - 1/n: each r_i is a geometric Brownian motion, and the noise has rank n - 1. Batches of b are drawn
with replacement; t = η · steps. Ratios below are of moments at a time to those at the start.
"""

import math

import numpy as np
from jaxtyping import Float

from ._checked import positive, whole


def sde_second_moments(n: int, batch_size: int, learning_rate, t) -> tuple[float, float]:
    """(E r_i², E r_i r_j) over their starting values: exp(-2t/n + (η/(bn))(1 - 1/n)t), and with -1/n for i ≠ j."""
    n, b = whole("n", n), whole("batch_size", batch_size)
    gain = positive("learning_rate", learning_rate) / (b * n)
    return math.exp((-2 / n + gain * (1 - 1 / n)) * t), math.exp((-2 / n - gain / n) * t)


def second_moments(n: int, batch_size: int, learning_rate, steps: int, levels: int = 1) -> tuple[float, float]:
    """(E r_i², E r_i r_j) over their starting values after `steps` steps of SGD, or of SVAG with `levels` l > 1.

    SVAG takes l steps of size η/l for one, with gradients r₊g₁ + r₋g₂, r± = (1 ± √(2l-1))/2: the same mean, and a
    covariance l times as large. It tends to the SDE as l → ∞.
    """
    n, b, split = whole("n", n), whole("batch_size", batch_size), whole("levels", levels)
    step = positive("learning_rate", learning_rate) / split
    # The share N_i/b of example i has mean 1/n and covariance (δ_ij - 1/n)/(bn).
    mean, variance = (1 - step / n) ** 2, step**2 * split / (b * n)
    count = split * whole("steps", steps, 0)
    return (mean + variance * (1 - 1 / n)) ** count, (mean - variance / n) ** count


def lyapunov_exponents(n: int, batch_size: int, learning_rate) -> tuple[float, float]:
    """d log|r_i|/dt, of SGD and of its SDE: E log|1 - ηN/b|/η with N ~ Binomial(b, 1/n), and -1/n - (η/2bn)(1 - 1/n).

    For b = 1 the first is log|1 - η|/(nη). -inf where ηN = b can happen: r_i is then hit exactly.
    """
    n, b, eta = whole("n", n), whole("batch_size", batch_size), positive("learning_rate", learning_rate)
    drawn = np.arange(b + 1)
    chances = np.array([math.comb(b, k) * (1 / n) ** k * (1 - 1 / n) ** (b - k) for k in drawn])
    with np.errstate(divide="ignore"):
        discrete = float(np.sum(chances[1:] * np.log(np.abs(1 - eta * drawn[1:] / b)))) / eta
    return discrete, -1 / n - eta / (2 * b * n) * (1 - 1 / n)


def noise_covariance(residuals, batch_size: int) -> Float[np.ndarray, "n n"]:
    """Σ = (1/b)[(1/n) diag(r²) - (1/n²) rrᵀ] in the basis of the data: rank n - 1 where no r_i is 0."""
    r = np.asarray(residuals, dtype=np.float64)
    n, b = len(r), whole("batch_size", batch_size)
    return (np.diag(r**2) / n - np.outer(r, r) / n**2) / b
