"""Fluctuations of SGD about gradient flow in one dimension: the variance of Wang's central limit theorem.

With X' = -f'(X) and V = lim √(B/η)(SGD - X): dV = -f''(X_t)V dt - σ(X_t) dB, V₀ = 0, so that Γ = Var V solves
Γ' = -2f''(X_t)Γ + σ²(X_t). As f'(X_t) decays with the same rate f''(X_t),

    Γ(t) = f'(X_t)² ∫₀ᵗ σ²(X_s)/f'(X_s)² ds.

Itô, t = η · steps. Near a saddle Γ grows like e^{2|λ|t}; at a degenerate minimum f ~ x⁴ like tσ²/4.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp

from .._checks import scalar_valued


def flow(loss: Callable, x0: float, ts) -> Float[np.ndarray, " s"]:
    """The gradient flow X(t) from x₀ at the increasing times ts ≥ 0; `loss` is a function of one point, shape (1,)."""
    return _solve(loss, lambda x: 1.0, x0, ts)[0]


def variance(loss: Callable, noise_variance, x0: float, ts) -> Float[np.ndarray, " s"]:
    """Γ at the times ts; `noise_variance` is σ², a number or a function of one point, for a single example.

    SGD with the batch size B has the variance ηΓ/B about the flow. `ValueError` if x₀ is critical: then Γ is that of
    `ornstein_uhlenbeck.covariance`.
    """
    sigma2 = noise_variance if callable(noise_variance) else (lambda x: noise_variance)
    x, integral = _solve(loss, sigma2, x0, ts)
    gradient = jax.vmap(jax.grad(scalar_valued(loss)))(jnp.asarray(x)[:, None])
    return np.asarray(gradient)[:, 0] ** 2 * integral


def _solve(loss: Callable, sigma2: Callable, x0: float, ts):
    """X and ∫₀ᵗ σ²/f'² ds at the times ts."""
    times = np.atleast_1d(np.asarray(ts, dtype=np.float64))
    if times.ndim != 1 or np.any(times < 0) or np.any(np.diff(times) <= 0):
        raise ValueError("`ts` must be increasing times of at least 0.")
    slope = jax.jit(jax.grad(scalar_valued(loss)))

    def rates(_, state):
        point = jnp.asarray(state[:1])
        down = float(slope(point)[0])
        return [-down, float(jnp.reshape(jnp.asarray(sigma2(point)), ())) / down**2]

    if abs(float(slope(jnp.full(1, float(x0)))[0])) == 0:
        raise ValueError(f"`x0` must not be a critical point of the loss, but f'({x0}) = 0.")
    solution = solve_ivp(
        rates, (0.0, max(times[-1], 1e-300)), [float(x0), 0.0], t_eval=times, method="DOP853", rtol=1e-11, atol=1e-14
    )
    return solution.y[0], solution.y[1]
