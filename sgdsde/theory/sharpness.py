"""Sharpness-aware minimisation on quadratics f = wᵀHw/2: its loss, its two-cycle, and the noise of USAM."""

import math

import numpy as np
from jaxtyping import Float
from scipy.optimize import root_scalar

from ._checked import definite, not_negative, positive, quadratic_model, rates, symmetric
from .covariance import stationary_covariance


def sam_loss(H, w, radius) -> float:
    """max_{|e| ≤ ρ} (w + e)ᵀH(w + e)/2 exactly, H positive semi-definite; h(|w| + ρ)²/2 in one dimension.

    The maximiser solves (μI - H)e = Hw with |e| = ρ and μ ≥ λ_max. To first order in ρ it is f + ρ|∇f|.
    """
    H, rho = symmetric("H", H), not_negative("radius", radius)
    values, vectors = np.linalg.eigh(H)
    if values[0] < -1e-12 * abs(values[-1]):
        raise ValueError(f"`H` must be positive semi-definite, but has the eigenvalue {values[0]:.6g}.")
    v = vectors.T @ np.atleast_1d(np.asarray(w, dtype=np.float64))
    e = _worst_step(values, values * v, rho)
    return float(0.5 * np.sum(values * (v + e) ** 2))


def cycle_amplitude(curvature, radius, learning_rate) -> float:
    """|w*| = ηhρ/(2 - ηh): deterministic SAM does not converge in one dimension, it ends in the cycle w* → -w* → w*."""
    h, rho = positive("curvature", curvature), not_negative("radius", radius)
    step = positive("learning_rate", learning_rate) * h
    if not step < 2:
        raise ValueError(f"`learning_rate` must be below 2/h = {2 / h:.6g}, but got {learning_rate}.")
    return step * rho / (2 - step)


def usam_covariance(H, C, learning_rate, radius, batch_size=1, finite_rate: bool = False) -> Float[np.ndarray, "d d"]:
    """The stationary covariance of w ← w - η g(w + ρ g(w)), both gradients from one minibatch.

    It is SGD with the Hessian H(I + ρH) and noise (I + ρH)C(I + ρH)/B; for one curvature h, ηc(1 + ρh)/(2Bh), which
    grows with ρ. With `finite_rate=True` the discrete iteration, stable while ηh(1 + ρh) < 2 for every curvature.
    """
    rates(learning_rate, batch_size)
    H, C = quadratic_model(H, C)
    ascent = np.eye(len(H)) + not_negative("radius", radius) * H
    noise = ascent @ C @ ascent
    return stationary_covariance(
        definite("H", H @ ascent), 0.5 * (noise + noise.T), learning_rate, batch_size, finite_rate=finite_rate
    )


def _worst_step(values, gradient, rho: float) -> Float[np.ndarray, " d"]:
    """e of length ρ that maximises ½eᵀΛe + gᵀe, Λ diagonal and ascending: (μ - Λ)e = g, μ ≥ λ_max."""
    scale = np.linalg.norm(gradient)
    pulled = np.abs(gradient) > 1e-15 * scale
    steepest = values >= values[-1] * (1 - 1e-14)

    def step(mu):
        return np.where(pulled, gradient / np.where(pulled, mu - values, 1.0), 0.0)

    if rho == 0 or scale == 0 or not np.any(pulled & steepest):
        e = step(values[-1])
        if np.linalg.norm(e) <= rho:
            # The hard case: nothing pulls along the steepest directions, where the rest of the length goes.
            e[-1] = math.sqrt(max(rho**2 - e @ e, 0.0))
            return e
    low = values[-1] + np.linalg.norm(gradient[pulled & steepest]) / rho
    if np.linalg.norm(step(low)) <= rho:
        return step(low)
    high = values[-1] + scale / rho
    return step(root_scalar(lambda mu: np.linalg.norm(step(mu)) - rho, bracket=(low, high), xtol=1e-15 * high).root)
