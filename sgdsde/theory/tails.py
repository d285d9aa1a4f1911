"""Tail exponents of SGD at a finite learning rate (Kesten's equation), against those of its SDE."""

import itertools
from collections.abc import Callable

import numpy as np
from scipy import integrate, special, stats
from scipy.optimize import root_scalar

from ._checked import positive


def kesten_exponent(log_moment: Callable[[float], float]) -> float:
    """The tail exponent α > 0 of x ← Ax + b: the root of E|A|^α = 1, with `log_moment(α)` = log E|A|^α.

    P(|x| > R) ~ R^{-α}; moments of order below α are finite (Kesten 1973). log E|A|^α is convex in α and 0 at 0, so
    there is one root if E log|A| < 0. `ValueError` if the iteration does not contract, or never expands (no power law).
    """
    if not log_moment(_small) < 0:
        raise ValueError("E log|A| is not negative: the iteration has no stationary law. Reduce the learning rate.")
    high = 1.0
    while log_moment(high) < 0:
        high *= 2
        if high > _largest:
            raise ValueError(f"E|A|^α stays below 1 up to α = {_largest:g}: the tail is lighter than any power tested.")
    return float(root_scalar(log_moment, bracket=(_small, high), xtol=1e-13).root)


def loss_proportional_tail_index(curvature, temperature, learning_rate) -> float:
    """α of SGD with Gaussian noise, D = κf, on f = λ(s² + x²)/2: the root of E |1 - ηλ + √(ηλκ) Z|^α = 1, Z normal.

    `temperature` is κ. As η → 0 it tends to 1 + 2/κ, the exponent of the SDE. The scale s does not enter.
    """
    step = positive("learning_rate", learning_rate) * positive("curvature", curvature)
    spread = np.sqrt(step * positive("temperature", temperature))
    return kesten_exponent(lambda alpha: _log_normal_moment(alpha, 1 - step, spread))


def sde_tail_index(temperature, dim: int = 1) -> float:
    """α = 2p - d = 2 + 2/κ - d in P(|x| > R) ~ R^{-α}, for the power law f^(-p) with f ~ |x|² far out.

    `ValueError` unless it is positive: otherwise there is no such law.
    """
    alpha = 2 + 2 / positive("temperature", temperature) - dim
    if not alpha > 0:
        raise ValueError(
            f"In dim={dim} the law needs `temperature` below 2/(d-2) = {2 / (dim - 2):g}, but got {temperature}."
        )
    return alpha


def log_chi_square_moment(alpha: float, step: float, freedom: int) -> float:
    """log E |1 - step · χ²_n/n|^α for n degrees of freedom: the contraction factors of Gaussian linear regression."""
    log_constant = np.log(2) - 0.5 * freedom * np.log(2) - special.gammaln(freedom / 2)

    def log_integrand(u):
        # In u = √χ² the density, u^{n-1} e^{-u²/2}, is smooth.
        return log_constant + special.xlogy(freedom - 1, u) - u**2 / 2 + _log_power(1 - step * u**2 / freedom, alpha)

    kink, reach = np.sqrt(freedom / step), np.sqrt(stats.chi2.isf(1e-300, freedom)) + 2 * np.sqrt(2 * alpha)
    return _log_integral(log_integrand, 0.0, reach, [kink])


def _log_normal_moment(alpha: float, mean: float, spread: float) -> float:
    """log E |mean + spread Z|^α."""

    def log_integrand(z):
        return -(z**2) / 2 - 0.5 * np.log(2 * np.pi) + _log_power(mean + spread * z, alpha)

    kink, reach = -mean / spread, 12 + 2 * np.sqrt(alpha)
    return _log_integral(log_integrand, -reach, reach, [kink])


def _log_power(a, alpha: float):
    with np.errstate(divide="ignore"):
        return alpha * np.log(np.abs(a))


def _log_integral(log_integrand: Callable, low: float, high: float, kinks: list[float]) -> float:
    """The log of the integral of exp(log_integrand), in pieces between kinks and around the peak."""
    grid = np.linspace(low, high, 4001)[1:-1]
    logs = log_integrand(grid)
    peak, top = float(grid[np.argmax(logs)]), float(np.max(logs))
    ends = [low, high, peak, *(k for k in kinks if low < k < high)]
    total = sum(
        integrate.quad(lambda x: np.exp(log_integrand(x) - top), a, b, epsabs=0, epsrel=1e-12, limit=400)[0]
        for a, b in itertools.pairwise(sorted(set(ends)))
    )
    return top + float(np.log(total))


# Between these the exponent is looked for.
_small, _largest = 1e-3, 1e4
