"""SK-ROCK and its postprocessed version: explicit methods for stiff problems that are too large to solve with."""

import math
from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from numpy.polynomial import chebyshev

from .method import AbstractMethod, AbstractPostprocessed
from .probing import require_additive

# The damping η: what the stability domain gives up in length, 2η/3 of it, to have a width.
_damping = 0.05


class SKROCK(AbstractMethod):
    """SK-ROCK: a Chebyshev recurrence of `stages` drifts a step, stable at dt λ up to about 2 stages².

    With Q = G(t, x) dW the stages are K_1 = x + μ_1 dt b(x + ν_1 Q) + κ_1 Q and
    K_i = μ_i dt b(K_{i-1}) + ν_i K_{i-1} + κ_i K_{i-2}, and x' is the last. Every form of noise, one evaluation of G.

    On dX = -λX dt + μX dB a step is mean-square stable wherever the SDE is (μ² ≤ 2λ), up to dt λ = (2 - 4η/3) stages²
    with the damping η = 0.05: s stages reach s² times as far as one, for s times its cost. `SKROCK.stages_for` says how
    many a run takes. The curvatures must be real or nearly so, as those of a loss are; a strongly rotating drift needs
    an implicit method.

    Strong order 1/2, weak order 1. Modes with dt λ ≫ 1 are stable but damped: their fluctuations are too small. Not for
    problems that are not stiff: at one stage it costs what `EulerMaruyama` does.

    Source: Abdulle, Almuslimani and Vilmart, "Optimal explicit stabilized integrator of weak order 1 for stiff and
    ergodic stochastic differential equations", SIAM/ASA Journal on Uncertainty Quantification 6, 2018.
    """

    stages: int = eqx.field(static=True)

    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 1.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "ito"

    def __check_init__(self):
        _check_stages("SKROCK", self.stages, 1)

    @staticmethod
    def stages_for(dt: float, spectral_radius: float) -> int:
        """The fewest stages that are stable at this dt, for the largest |eigenvalue| of the Jacobian of the drift."""
        if not (0 < dt < np.inf and 0 <= spectral_radius < np.inf):
            raise ValueError(
                f"`dt` must be positive and `spectral_radius` at least 0, but dt={dt} and "
                f"spectral_radius={spectral_radius}."
            )
        return max(1, math.ceil(math.sqrt(dt * spectral_radius / (2 - 4 / 3 * _damping))))

    def needs(self, process, x):
        return "increment"

    def step(self, process, t, x, dt, increment):
        mu, nu, kappa = _coefficients(self.stages)
        q = process.noise(t, x).mv(increment.dw)
        first = x + mu[0] * dt * process.drift(t, x + nu[0] * q) + kappa[0] * q
        return _climb(process, t, x, dt, first, self.stages)


class PSKROCK(AbstractPostprocessed):
    """Postprocessed SK-ROCK, for the invariant law of a stiff problem with noise that does not depend on x.

    Steps y as SK-ROCK does but for its first stage, K_1 = y + ½ μ_1 dt (b(y + (ν_1+δ) Q) + b(y + (ν_1-δ) Q)) + κ_1 Q;
    the state is x = y + c Q for the increment of the step that begins. c and δ follow from the order conditions of the
    invariant law and depend on `stages` alone. Cost: stages + 1 drifts a step.

    The invariant law has an error of order 2 if it is reversible: b = G Gᵀ ∇log ρ / 2, as with b = -∇f and isotropic
    noise. Otherwise, and at finite times, weak order 1. Strong order 1/2, as x is ahead of the Brownian motion. Stable
    as `SKROCK`, whose `stages_for` says how many stages a run takes; two at least, for with one it would be
    `LeimkuhlerMatthews`. Modes with dt λ ≫ 1 are stable, but their variance is of the wrong size.

    Source: Abdulle, Almuslimani and Vilmart (see `SKROCK`) for the idea and the stages; the first of them is corrected
    in a way of our own, whose conditions are in `_postprocessor` below.
    """

    stages: int = eqx.field(static=True)

    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 1.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "ito"

    def __check_init__(self):
        _check_stages("PSKROCK", self.stages, 2)

    def needs(self, process, x):
        require_additive(type(self).__name__, process, x)
        return "increment"

    def enter(self, process, t, x, dt, increment):
        return x - _postprocessor(self.stages)[0] * process.noise(t, x).mv(increment.dw)

    def step(self, process, t, x, dt, increment):
        mu, nu, kappa = _coefficients(self.stages)
        _, delta = _postprocessor(self.stages)
        q = process.noise(t, x).mv(increment.dw)
        ahead = process.drift(t, x + (nu[0] + delta) * q)
        behind = process.drift(t, x + (nu[0] - delta) * q)
        first = x + 0.5 * mu[0] * dt * (ahead + behind) + kappa[0] * q
        return _climb(process, t, x, dt, first, self.stages)

    def leave(self, process, t, y, dt, increment):
        return y + _postprocessor(self.stages)[0] * process.noise(t, y).mv(increment.dw)


def _check_stages(method: str, stages, least: int) -> None:
    if not isinstance(stages, (int, np.integer)) or stages < least:
        raise ValueError(
            f"`stages` of `{method}` must be a whole number of at least {least}, got {stages!r}. "
            "`SKROCK.stages_for(dt, spectral_radius)` says how many a run takes."
        )


def _climb(process, t, x, dt, first, stages: int) -> Float[Array, " d"]:
    """The last stage, from the first."""
    mu, nu, kappa = _coefficients(stages)
    times = np.zeros(stages + 1)
    times[1] = mu[0]
    for i in range(2, stages + 1):
        times[i] = mu[i - 1] + nu[i - 1] * times[i - 1] + kappa[i - 1] * times[i - 2]

    def climb(last, row):
        k, before = last
        mu, nu, kappa, c = row
        return (mu * dt * process.drift(t + c * dt, k) + nu * k + kappa * before, k), None

    rows = jnp.asarray(np.stack([mu[1:], nu[1:], kappa[1:], times[1:-1]], axis=1), x.dtype)
    (last, _), _ = lax.scan(climb, (first, x), rows)
    return last


def _coefficients(stages: int) -> tuple[list[float], list[float], list[float]]:
    """μ, ν and κ of each stage."""
    w0 = 1 + _damping / stages**2
    top = [0] * stages + [1]
    cheb = [float(chebyshev.chebval(w0, [0] * i + [1])) for i in range(stages + 1)]
    w1 = cheb[-1] / float(chebyshev.chebval(w0, chebyshev.chebder(top)))
    later = range(2, stages + 1)
    mu = [w1 / w0, *(2 * w1 * cheb[i - 1] / cheb[i] for i in later)]
    nu = [stages * w1 / 2, *(2 * w0 * cheb[i - 1] / cheb[i] for i in later)]
    kappa = [stages * w1 / w0, *(-cheb[i - 2] / cheb[i] for i in later)]
    return mu, nu, kappa


def _postprocessor(stages: int) -> tuple[float, float]:
    """c and δ of the postprocessed method.

    A step with x' = y + Q + dt b + p dt b'Q + q dt² b'b + r dt b''(Q, Q) + ... and the state y + c Q has an invariant
    law of order 2, if that is reversible, where q = 2p - ½ - 2c² and r = p - ¼ - ½c². The first gives c; the δ in the
    first stage adds to r what the second asks for, and changes neither p nor q.
    """
    mu, nu, kappa = _coefficients(stages)
    # Coefficients of Q, dt b, dt b'Q, dt² b'b and dt b''(Q, Q) in the last stage and the one before.
    before, last = np.zeros(5), np.array([kappa[0], mu[0], mu[0] * nu[0], 0.0, 0.5 * mu[0] * nu[0] ** 2])
    for m, n, k in zip(mu[1:], nu[1:], kappa[1:], strict=True):
        drift = np.array([0.0, 1.0, last[0], last[1], 0.5 * last[0] ** 2])
        before, last = last, m * drift + n * last + k * before
    _, _, p, q, r = last
    c2 = p - 0.25 - 0.5 * q
    missing = p - 0.25 - 0.5 * c2 - r
    # What is added to the first stage grows to the last as κ_1 Q does to Q.
    return math.sqrt(c2), math.sqrt(2 * missing * kappa[0] / mu[0])
