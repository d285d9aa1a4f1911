"""Sharp rates of convergence in L²(1/invariant law) for f = λ(s² + |x|²)/2 with noise D = κf I (Hardy-Poincaré).

The distance is ∫ |u - ū|² f^(-p) with u = f^p ρ and p = 1 + 1/κ: the χ² distance where the law exists. Where it does
not (p < d/2) ū = 0 and ρ spreads out. Second moments may relax more slowly than this gap, at λ(2 - dκ): for large κ
|x|² is not in the space.
The constants agree with Bonforte, Dolbeault, Grillo and Vázquez (2010). f = 1 + |x|² is λ = 2.
"""

from ._checked import positive, whole


def spectral_gap(temperature, dim: int = 1, curvature=1.0) -> float:
    """The lowest rate above that of the constant, per unit of t = η · steps.

    For λ = 2 and d ≥ 2: 2 for κ ≤ 1/d; 4 - 2dκ up to κ = 2/(d+2); from there κ(1/κ - (d-2)/2)², where the continuous
    spectrum starts. For d = 1: 2 for κ ≤ 2, else (2+κ)²/(4κ). It is 0 at κ = 2/(d-2), p = d/2, where the law ceases to
    exist and no rate holds; beyond it is the decay rate of the density itself. It does not depend on s.
    """
    kappa, d = positive("temperature", temperature), whole("dim", dim)
    half = 0.5 * positive("curvature", curvature)
    # Linear functions belong to the space below the first threshold, |x|² below the second.
    if kappa <= (2 if d == 1 else 1 / d):
        return 2 * half
    if d > 1 and kappa <= 2 / (d + 2):
        return half * (4 - 2 * d * kappa)
    return essential_threshold(kappa, d, curvature)


def essential_threshold(temperature, dim: int = 1, curvature=1.0, sector: int = 0) -> float:
    """Where the continuous spectrum starts, λκ/2 · [(1/κ - (d-2)/2)² + l(l+d-2)], for spherical harmonics of degree l.

    Unlike `student.continuum` it is given also where no invariant law exists.
    """
    kappa, d, degree = positive("temperature", temperature), whole("dim", dim), whole("sector", sector, 0)
    if d == 1 and degree > 1:
        raise ValueError(f"`sector` must be 0 (even) or 1 (odd) in one dimension, but got sector={degree}.")
    angular = degree * (degree + d - 2)
    return 0.5 * positive("curvature", curvature) * kappa * ((1 / kappa - (d - 2) / 2) ** 2 + angular)


def log_squared_threshold(dim: int) -> float:
    """(d-1)²/(2(d-2)): where the essential spectrum starts for f ~ r² log²r at its zeros and at ∞, d ≥ 3, p = d/2.

    f^(-p) = r^(-d) |log r|^(-d) is then just integrable at κ = 2/(d-2), the critical temperature of quadratic minima:
    in s = |log r| the radial generator is κs²∂² - 2s∂, whose spectrum starts at (κ+2)²/(4κ).
    """
    d = whole("dim", dim, 3)
    kappa = 2 / (d - 2)
    return (kappa + 2) ** 2 / (4 * kappa)
