"""SGD for linear regression on fresh Gaussian data: exact second moments and tails, of the iteration and of its SDE.

Data a ~ N(0, H), y = a·w* + N(0, s²); f(w) = E (a·w - y)²/2, batches of B fresh samples, v = w - w*. The gradient
covariance grows with the error, Σ = (1/B)(2fH + HvvᵀH), so that the learning rate and the batch size enter the
iteration separately, and tails are power laws.
"""

import numpy as np
from jaxtyping import Float
from scipy.optimize import root_scalar

from ._checked import definite, not_negative, positive, rates, whole
from .tails import kesten_exponent, log_chi_square_moment


def regression_loss(H, noise_variance, learning_rate, batch_size=1, finite_rate: bool = True) -> float:
    """E f in the stationary state, s²/(2(1-q)), of the iteration or (`finite_rate=False`) of the SDE.

    q = (η/B) Σ h_i/(2 - ηh_i(1 + 1/B)) over the eigenvalues of H; the SDE has 2 - ηh_i/B in the denominator.
    `ValueError` where the second moment is infinite, at learning rates above `largest_rate`.
    """
    q, _ = _feedback(H, learning_rate, batch_size, finite_rate)
    return not_negative("noise_variance", noise_variance) / (2 * (1 - q))


def regression_covariance(
    H, noise_variance, learning_rate, batch_size=1, finite_rate: bool = True
) -> Float[np.ndarray, "d d"]:
    """E vvᵀ in the stationary state, of the iteration or (`finite_rate=False`) of the SDE.

    In the eigenbasis of H it is diagonal, p_i = (η/B)(s²/(1-q))/(2 - ηh_i(1 + 1/B)), for the SDE with 2 - ηh_i/B. See
    `regression_loss`.
    """
    q, denominators = _feedback(H, learning_rate, batch_size, finite_rate)
    _, vectors = np.linalg.eigh(definite("H", H))
    p = learning_rate / batch_size * not_negative("noise_variance", noise_variance) / (1 - q) / denominators
    return (vectors * p) @ vectors.T


def largest_rate(H, batch_size=1, finite_rate: bool = True) -> float:
    """The learning rate where q reaches 1: beyond it E f is infinite, although the iteration may still have a law.

    It depends on the batch size, unlike 2/λ_max, the limit for noise that does not depend on w.
    """
    h = np.linalg.eigvalsh(definite("H", H))
    pole = 2 / (h[-1] * (1 / batch_size + finite_rate))
    bracket = (0.0, pole * (1 - 1e-12))
    return float(
        root_scalar(lambda eta: _sum(h, eta, batch_size, finite_rate)[0] - 1, bracket=bracket, xtol=1e-16).root
    )


def regression_tail_index(curvature, learning_rate, batch_size: int = 1) -> float:
    """α in P(|v| > R) ~ R^{-α} for one parameter: the root of E |1 - ηh χ²_B/B|^α = 1 (Kesten).

    The SDE has α = 1 + B/(ηh) (`regression_sde_tail_index`): for B = 1 a heavier tail at ηh = 0.2 (6 against 8.30),
    a lighter one at 0.5 (3 against 2.90). `ValueError` if no stationary law exists.
    """
    step = rates(learning_rate, batch_size) * positive("curvature", curvature)
    return kesten_exponent(lambda alpha: log_chi_square_moment(alpha, step, whole("batch_size", batch_size)))


def regression_sde_tail_index(curvature, learning_rate, batch_size=1) -> float:
    """1 + B/(ηh), the tail index of the SDE with the same mean and covariance of increments, for one parameter."""
    return 1 + batch_size / (rates(learning_rate, batch_size) * positive("curvature", curvature))


def _feedback(H, learning_rate, batch_size, finite_rate: bool):
    eta = rates(learning_rate, batch_size)
    q, denominators = _sum(np.linalg.eigvalsh(definite("H", H)), eta, batch_size, finite_rate)
    if not (np.all(denominators > 0) and q < 1):
        raise ValueError(
            f"`learning_rate` must be below {largest_rate(H, batch_size, finite_rate):.6g}, where the second moment "
            f"turns infinite, but got {eta:.6g}."
        )
    return q, denominators


def _sum(h, eta, batch_size, finite_rate: bool):
    denominators = 2 - eta * h * (1 / batch_size + finite_rate)
    return eta / batch_size * np.sum(h / denominators), denominators
