r"""How the stationary law falls off, and where the continuous spectrum starts, from drift and diffusion far out.

Along a ray x = r e let y = log r, A = eᵀ D e / r² and v = eᵀ b / r - A, the diffusion and the drift of y if x moves on
the ray. At detailed balance the density π along the ray obeys

    d log π / d log r = v / A - d log A / dy - 1 → -(ν + d)

if the mass beyond R falls as R^(-ν) in R^d. With V = h²/4 + √A h' / 2, h = (v - A' / 2) / √A, the generator of y is
similar to -V + ∂² in the coordinate ∫ dy / √A, so that its spectrum is continuous from the limit of V on; if that
coordinate ends at infinity, as where A grows as a power of r, none is. For b ~ -β r, D ~ γ r² that limit is
(β + γ)² / (4γ) (Persson's theorem; the Student case is in Wong, Proc. Symp. Appl. Math. 16 (1964) 264).
"""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..grid import Grid, evaluate
from ..process import AbstractDiffusion, noise_structure

# Radii grow by this factor; logarithmic derivatives are taken over so small a step, to fourth order.
_factor, _step = 4.0, 0.05
_radii = 40

# A sequence counts as convergent if its last three terms, extrapolated, agree to this fraction with those before; as
# growing without limit if over so many radii (a factor of 10^6 in r) its steps do not become smaller: as log r or more.
_converged, _last, _steady = 1e-6, 10, 0.9

# A power of r below this is none: A that grows more slowly leaves the coordinate infinite, or nearly so.
_no_power = 1e-2


# A rate this close to the threshold, as a fraction of it, is no longer below.
_edge = 1e-6


def tail_index(process: Any, direction: Any = (1.0,), scale: float = 1.0) -> float:
    """ν, if the stationary law leaves the mass ~ R^(-ν) beyond a distance R: from drift and diffusion far out alone.

    They are evaluated on the ray from 0 along `direction`, of one number for each coordinate, at distances from `scale`
    up to 1e24 times it, or as far as they are finite, and extrapolated. `inf` means a law with lighter tails than any
    power, and ν ≤ 0 that there is none. In several dimensions the law is taken to fall off alike in all directions, up
    to a factor; for independent coordinates, give the process of one of them.

    Raises `ValueError` if ν does not settle.
    """
    e = _unit(process, direction)
    v, a, slope = _along(process, e, scale)
    return _limit("The tail index", slope - v / a - (e.size - 1), scale)


def essential_threshold(process: Any, direction: Any = (1.0,), scale: float = 1.0) -> float:
    """The rate from which the spectrum is continuous because of the tail in this direction; `inf` if there is none.

    For processes on a line or half line; a computed rate above is one of a box, not of the process. Arguments are those
    of `tail_index`.
    """
    return _threshold(*_along(process, _unit(process, direction), scale), scale)


def box_threshold(process: AbstractDiffusion, grid: Grid) -> float:
    """The threshold of a process on a line whose tails the box holds; `inf` if none of them is known to have one.

    An end at which no tail is cut off, because the law does not fall off, is a wall and part of the model.
    """
    thresholds = [np.inf]
    for end in (grid.edges[0][0], grid.edges[0][-1]):
        e, scale = np.sign([end]), _look_from * abs(float(end))
        if end == 0 or (end < 0) == (end == grid.edges[0][-1]):
            continue
        try:
            v, a, slope = _along(process, e, scale)
            if _limit("The tail index", slope - v / a, scale) > 0:
                thresholds.append(_threshold(v, a, slope, scale))
        except ValueError:
            # Not a process on all of the line, or one with tails of another kind.
            continue
    return min(thresholds)


# The tail is looked at from this fraction of the reach of the grid on.
_look_from = 0.1


def _threshold(v, a, slope, scale: float) -> float:
    if np.all(slope[-3:] > _no_power):
        return np.inf
    h = v / np.sqrt(a) - 0.5 * np.sqrt(a) * slope
    # h' over the distance of the radii is enough where h has a limit; where it has none V has the growth of h².
    change = np.gradient(h, np.log(_factor))
    return max(_limit("The threshold of the continuous spectrum", 0.25 * h**2 + 0.5 * np.sqrt(a) * change, scale), 0.0)


def warn_above(rates: np.ndarray, threshold: float) -> None:
    """Warns of rates in the continuous spectrum; for the callers of the user's call."""
    above = np.flatnonzero(rates >= (1 - _edge) * threshold)
    if above.size:
        warnings.warn(
            f"The spectrum is continuous from {threshold:.6g} on: rate number {above[0]}, {rates[above[0]]:.6g}, and "
            "those after it depend on the reach of the grid and are none of the process.",
            UserWarning,
            stacklevel=3,
        )


def _unit(process: Any, direction: Any) -> Float[np.ndarray, " d"]:
    e = np.asarray(direction, dtype=np.float64)
    if e.ndim != 1 or not np.all(np.isfinite(e)) or not np.any(e):
        raise ValueError(f"`direction` must be a vector other than 0, one number a coordinate, got {direction!r}.")
    noise_structure(process, jnp.zeros(e.size))
    return e / np.linalg.norm(e)


def _along(
    process: AbstractDiffusion, e: Float[np.ndarray, " d"], scale: float
) -> tuple[Float[np.ndarray, " radii"], Float[np.ndarray, " radii"], Float[np.ndarray, " radii"]]:
    """v, A and d log A / dy at growing radii, as far out as all are finite."""
    if not 0 < scale < np.inf:
        raise ValueError(f"`scale` must be a positive length, got {scale!r}.")
    r = scale * _factor ** np.arange(1, _radii + 1)
    near = np.exp(_step * np.array([-2, -1, 0, 1, 2]))
    ray = jnp.asarray(e)

    def at(s):
        x = s[0] * ray
        g = process.noise(jnp.zeros(()), x).T.mv(ray)
        return jnp.stack([process.drift(jnp.zeros(()), x) @ ray / s[0], 0.5 * (g / s[0]) @ (g / s[0])])

    with np.errstate(all="ignore"):
        values = evaluate(at, (r[:, None] * near).reshape(-1, 1)).reshape(_radii, len(near), 2)
        log_a = np.log(values[..., 1])
        slope = log_a @ np.array([1, -8, 0, 8, -1]) / (12 * _step)
        drift, a = values[:, 2, 0], values[:, 2, 1]
    usable = np.isfinite(values).all(axis=(1, 2)) & np.isfinite(log_a).all(axis=1)
    far = int(np.argmin(usable)) if not np.all(usable) else _radii
    if far < _last + 3:
        raise ValueError(
            f"Drift and noise of `process` must be finite, and the noise not zero, up to {_factor ** (_last + 3):.2g} "
            f"times `scale` from 0 along `direction`, but are not at {r[min(far, _radii - 1)]:.3g}."
        )
    return (drift - a)[:far], a[:far], slope[:far]


def _limit(name: str, values: Float[np.ndarray, " radii"], scale: float) -> float:
    steps = np.diff(values[-_last - 1 :])
    if np.all(steps > _converged * np.abs(values[-_last:])) and steps[-1] >= _steady * steps[0]:
        return np.inf
    limits = [_aitken(values[:n]) for n in (-2, -1, len(values))]
    if np.ptp(limits) <= _converged * max(abs(limits[-1]), _no_power):
        return limits[-1]
    if np.all(np.abs(values[-_last:]) < np.abs(values[-_last - 1 : -1])):
        return 0.0
    raise ValueError(
        f"{name} does not settle: far out it is estimated as {values[-3]:.6g}, {values[-2]:.6g} and {values[-1]:.6g}. "
        f"The law may have no power tail; or start further out than `scale`, {scale:.3g}."
    )


def _aitken(values: Float[np.ndarray, " n"]) -> float:
    # The limit of a geometric sequence, from its last three terms.
    first, second = values[-2] - values[-3], values[-1] - values[-2]
    bend = second - first
    rounding = 1e-12 * max(abs(values[-1]), 1.0)
    return float(values[-1] - second * second / bend if abs(bend) > rounding else values[-1])
