"""Stationary covariance and excess loss of SGD near a minimum, where the loss is quadratic."""

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_continuous_lyapunov, solve_discrete_lyapunov

from ._checked import momentum as check_momentum, quadratic_model, rates, rounding, symmetric


def stationary_covariance(
    H, C, learning_rate, batch_size=1, momentum=0.0, finite_rate: bool = False
) -> Float[np.ndarray, "d d"]:
    """The covariance P of SGD in the stationary state on f = xᵀHx/2, with single-sample gradient covariance C.

    To leading order in the learning rate η, with batch size B and momentum μ:

        HP + PH = η/((1-μ)B) · C.

    With `finite_rate=True`, the exact covariance of the discrete iteration, for μ = 0 that is
    HP + PH - ηHPH = (η/B) C. Momentum is heavy ball without dampening, m ← μm + g, x ← x - ηm, as in PyTorch; the
    exponential average m ← μm + (1-μ)g, x ← x - ηm is the same with η replaced by η(1-μ) in this function.

    P = (η/2B) H⁻¹C only where HC = CH. H must be symmetric positive definite and C symmetric positive semi-definite,
    both (d, d); the iteration must be stable, η λ_max(H) < 2(1+μ). `ValueError` otherwise.
    """
    H, C = quadratic_model(H, C)
    rates(learning_rate, batch_size)
    check_momentum(momentum)
    if not finite_rate:
        return solve_continuous_lyapunov(H, learning_rate / ((1 - momentum) * batch_size) * C)
    limit = 2 * (1 + momentum) / np.linalg.eigvalsh(H)[-1]
    if not learning_rate < limit:
        raise ValueError(
            f"`learning_rate` must be below 2(1+momentum)/λ_max(H) = {limit:.6g}, where the iteration turns unstable, "
            f"but got {learning_rate:.6g}."
        )
    return _discrete(H, C / batch_size, float(learning_rate), float(momentum))


def excess_loss(C, learning_rate, batch_size=1) -> float:
    """E f - min f = η tr C/(4B) in the stationary state, to leading order in the learning rate η, whatever H is.

    C is the single-sample gradient covariance at the minimum, B the batch size. The trace of the Lyapunov equation
    gives it; H and C need not commute.
    """
    rates(learning_rate, batch_size)
    return float(learning_rate * np.trace(symmetric("C", C)) / (4 * batch_size))


def squared_gradient(H, C, learning_rate, batch_size=1) -> float:
    """E |∇f|² = η tr(CH)/(2B) in the stationary state, to leading order in the learning rate η.

    The Lyapunov equation HP + PH = (η/B) C, multiplied by H, has the trace 2 tr(H²P) = (η/B) tr(HC): H and C need not
    commute. C is the single-sample gradient covariance at the minimum, H the Hessian there, B the batch size.
    """
    rates(learning_rate, batch_size)
    H, C = quadratic_model(H, C)
    return float(learning_rate * np.trace(C @ H) / (2 * batch_size))


def commuting_covariance(H, C, learning_rate, batch_size=1) -> Float[np.ndarray, "d d"]:
    """P = (η/2B) H⁻¹C: the stationary covariance where HC = CH, and only there; η/(2B) I for C = H (Jastrzębski).

    Elsewhere the product is not even symmetric, the stationary state carries a current and
    `stationary_covariance` holds: `ValueError`.
    """
    rates(learning_rate, batch_size)
    H, C = quadratic_model(H, C)
    commutator = np.max(np.abs(H @ C - C @ H))
    if commutator > rounding * np.max(np.abs(H)) * np.max(np.abs(C)):
        raise ValueError(
            f"`H` and `C` must commute, but HC - CH has an entry of size {commutator:.3g}. Use `stationary_covariance`."
        )
    P = learning_rate / (2 * batch_size) * np.linalg.solve(H, C)
    return 0.5 * (P + P.T)


def _discrete(H: Float[np.ndarray, "d d"], noise: Float[np.ndarray, "d d"], eta: float, mu: float):
    if mu == 0:
        step = np.eye(len(H)) - eta * H
        return solve_discrete_lyapunov(step, eta**2 * noise)
    # The state (x, m): m ← Hx + μm + ξ, x ← x - ηm with the new m.
    eye = np.eye(len(H))
    step = np.block([[eye - eta * H, -eta * mu * eye], [H, mu * eye]])
    push = np.vstack([-eta * eye, eye])
    return solve_discrete_lyapunov(step, push @ noise @ push.T)[: len(H), : len(H)]
