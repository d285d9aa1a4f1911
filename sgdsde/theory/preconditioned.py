"""Preconditioned SGD on a quadratic loss: w ← w - ηFg, with a fixed symmetric positive definite F."""

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_discrete_lyapunov

from . import _linear
from ._checked import definite, quadratic_model, rates


def preconditioned_covariance(
    H, C, F, learning_rate, batch_size=1, finite_rate: bool = False
) -> Float[np.ndarray, "d d"]:
    """The stationary covariance P of w on f = wᵀHw/2, with single-sample gradient covariance C and batch size B.

    To leading order, that is for dw = -F∇f dt + √(η/B) F C^{1/2} dB (Itô, t = η · steps):

        FHP + PHF = (η/B) FCF.

    With `finite_rate=True` the discrete iteration, FHP + PHF - η FHPHF = (η/B) FCF. Newton, F = H⁻¹, has
    P = (η/2B) H⁻¹CH⁻¹, divided by 1 - η/2 at a finite rate.

    F may depend on w slowly, but not on the minibatch; then no drift ∇·F appears (that term belongs to samplers).
    `ValueError` unless H and F are positive definite, C semi-definite and η λ_max(FH) < 2.
    """
    eta = rates(learning_rate, batch_size)
    H, C = quadratic_model(H, C)
    F = definite("F", F)
    if F.shape != H.shape:
        raise ValueError(f"`F` must have the shape of `H`, {H.shape}, but has {F.shape}.")
    if not finite_rate:
        return _linear.stationary(-F @ H, eta / batch_size * F @ C @ F)
    limit = 2 / np.max(np.linalg.eigvals(F @ H).real)
    if not eta < limit:
        raise ValueError(
            f"`learning_rate` must be below 2/λ_max(FH) = {limit:.6g}, where the iteration turns unstable, but got "
            f"{eta:.6g}."
        )
    return solve_discrete_lyapunov(np.eye(len(H)) - eta * F @ H, eta**2 / batch_size * F @ C @ F)
