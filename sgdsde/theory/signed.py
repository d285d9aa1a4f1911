"""SignSGD on f = hx²/2 with normal gradient noise N(0, s²): the stationary law of its SDE.

dx = -erf(hx/(√2 s)) dt + √(η(1 - erf²)) dB (Compagnoni et al. 2025), Itô, t = η · steps: a step of sign g has this
mean and variance. Far out the steps are deterministic, of size η.
"""

import functools
import math

import numpy as np
from jaxtyping import Float
from scipy import special

from ._checked import positive


def stationary_pdf(x, curvature, noise_std, learning_rate) -> Float[np.ndarray, "..."]:
    """The density ∝ D⁻¹ exp(-∫₀ˣ erf/D), D = (η/2)(1 - erf²)."""
    h, s, eta = (positive(*a) for a in _named(curvature, noise_std, learning_rate))
    unit, nodes, weights = math.sqrt(2) * s / h, *_nodes(2 * math.sqrt(2) * s / (h * eta))
    log_total = special.logsumexp(_log_density(nodes, 2 * unit / eta) + np.log(weights))
    y = np.abs(np.asarray(x, dtype=np.float64)) / unit
    return np.asarray(np.exp(_log_density(y, 2 * unit / eta) - log_total) / (2 * unit))


def stationary_second_moment(curvature, noise_std, learning_rate) -> float:
    """E x² in the stationary state of the SDE, by quadrature."""
    h, s, eta = (positive(*a) for a in _named(curvature, noise_std, learning_rate))
    unit = math.sqrt(2) * s / h
    nodes, weights = _nodes(2 * unit / eta)
    logs = _log_density(nodes, 2 * unit / eta)
    mass = weights * np.exp(logs - np.max(logs))
    return float(unit**2 * np.sum(mass * nodes**2) / np.sum(mass))


def linearised_second_moment(curvature, noise_std, learning_rate) -> float:
    """ηs√(π/2)/(2h): E x² to leading order in η. Proportional to η/√B; SGD has η/B."""
    h, s, eta = (positive(*a) for a in _named(curvature, noise_std, learning_rate))
    return eta * s * math.sqrt(math.pi / 2) / (2 * h)


def _named(curvature, noise_std, learning_rate):
    return ("curvature", curvature), ("noise_std", noise_std), ("learning_rate", learning_rate)


def _log_density(y, stiffness: float):
    """-log(1 - erf²y) - stiffness ∫₀ʸ erf/(1 - erf²), for y ≥ 0 in units of √2 s/h."""
    log_variance = special.log_ndtr(-math.sqrt(2) * y) + math.log(2) + np.log1p(special.erf(y))
    return -log_variance - stiffness * _potential(y)


def _potential(y):
    """∫₀ʸ erf/(1 - erf²) by Gauss-Legendre from 0; inf beyond the range of floats."""
    x, w = _rule(80)
    y = np.minimum(np.asarray(y, dtype=np.float64), 25.0)[..., None]
    points = 0.5 * y * (1 + x)
    ratio = special.erf(points) / (special.erfc(points) * (1 + special.erf(points)))
    return np.sum(0.5 * y * w * ratio, axis=-1)


def _nodes(stiffness: float):
    """Gauss-Legendre nodes and weights on the part of y ≥ 0 that has mass."""
    reach = 1.0
    while stiffness * _potential(reach) < 750 and reach < 25:
        reach *= 1.1
    # Where the stiffness is large the density is a narrow normal law.
    x, w = _rule(400)
    return 0.5 * reach * (1 + x), 0.5 * reach * w


_rule = functools.cache(np.polynomial.legendre.leggauss)
