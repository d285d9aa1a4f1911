"""Where SGD leaves a minimum that its SDE never leaves: losses h_i x²/2 with one minimum, and the edge ηh = 2.

A step of SGD with one of the losses f_i = h_i x²/2, drawn at random, is x ← (1 - ηh_i)x. Let a be the mean and s² the
variance of the curvatures. The SDE dX = -aX dt + √η sX dB (Itô), t = η · steps, is a geometric Brownian motion. Growth
rates are per unit of that time:

                       SGD                              SDE
    E x²               log((1 - ηa)² + η²s²)/η          -2a + ηs²
    log|x|, surely     E log|1 - ηh|/η                  -a - ηs²/2

To first order in η each pair agrees. But SGD is stable in mean square only if (1 - ηa)² + η²s² < 1, that is for
η < 2a/(a² + s²), and the SDE for η < 2a/s², which is larger; and where SGD escapes surely, log|X| of the SDE tends to
-∞ for every η. With s = 0 what is left is the edge ηa = 2: SGD diverges from there on, and the SDE never does.

Source of the two quadratics: Wu, Ma and E, *How SGD selects the global minima in over-parameterized learning: a
dynamical stability perspective*, NeurIPS 2018.
"""

import math

import numpy as np
from jaxtyping import Float

from ._checked import positive, whole


def mean_square_edge(curvatures) -> tuple[float, float]:
    """The learning rates 2a/(a² + s²) and 2a/s² from which E x² grows, of SGD and of its SDE; the second may be inf."""
    h = _curvatures(curvatures)
    a, variance = h.mean(), h.var()
    if not a > 0:
        raise ValueError(f"`curvatures` must have a positive mean, or x = 0 is no minimum, but got mean {a:g}.")
    return float(2 * a / (a**2 + variance)), float(2 * a / variance) if variance > 0 else math.inf


def mean_square_rates(curvatures, learning_rate) -> tuple[float, float]:
    """d log E x²/dt of SGD and of its SDE."""
    h, eta = _curvatures(curvatures), positive("learning_rate", learning_rate)
    with np.errstate(divide="ignore"):
        discrete = np.log(np.mean((1 - eta * h) ** 2)) / eta
    return float(discrete), float(-2 * h.mean() + eta * h.var())


def lyapunov_exponents(curvatures, learning_rate) -> tuple[float, float]:
    """d log|x|/dt along almost every path, of SGD and of its SDE; -inf if a step of SGD can hit 0 exactly."""
    h, eta = _curvatures(curvatures), positive("learning_rate", learning_rate)
    with np.errstate(divide="ignore"):
        discrete = np.mean(np.log(np.abs(1 - eta * h))) / eta
    return float(discrete), float(-h.mean() - 0.5 * eta * h.var())


def second_moment(curvatures, learning_rate, steps, levels: int = 1) -> float:
    """E x²/x₀² after `steps` steps of SGD, or l = `levels` times as many of SVAG: ((1 - ηa/l)² + η²s²/l)^(l steps)."""
    h, eta = _curvatures(curvatures), positive("learning_rate", learning_rate)
    split = whole("levels", levels)
    return float(((1 - eta * h.mean() / split) ** 2 + eta**2 * h.var() / split) ** (split * whole("steps", steps, 0)))


def escape_probability(curvatures, learning_rate, ratio) -> float:
    """P(|X| ever exceeds `ratio` |X₀|) = ratio^-(1 + 2a/(ηs²)) of the SDE, for ratio ≥ 1 and a > -ηs²/2; 0 if s = 0."""
    h, eta = _curvatures(curvatures), positive("learning_rate", learning_rate)
    if not ratio >= 1:
        raise ValueError(f"`ratio` must be at least 1, the start itself, but got {ratio}.")
    drift, variance = float(h.mean()), float(eta * h.var())
    if not drift > -variance / 2:
        raise ValueError(f"`curvatures` of mean {drift:g} make the SDE leave surely: the mean must be above -ηs²/2.")
    return float(ratio) ** -(1 + 2 * drift / variance) if variance > 0 else float(ratio == 1)


def _curvatures(h) -> Float[np.ndarray, " n"]:
    h = np.atleast_1d(np.asarray(h, dtype=np.float64))
    if h.ndim != 1 or h.size == 0 or not np.all(np.isfinite(h)):
        raise ValueError(f"`curvatures` must be finite numbers of shape (n,), one for each loss, but got {h!r}.")
    return h
