"""Random reshuffling against sampling with replacement: exact laws on quadratics, and modified flows of the means.

M minibatches an epoch, learning rate η, t = η · steps. Two results: at the end of an epoch reshuffled SGD has far less
variance, and its mean feels the spread of the minibatch gradients, which that of i.i.d. SGD does not.
"""

import math

import numpy as np
from jaxtyping import Float

from ._checked import positive, whole


def reshuffled_variance(curvature, noise_variance, learning_rate, batches: int) -> float:
    """The stationary variance at the ends of epochs, for L_i = hθ²/2 - b_iθ, Σ b_i = 0 and mean b_i² = s².

    η²s² (M/(M-1)) (S₂ - S₁²/M)/(1 - a^{2M}) with a = 1 - ηh and S_q = Σ_{j<M} a^{qj}: within an epoch the noises have
    the correlation -1/(M-1). For small ηhM it is η³hs²M(M+1)/24, a fraction (ηh)²M²/12 of the i.i.d. variance.
    `ValueError` unless ηh < 2 and M ≥ 2.
    """
    h, eta, s2 = _stable(curvature, learning_rate, noise_variance)
    m = whole("batches", batches, 2)
    powers = (1 - eta * h) ** np.arange(m)
    # S₂ - S₁²/M as a sum of squares: no cancellation where all powers are near 1.
    spread = np.sum((powers - powers.mean()) ** 2)
    return float(eta**2 * s2 * m / (m - 1) * spread / -np.expm1(2 * m * np.log(np.abs(1 - eta * h))))


def independent_variance(curvature, noise_variance, learning_rate) -> float:
    """ηs²/(h(2 - ηh)): the stationary variance for minibatches drawn with replacement."""
    h, eta, s2 = _stable(curvature, learning_rate, noise_variance)
    return eta * s2 / (h * (2 - eta * h))


def reshuffled_mean(curvatures, centres, w0, learning_rate, epochs: int = 1) -> float:
    """E w after epochs of reshuffled SGD on L_j = h_j (w - a_j)²/2, exactly, over all orders.

    The mean over orders of the product of 1 - ηh over the batches that follow j is a mean of elementary symmetric
    polynomials, so that M! orders cost M³ operations.
    """
    h, a, eta = _batches(curvatures, centres, learning_rate)
    factors, m = 1 - eta * h, len(h)
    later = np.empty(m)
    for j in range(m):
        # The coefficients of Π (1 + factor · z) are the elementary symmetric polynomials.
        coefficients = np.array([1.0])
        for f in np.delete(factors, j):
            coefficients = np.convolve(coefficients, [1.0, f])
        later[j] = np.mean([coefficients[s] / math.comb(m - 1, s) for s in range(m)])
    return _iterate(np.prod(factors), np.sum(eta * h * a * later), w0, whole("epochs", epochs, 0))


def independent_mean(curvatures, centres, w0, learning_rate, epochs: int = 1) -> float:
    """E w after epochs of M steps, each with a batch drawn with replacement."""
    h, a, eta = _batches(curvatures, centres, learning_rate)
    return _iterate(1 - eta * h.mean(), eta * np.mean(h * a), w0, len(h) * whole("epochs", epochs, 0))


def reshuffled_flow(curvatures, centres, w0, learning_rate, epochs: int = 1) -> float:
    """The flow of L + (η/4M) Σ_j |∇L_j|², L = (1/M) Σ L_j, at t = Mη · epochs, that the mean of shuffled SGD follows.

    The error is O(η³) an epoch (Smith et al. 2021). Σ|∇L_j|²/M is |∇L|² and the variance of the batch gradients.
    """
    h, a, eta = _batches(curvatures, centres, learning_rate)
    return _flow(h, a, eta, np.mean(h**2), np.mean(h**2 * a), w0, epochs)


def independent_flow(curvatures, centres, w0, learning_rate, epochs: int = 1) -> float:
    """The flow of L + (η/4)|∇L|² at t = Mη · epochs, for batches drawn with replacement, and for full gradients.

    The variance of the batch gradients does not appear: it is an effect of shuffling (error O(η³) an epoch).
    """
    h, a, eta = _batches(curvatures, centres, learning_rate)
    return _flow(h, a, eta, h.mean() ** 2, h.mean() * np.mean(h * a), w0, epochs)


def gradient_flow(curvatures, centres, w0, learning_rate, epochs: int = 1) -> float:
    """The flow of L itself at t = Mη · epochs."""
    h, a, eta = _batches(curvatures, centres, learning_rate)
    return _flow(h, a, eta, 0.0, 0.0, w0, epochs)


def _flow(h, a, eta: float, square, pull, w0, epochs: int) -> float:
    # w' = -(rate · w - force): the gradient of (η/4)(…)² adds η/2 times `square` · w - `pull`.
    rate, force = h.mean() + 0.5 * eta * square, np.mean(h * a) + 0.5 * eta * pull
    t = len(h) * eta * whole("epochs", epochs, 0)
    return float(force / rate + (w0 - force / rate) * np.exp(-rate * t))


def _iterate(factor, push, w0, count: int) -> float:
    """w after `count` of w ← factor · w + push."""
    centre = push / (1 - factor)
    return float(centre + (w0 - centre) * factor**count)


def _batches(curvatures, centres, learning_rate) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"], float]:
    h, a = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (curvatures, centres))
    if h.ndim != 1 or h.shape != a.shape:
        raise ValueError(f"`curvatures` and `centres` must both have the shape (M,), but have {h.shape}, {a.shape}.")
    if not h.mean() > 0:
        raise ValueError(f"`curvatures` must have a positive mean, but it is {h.mean():g}.")
    return h, a, positive("learning_rate", learning_rate)


def _stable(curvature, learning_rate, noise_variance) -> tuple[float, float, float]:
    h, eta = positive("curvature", curvature), positive("learning_rate", learning_rate)
    if not eta * h < 2:
        raise ValueError(f"`learning_rate` must be below 2/h = {2 / h:.6g}, but got {eta:.6g}.")
    return h, eta, positive("noise_variance", noise_variance)
