"""Does a law lose its mass along a valley that becomes too narrow for quadrature to see?

The minima of (uw - y)² are a hyperbola whose width falls like 1/|x|: the mass of exp(-f/T) between R and 2R does not
fall at all, but boxes of the size of R no longer notice it. The valley is followed outwards instead, and its mass
estimated by the width of a normal law across it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import optimize


def masses_along_valley(
    loss: Callable, log_weight: Callable, centre: Float[np.ndarray, " d"], radius: float
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " d"]]:
    """Log masses of ∫ exp(log_weight(f)) between spheres of doubling radius around `centre`, in the deepest valley.

    The masses are normal approximations around the point of largest weight on each sphere, which is followed from
    `radius` outwards. With them come the logs of the valley's solid angles, 0 where it is no valley, and the last of
    the points. Needs d ≥ 2. NaN where the loss is not finite.
    """

    def energy(direction, r):
        return -log_weight(loss(jnp.asarray(centre) + r * direction / jnp.linalg.norm(direction)))

    value, slope = jax.jit(energy), jax.jit(jax.grad(energy))
    hessian = jax.jit(jax.hessian(energy))
    direction = _best_direction(energy, len(centre), radius)
    masses, angles = [], []
    for r in radius * 2.0 ** np.arange(_followed):
        with np.errstate(all="ignore"):
            found = optimize.minimize(
                lambda u, r=r: float(value(jnp.asarray(u), r)),
                direction,
                jac=lambda u, r=r: np.asarray(slope(jnp.asarray(u), r)),
            )
        direction = found.x / np.linalg.norm(found.x)
        u = jnp.asarray(direction)
        angles.append(_log_solid_angle(np.asarray(hessian(u, r))))
        masses.append(len(centre) * np.log(r) + np.log(np.log(2)) - float(value(u, r)) + angles[-1])
    return np.array(masses), np.array(angles), centre + radius * 2.0 ** (_followed - 1) * direction


def _best_direction(energy: Callable, d: int, radius: float) -> Float[np.ndarray, " d"]:
    directions = np.random.default_rng(0).normal(size=(_directions, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    values = np.asarray(jax.jit(jax.vmap(energy, (0, None)))(jnp.asarray(directions), radius))
    return directions[np.argmin(np.where(np.isfinite(values), values, np.inf))]


def _log_solid_angle(hessian: Float[np.ndarray, "d d"]) -> float:
    """The log of the width of a normal law across, or of one radian an axis where that is less."""
    if not np.all(np.isfinite(hessian)):
        return np.nan
    # Along the direction itself the energy is constant: its eigenvalue, 0 but for rounding, is the one left out.
    values = np.linalg.eigvalsh(hessian)
    across = np.delete(values, np.argmin(np.abs(values)))
    return float(np.sum(np.minimum(0.5 * np.log(2 * np.pi / np.maximum(across, 1e-300)), 0.0)))


# Directions from which the deepest valley is looked for, and radii to which it is followed, each twice the last.
_directions, _followed = 256, 7
