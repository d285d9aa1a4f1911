"""Momentum on a quadratic loss f = xᵀHx/2: exact stationary covariances, stability limits, and the underdamped SDE.

Three discrete forms with gradients g = Hx + noise of covariance C/B and coefficient β:

- heavy ball: m ← βm + g, x ← x - ηm with the new m (PyTorch without dampening);
- exponential average: m ← βm + (1-β)g, x ← x - ηm with the new m: heavy ball at the learning rate η(1-β);
- delayed: the same average, but x ← x - ηm with the old m, as some texts print it. It is another algorithm: momentum
  then no longer widens the range of stable learning rates.

`sgdsde.theory.stationary_covariance` has the heavy ball.
"""

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_discrete_lyapunov

from . import _linear
from ._checked import momentum as check_momentum, positive, quadratic_model, rates
from .covariance import stationary_covariance


def averaged_covariance(H, C, learning_rate, batch_size=1, momentum=0.9) -> Float[np.ndarray, "d d"]:
    """The exact covariance of x for the exponential average.

    For one curvature h and noise variance c: (1+β)ηc / (h[2(1+β) - η(1-β)h]). `ValueError` unless
    η λ_max(H) < 2(1+β)/(1-β).
    """
    eta, beta = rates(learning_rate, batch_size), check_momentum(momentum)
    return stationary_covariance(H, C, eta * (1 - beta), batch_size, beta, finite_rate=True)


def delayed_covariance(H, C, learning_rate, batch_size=1, momentum=0.9) -> Float[np.ndarray, "d d"]:
    """The exact covariance of x for the delayed form.

    For one curvature h and noise variance c, with a = η(1-β)h: (1+β+a)η(1-β)c / ((1-β-a) h (2(1+β)+a)). `ValueError`
    unless η λ_max(H) < 1, for every β.
    """
    eta, beta = rates(learning_rate, batch_size), check_momentum(momentum)
    H, C = quadratic_model(H, C)
    limit = 1 / np.linalg.eigvalsh(H)[-1]
    if not eta < limit:
        raise ValueError(
            f"`learning_rate` must be below 1/λ_max(H) = {limit:.6g}, where the delayed iteration turns unstable for "
            f"every momentum, but got {eta:.6g}."
        )
    eye, zero = np.eye(len(H)), np.zeros_like(H)
    step = np.block([[eye, -eta * eye], [(1 - beta) * H, beta * eye]])
    noise = np.block([[zero, zero], [zero, (1 - beta) ** 2 / batch_size * C]])
    return solve_discrete_lyapunov(step, noise)[: len(H), : len(H)]


def largest_rate(curvature, momentum, form: str = "heavy ball") -> float:
    """The learning rate where the iteration turns unstable at the largest curvature h.

    2(1+β)/h for "heavy ball", 2(1+β)/((1-β)h) for "averaged", 1/h for "delayed".
    """
    h, beta = positive("curvature", curvature), check_momentum(momentum)
    limits = {"heavy ball": 2 * (1 + beta), "averaged": 2 * (1 + beta) / (1 - beta), "delayed": 1.0}
    if form not in limits:
        raise ValueError(f"`form` must be one of {sorted(limits)}, but got {form!r}.")
    return limits[form] / h


def underdamped_mean(x0, m0, t: float, H, friction) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """(E x_t, E m_t) of dx = -m dt, dm = γ(Hx - m) dt + γ√(η/B) C^{1/2} dB: the limit of the exponential average.

    The friction is γ = (1-β)/η, t = η · steps, Itô. Each curvature h relaxes with the roots of z² + γz + γh = 0.
    """
    A, _ = _underdamped(H, np.zeros_like(np.atleast_2d(H), dtype=np.float64), 1.0, 1, friction)
    state = np.concatenate([np.atleast_1d(x0), np.atleast_1d(m0)]).astype(np.float64)
    x, m = np.split(_linear.propagate(A, t) @ state, 2)
    return x, m


def underdamped_covariance(
    H, C, learning_rate, friction, batch_size=1, t: float | None = None
) -> Float[np.ndarray, "n n"]:
    """The covariance of (x, m), stationary or at time t from a point; see `underdamped_mean`.

    For one curvature h the stationary one is diag(ηc/(2Bh), γηc/(2B)): that of x does not depend on γ.
    """
    A, Q = _underdamped(H, C, learning_rate, batch_size, friction)
    return _linear.stationary(A, Q) if t is None else _linear.covariance(A, Q, t, np.zeros_like(Q))


def _underdamped(H, C, learning_rate, batch_size, friction):
    eta, gamma = rates(learning_rate, batch_size), positive("friction", friction)
    H, C = quadratic_model(H, C)
    eye, zero = np.eye(len(H)), np.zeros_like(H)
    A = np.block([[zero, -eye], [gamma * H, -gamma * eye]])
    return A, np.block([[zero, zero], [zero, gamma**2 * eta / batch_size * C]])
