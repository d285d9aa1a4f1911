"""The rate at which SGD with loss-proportional noise approaches, or leaves, a manifold of minimisers."""

import numpy as np

from ._checked import definite, positive
from .sphere import sphere_mean


def transverse_exponent(H, temperature) -> float:
    """λ_⊥ = lim log|x_t|/t for dx = -Hx dt + √(2κf) dB, f = xᵀHx/2, in k dimensions (the normal space of the manifold):

        λ_⊥ = (κ(k-2) - 2) ∫_S h^{-1/κ} / ∫_S h^{-1/κ-1},   h(ω) = ωᵀHω/2.

    H (k, k) is the Hessian across the manifold, positive definite. The sign changes at κ_c = 2/(k-2), whatever H is:
    below it SGD is trapped, above it f^(-p) is integrable there. H = λI gives λ(κ(k-2)/2 - 1). Per unit of
    t = η · steps, Itô.
    """
    kappa, H = positive("temperature", temperature), definite("H", H)
    # h = ωᵀHω/2 leaves a factor of 1/2.
    ratio = 0.5 * sphere_mean(H, 1 / kappa) / sphere_mean(H, 1 / kappa + 1)
    return float((kappa * (len(H) - 2) - 2) * ratio)


def aligned_threshold(temperature, codim: int) -> float:
    """The curvature h below which minimisers H = hI_k attract under Hessian-aligned noise D = κfH: 2/(κ(k-2)).

    Unlike isotropic noise it selects: sharper minima repel (inf for k ≤ 2). For other H the directions of such paths
    have no law in closed form. κ = η/B for the noise 2fH/B of a mean
    squared loss, which has D = ηfH/B.
    """
    kappa = positive("temperature", temperature)
    return 2 / (kappa * (codim - 2)) if codim > 2 else np.inf
