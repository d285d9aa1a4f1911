"""RMSProp and Adam as SDEs on f = hw²/2 with gradient noise of variance σ²c: moments, and what their averages do early.

The clock is t = η² · steps, not η · steps: the limit takes the noise of one step, σ, to be of order 1/η, so that
σ₀ = ση, ε₀ = εη, c_i = (1-β_i)/η² and u = v/σ² stay fixed (Malladi et al. 2022). It holds for σ much larger than |∇f|.

    RMSProp   dw = -P⁻¹(hw dt + σ₀√c dB),  du = c₂(c - u) dt,  P = σ₀√u + ε₀
    Adam      dw = -(√γ₂/γ₁)P⁻¹m dt,  dm = c₁(hw - m) dt + σ₀c₁√c dB,  P = σ₀√u + ε₀√γ₂,  γ_i = 1 - e^{-c_i t}
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp

from ._checked import not_negative, positive


class Hyperparameters(NamedTuple):
    """What the square-root rule scales."""

    batch_size: float
    learning_rate: float
    betas: tuple[float, ...]
    epsilon: float


def second_moment_average(t, noise, decay, u0) -> Float[np.ndarray, "..."]:
    """u_t = c + (u₀ - c)e^{-c₂t}: noise c, decay c₂."""
    return np.asarray(noise + (u0 - noise) * np.exp(-positive("decay", decay) * np.asarray(t, dtype=np.float64)))


def rmsprop_mean(x0, t, curvature, noise, scale, decay, u0, epsilon=0.0) -> float:
    """E w_t = x₀ exp(-h ∫₀ᵗ ds/P_s) of the RMSProp SDE; `scale` is σ₀ = ση, `epsilon` ε₀ = εη."""
    return float(x0 * np.exp(_rmsprop(t, curvature, noise, scale, decay, u0, epsilon)[0]))


def rmsprop_variance(t, curvature, noise, scale, decay, u0, epsilon=0.0) -> float:
    """Var w_t of the RMSProp SDE from a point: V' = -2(h/P)V + σ₀²c/P². Arguments as `rmsprop_mean`."""
    return float(_rmsprop(t, curvature, noise, scale, decay, u0, epsilon)[1])


def adam_mean(x0, t, curvature, noise, scale, decay, epsilon=0.0) -> float:
    """E w_t of the Adam SDE from w = x₀, m = u = 0; `decay` is c₁, `scale` σ₀ = ση, `epsilon` ε₀ = εη.

    With u = 0 at the start u_t = γ₂c, so that dw = -m/(γ₁P) dt with P = σ₀√c + ε₀: c₂ drops out.
    """
    return float(x0 * _adam(t, curvature, noise, scale, decay, epsilon)[0])


def adam_variance(t, curvature, noise, scale, decay, epsilon=0.0) -> float:
    """Var w_t of the Adam SDE from a point with m = u = 0. Arguments as `adam_mean`.

    V' = -2C/(γ₁P), C' = c₁(hV - C) - M/(γ₁P), M' = 2c₁(hC - M) + σ₀²c₁²c, with C = Cov(w, m) and M = Var m. It grows
    as 2σ₀²ct/P² at first, twice as fast as for RMSProp: the average weighs early gradients again and again.
    """
    return float(_adam(t, curvature, noise, scale, decay, epsilon)[1])


def stationary_variance(curvature, noise, scale, epsilon=0.0) -> float:
    """σ₀²c/(2hP), P = σ₀√c + ε₀, of both RMSProp and Adam, for any c₁ and c₂; σ₀√c/(2h) at ε = 0.

    The excess loss is then σ₀√c/4, proportional to η/√B where SGD has η/B.
    """
    h, c, sigma = positive("curvature", curvature), positive("noise", noise), positive("scale", scale)
    return sigma**2 * c / (2 * h * (sigma * np.sqrt(c) + not_negative("epsilon", epsilon)))


def square_root_rule(factor, batch_size, learning_rate, betas, epsilon) -> Hyperparameters:
    """The hyperparameters at `factor` k times the batch size: η√k, 1 - β → k(1 - β), ε/√k. One SDE for both.

    The same optimisation takes k times fewer steps. `ValueError` where k(1 - β) exceeds 1.
    """
    k, eta = positive("factor", factor), positive("learning_rate", learning_rate)
    scaled = tuple(1 - k * (1 - b) for b in betas)
    if not all(0 <= b < 1 for b in scaled):
        raise ValueError(f"`factor` must keep 1 - k(1 - β) in [0, 1), but betas={tuple(betas)} become {scaled}.")
    return Hyperparameters(k * batch_size, eta * np.sqrt(k), scaled, epsilon / np.sqrt(k))


def missing_bias_correction(steps, beta1=0.9, beta2=0.999) -> Float[np.ndarray, "..."]:
    """(1 - β₁ᵗ)/√(1 - β₂ᵗ) at step t = 1, 2, ...: by how much steps of Adam are larger without its bias correction."""
    t = np.asarray(steps)
    if np.any(t < 1):
        raise ValueError("`steps` must be 1 or more.")
    return np.asarray((1 - beta1**t) / np.sqrt(1 - beta2**t))


def _rmsprop(t, curvature, noise, scale, decay, u0, epsilon) -> Float[np.ndarray, "2"]:
    """(log E w_t/x₀, Var w_t)."""
    h, c, sigma = positive("curvature", curvature), positive("noise", noise), positive("scale", scale)
    c2, eps = positive("decay", decay), not_negative("epsilon", epsilon)
    if not not_negative("u0", u0) + eps > 0:
        raise ValueError("`u0` and `epsilon` must not both be 0: the first step would divide by 0.")
    if not_negative("t", t) == 0:
        return np.zeros(2)

    def rates(s, state):
        P = sigma * np.sqrt(c + (u0 - c) * np.exp(-c2 * s)) + eps
        return [-h / P, -2 * h / P * state[1] + sigma**2 * c / P**2]

    return solve_ivp(rates, (0.0, float(t)), [0.0, 0.0], method="DOP853", rtol=1e-12, atol=1e-15).y[:, -1]


# The start of the integration over the shortest time of the equations, which are singular at 0 as γ₁ is.
_first = 1e-8


def _adam(t, curvature, noise, scale, decay, epsilon) -> Float[np.ndarray, "2"]:
    """(E w_t/x₀, Var w_t)."""
    h, c, sigma = positive("curvature", curvature), positive("noise", noise), positive("scale", scale)
    c1, P = positive("decay", decay), sigma * np.sqrt(c) + not_negative("epsilon", epsilon)
    kick = sigma**2 * c
    t0 = min(_first * min(1 / c1, P / h), not_negative("t", t))

    def rates(s, state):
        w, m, V, C, M = state
        q = 1 / (-np.expm1(-c1 * s) * P)
        return [-q * m, c1 * (h * w - m), -2 * q * C, c1 * (h * V - C) - q * M, 2 * c1 * (h * C - M) + kick * c1**2]

    # To first order in t.
    start = np.array([1 - h * t0 / P, c1 * h * t0, 2 * kick * t0 / P**2, -kick * c1 * t0 / P, kick * c1**2 * t0])
    if t0 == t:
        return start[[0, 2]]
    return solve_ivp(rates, (t0, float(t)), start, method="DOP853", rtol=1e-11, atol=1e-15).y[[0, 2], -1]
