"""Stationary covariance and excess loss of SGD near a minimum, where the loss is quadratic."""

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_continuous_lyapunov, solve_discrete_lyapunov


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
    H, C = _symmetric("H", H), _symmetric("C", C)
    if H.shape != C.shape:
        raise ValueError(f"`H` and `C` must have one shape, but have {H.shape} and {C.shape}.")
    _check_rates(learning_rate, batch_size, momentum)
    curvatures = np.linalg.eigvalsh(H)
    if not curvatures[0] > len(H) * np.finfo(float).eps * abs(curvatures[-1]):
        raise ValueError(
            f"`H` must be positive definite, but has the eigenvalue {curvatures[0]:.6g}: along flat or falling "
            "directions no stationary state exists. Restrict H and C to the others."
        )
    lowest = np.linalg.eigvalsh(C)[0]
    if lowest < -_rounding * np.max(np.abs(C)):
        raise ValueError(f"`C` must be positive semi-definite, but has the eigenvalue {lowest:.6g}.")
    if not finite_rate:
        return solve_continuous_lyapunov(H, learning_rate / ((1 - momentum) * batch_size) * C)
    limit = 2 * (1 + momentum) / curvatures[-1]
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
    _check_rates(learning_rate, batch_size, 0.0)
    return float(learning_rate * np.trace(_symmetric("C", C)) / (4 * batch_size))


def _discrete(H: Float[np.ndarray, "d d"], noise: Float[np.ndarray, "d d"], eta: float, mu: float):
    if mu == 0:
        step = np.eye(len(H)) - eta * H
        return solve_discrete_lyapunov(step, eta**2 * noise)
    # The state (x, m): m ← Hx + μm + ξ, x ← x - ηm with the new m.
    eye = np.eye(len(H))
    step = np.block([[eye - eta * H, -eta * mu * eye], [H, mu * eye]])
    push = np.vstack([-eta * eye, eye])
    return solve_discrete_lyapunov(step, push @ noise @ push.T)[: len(H), : len(H)]


def _check_rates(learning_rate, batch_size, momentum) -> None:
    for name, value in (("learning_rate", learning_rate), ("batch_size", batch_size)):
        if not 0 < value < np.inf:
            raise ValueError(f"`{name}` must be positive and finite, but got {name}={value}.")
    if not 0 <= momentum < 1:
        raise ValueError(f"`momentum` must be at least 0 and below 1, but got momentum={momentum}.")


def _symmetric(name: str, a) -> Float[np.ndarray, "d d"]:
    a = np.atleast_2d(np.asarray(a, dtype=np.float64))
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not np.all(np.isfinite(a)):
        raise ValueError(f"`{name}` must be a finite square matrix (d, d), but got {a!r}.")
    if np.max(np.abs(a - a.T)) > _rounding * np.max(np.abs(a)):
        raise ValueError(
            f"`{name}` must be symmetric, but {name} - {name}ᵀ has an entry {np.max(np.abs(a - a.T)):.3g}."
        )
    return 0.5 * (a + a.T)


# Relative to the largest entry: asymmetry and negative eigenvalues this small are rounding, also of float32 input.
_rounding = 1e-5
