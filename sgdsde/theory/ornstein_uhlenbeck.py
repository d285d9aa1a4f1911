"""SGD near a point as an Ornstein-Uhlenbeck process: mean, covariance, relaxation rates and the stationary current.

dX = -HX dt + √(η/B) C^{1/2} dB with the Hessian H, the single-sample gradient covariance C, the learning rate η and
the batch size B; Itô, t = η · steps, D = ηC/(2B).
"""

import itertools

import numpy as np
from jaxtyping import Float

from . import _linear
from ._checked import definite, quadratic_model, rates, semidefinite, symmetric, whole


def mean(x0, t: float, H) -> Float[np.ndarray, " d"]:
    """E X_t = e^{-Ht} x₀, for a symmetric H of any sign."""
    return _linear.propagate(-symmetric("H", H), t) @ np.atleast_1d(np.asarray(x0, dtype=np.float64))


def covariance(t: float, H, C, learning_rate, batch_size=1, initial=None) -> Float[np.ndarray, "d d"]:
    """The covariance P(t), P' = -HP - PH + (η/B) C, from `initial` (zero if not given).

    H is symmetric and may be indefinite: at a saddle P grows like e^{2|λ|t}, along a flat direction like t.
    """
    eta = rates(learning_rate, batch_size)
    H, C = symmetric("H", H), semidefinite("C", C)
    start = np.zeros_like(H) if initial is None else semidefinite("initial", initial)
    return _linear.covariance(-H, eta / batch_size * C, t, start)


def eigenvalues(H, count: int = 6) -> Float[np.ndarray, " count"]:
    """The lowest rates of relaxation, the sums Σ n_i λ_i(H) with n_i = 0, 1, 2, ..., ascending with multiplicity.

    They are the spectrum of minus the generator, whatever C is, as long as every direction is reached by noise.
    """
    values, count = np.linalg.eigvalsh(definite("H", H)), whole("count", count)
    # The count lowest sums have at most count - 1 terms.
    sums = [sum(term) for n in range(count) for term in itertools.combinations_with_replacement(values, n)]
    return np.sort(np.asarray(sums, dtype=np.float64))[:count]


def current_matrix(H, C, learning_rate, batch_size=1) -> Float[np.ndarray, "d d"]:
    """Ω = -H + D P⁻¹: the stationary probability current is Ω x ρ(x). It vanishes iff HC = CH.

    C must be positive definite, so that the law has a density.
    """
    H, D, P = _stationary(H, C, learning_rate, batch_size)
    return -H + D @ np.linalg.inv(P)


def entropy_production(H, C, learning_rate, batch_size=1) -> float:
    """tr(Ωᵀ D⁻¹ Ω P) per unit of t, in the stationary state: how far it is from reversible; 0 iff HC = CH.

    It depends on neither η nor B. C must be positive definite.
    """
    H, D, P = _stationary(H, C, learning_rate, batch_size)
    omega = -H + D @ np.linalg.inv(P)
    return float(np.trace(omega.T @ np.linalg.solve(D, omega) @ P))


def _stationary(H, C, learning_rate, batch_size):
    eta = rates(learning_rate, batch_size)
    H, C = quadratic_model(H, C)
    D = eta / (2 * batch_size) * definite("C", C)
    return H, D, _linear.stationary(-H, 2 * D)
