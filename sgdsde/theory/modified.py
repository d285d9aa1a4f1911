"""How good the modified equations of SGD are on f = hx²/2 with noise of variance c: exact iteration, order 1, order 2.

The stochastic modified equations (Li, Tai and E), Itô, t = η · steps:

    order 1   dX = -hX dt + √(ηc) dB
    order 2   dX = -h(1 + ηh/2)X dt + √(ηc) dB

Order 2 improves the mean from O(η) to O(η²), but its stationary variance is further from that of SGD, by -ηh instead of
-ηh/2 relative: the noise needs its own correction. An Ornstein-Uhlenbeck process that agrees with SGD at every step has
the rate `matched_rate` and the noise `matched_noise`.
"""

import math

from ._checked import not_negative, positive


def mean_factor(curvature, learning_rate, steps, order: int | None = None) -> float:
    """E x/x₀ after `steps`: (1 - ηh)^k of SGD (`order=None`), e^{-hkη} at order 1, e^{-h(1 + ηh/2)kη} at order 2."""
    h, eta = _stable(curvature, learning_rate)
    not_negative("steps", steps)
    if order is None:
        return (1 - eta * h) ** steps
    return math.exp(-_rate(h, eta, order) * eta * steps)


def stationary_variance(curvature, noise_variance, learning_rate, order: int | None = None) -> float:
    """ηc/(h(2 - ηh)) of SGD (`order=None`), ηc/(2h) at order 1, ηc/(2h(1 + ηh/2)) at order 2."""
    h, eta = _stable(curvature, learning_rate)
    c = positive("noise_variance", noise_variance)
    if order is None:
        return eta * c / (h * (2 - eta * h))
    return eta * c / (2 * _rate(h, eta, order))


def matched_rate(curvature, learning_rate) -> float:
    """h_eff = -log(1 - ηh)/η. `ValueError` from ηh = 1 on, where SGD alternates and no such process does."""
    h, eta = _stable(curvature, learning_rate)
    if not eta * h < 1:
        raise ValueError(f"`learning_rate` must be below 1/h = {1 / h:.6g}, but got {eta:.6g}: SGD alternates there.")
    return -math.log1p(-eta * h) / eta


def matched_noise(curvature, noise_variance, learning_rate) -> float:
    """s² = 2h_eff ηc/(h(2 - ηh)) in dX = -h_eff X dt + s dB, which then has the law of SGD at t = kη."""
    return 2 * matched_rate(curvature, learning_rate) * stationary_variance(curvature, noise_variance, learning_rate)


def _rate(h: float, eta: float, order: int) -> float:
    if order not in (1, 2):
        raise ValueError(f"`order` must be 1, 2, or None for SGD itself, but got {order!r}.")
    return h if order == 1 else h * (1 + eta * h / 2)


def _stable(curvature, learning_rate) -> tuple[float, float]:
    h, eta = positive("curvature", curvature), positive("learning_rate", learning_rate)
    if not eta * h < 2:
        raise ValueError(f"`learning_rate` must be below 2/h = {2 / h:.6g}, where SGD is stable, but got {eta:.6g}.")
    return h, eta
