"""Linear convergence of SGD in expectation, where the noise vanishes with the loss.

For f ≥ 0 with Λf ≤ |∇f|² (a Polyak-Łojasiewicz inequality, `pl_constant` Λ), ∇f Lipschitz with the constant C_L
(`smoothness`) and E|g - ∇f|² ≤ σf (`noise` σ, the trace over all d components):

    E f(θ_{t+1}) ≤ ρ_η E f(θ_t),   ρ_η = 1 - Λη + (C_L/2)(Λ + σ)η².

Proof: E f⁺ ≤ f - η(1 - C_Lη/2)|∇f|² + (C_Lη²/2)σf, and |∇f|² ≥ Λf while η < 2/C_L. It is sharp: equality holds for
f = λx²/2 (Λ = 2λ, C_L = λ) with noise of variance exactly σf. In the stationary laws' κ, isotropic noise in d
dimensions has σ = 2dκ/η.
"""

import math

from ._checked import not_negative, positive


def contraction_rate(learning_rate, pl_constant, smoothness, noise) -> float:
    """ρ_η = 1 - Λη + (C_L/2)(Λ + σ)η², the factor by which E f shrinks in a step; below 1 iff η < `largest_rate`.

    `ValueError` for η ≥ 2/C_L, where the inequality |∇f|² ≥ Λf no longer helps, or if a constant is out of range (in
    particular Λ ≤ 2 C_L holds for every loss).
    """
    eta = positive("learning_rate", learning_rate)
    pl, smooth, sigma = _constants(pl_constant, smoothness, noise)
    if not eta < 2 / smooth:
        raise ValueError(
            f"`learning_rate` must be below 2/smoothness = {2 / smooth:.6g}, where the descent inequality fails, but "
            f"got {eta:.6g}."
        )
    return 1 - pl * eta + 0.5 * smooth * (pl + sigma) * eta**2


def largest_rate(pl_constant, smoothness, noise) -> float:
    """2Λ/(C_L(Λ + σ)): ρ_η < 1 below it."""
    pl, smooth, sigma = _constants(pl_constant, smoothness, noise)
    return 2 * pl / (smooth * (pl + sigma))


def best_rate(pl_constant, smoothness, noise) -> tuple[float, float]:
    """(η*, ρ*): the learning rate Λ/(C_L(Λ + σ)) of least ρ_η, and that value, 1 - Λ²/(2C_L(Λ + σ))."""
    pl, smooth, sigma = _constants(pl_constant, smoothness, noise)
    return pl / (smooth * (pl + sigma)), 1 - pl**2 / (2 * smooth * (pl + sigma))


def contraction_rate_as_printed(learning_rate, pl_constant, smoothness, noise) -> float:
    """1 - Λη + C_L(1 + σ)η²/(2Λ), as some slides print ρ_η: not a bound. Only for showing that it is violated.

    With f = x²/2, σ = 1 and η = 0.5 the exact factor is 0.375 and this is 0.125; at η = 1 it is negative.
    """
    eta = positive("learning_rate", learning_rate)
    pl, smooth, sigma = _constants(pl_constant, smoothness, noise)
    return 1 - pl * eta + smooth * (1 + sigma) * eta**2 / (2 * pl)


def iterate_bound(learning_rate, pl_constant, smoothness, noise) -> float:
    """K in E|θ_t - θ_∞|² ≤ K ρ_η^t E f(θ₀): K = η²(2C_L + σ)/(1 - √ρ_η)².

    The steps are summed: E|θ_{s+1} - θ_s|² ≤ η²(2C_L + σ)E f(θ_s), as |∇f|² ≤ 2C_L f. `ValueError` unless ρ_η < 1.
    """
    rho = contraction_rate(learning_rate, pl_constant, smoothness, noise)
    if not rho < 1:
        raise ValueError(
            f"`learning_rate` must be below {largest_rate(pl_constant, smoothness, noise):.6g}, where ρ_η reaches 1, "
            f"but got {float(learning_rate):.6g}."
        )
    return float(learning_rate) ** 2 * (2 * smoothness + noise) / (1 - math.sqrt(rho)) ** 2


def _constants(pl_constant, smoothness, noise) -> tuple[float, float, float]:
    pl, smooth = positive("pl_constant", pl_constant), positive("smoothness", smoothness)
    if pl > 2 * smooth * (1 + 1e-12):
        raise ValueError(
            f"`pl_constant` must be at most 2 · smoothness, because |∇f|² ≤ 2 C_L f, but got {pl:g} > {2 * smooth:g}. "
            "With the convention μf ≤ |∇f|²/2 pass 2μ."
        )
    return pl, smooth, not_negative("noise", noise)
