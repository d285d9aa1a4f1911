"""Mean and covariance of linear stochastic differential equations dX = AX dt + dξ, ⟨dξ dξᵀ⟩ = Q dt."""

import numpy as np
from jaxtyping import Float
from scipy.linalg import expm, solve_continuous_lyapunov


def propagate(A: Float[np.ndarray, "d d"], t: float) -> Float[np.ndarray, "d d"]:
    """e^{At}; `ValueError` if t is negative."""
    if not 0 <= t < np.inf:
        raise ValueError(f"`t` must be at least 0 and finite, but got t={t}.")
    return np.asarray(expm(A * t))


def stationary(A: Float[np.ndarray, "d d"], Q: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """P with AP + PAᵀ + Q = 0, for A whose eigenvalues all have negative real parts."""
    P = solve_continuous_lyapunov(A, -Q)
    return 0.5 * (P + P.T)


def covariance(
    A: Float[np.ndarray, "d d"], Q: Float[np.ndarray, "d d"], t: float, initial: Float[np.ndarray, "d d"]
) -> Float[np.ndarray, "d d"]:
    """The covariance at t: P' = AP + PAᵀ + Q from `initial`, also where A is not stable."""
    step = propagate(A, t)
    if np.max(np.linalg.eigvals(A).real) < 0:
        limit = stationary(A, Q)
        return limit + step @ (initial - limit) @ step.T
    # Van Loan: the upper right block of the exponential is e^{-At} ∫ e^{As} Q e^{Aᵀs} ds.
    block = expm(np.block([[-A, Q], [np.zeros_like(A), A.T]]) * t)
    gained = step @ block[: len(A), len(A) :]
    return step @ initial @ step.T + 0.5 * (gained + gained.T)
