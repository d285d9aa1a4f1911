"""Where a loss is lowest, and how it vanishes there: what decides whether f^(-p) can be integrated."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import ndimage, optimize

from solvers import Grid
from solvers.grid import evaluate

from .._checks import scalar_valued

Order = tuple[float, int]


def lowest_minimum(loss: Callable, grid: Grid) -> tuple[Float[np.ndarray, " d"], float, Order]:
    """The lowest point (x, f(x)) of the loss that descents from the lowest cells of the grid reach, and its order.

    A value within rounding of zero is returned as exactly 0. The order (γ, k) says that f grows like the power γ of
    the distance, and the number k of directions in which it does so; it means nothing where f is not 0.
    """
    f = jax.jit(scalar_valued(loss))
    descend = _descent(f)
    x, value, scale = min((descend(start) for start in _starts(f, grid)), key=lambda found: found[1])
    if abs(value) <= _rounding * scale:
        value = 0.0
    return x, value, _order(f, x, grid) if value == 0 else (0.0, 0)


def _starts(f: Callable, grid: Grid) -> list[Float[np.ndarray, " d"]]:
    """The centres of the lowest cells that are lower than all their neighbours."""
    values = evaluate(f, grid.points.reshape(-1, grid.ndim)).reshape(grid.shape)
    values = np.where(np.isfinite(values), values, np.inf)
    local = values == ndimage.minimum_filter(values, size=3, mode="nearest")
    indices = np.argwhere(local & np.isfinite(values))
    if not len(indices):
        raise ValueError(f"The loss is finite nowhere on the grid, {grid}.")
    lowest = indices[np.argsort(values[tuple(indices.T)])][:_descents]
    return [grid.points[tuple(i)] for i in lowest]


def _descent(f: Callable) -> Callable:
    gradient, hessian = jax.jit(jax.grad(f)), jax.jit(jax.hessian(f))

    def descend(start):
        # The loss at a distance from the minimum, to tell zero from small.
        scale = max(
            abs(float(f(jnp.asarray(start + step)))) for step in np.outer((1e-2, -1e-2), np.maximum(1, np.abs(start)))
        )
        found = optimize.minimize(
            lambda x: float(f(jnp.asarray(x))), start, jac=lambda x: np.asarray(gradient(jnp.asarray(x)))
        )
        x, value = np.asarray(found.x), float(found.fun)
        for _ in range(_polishing_steps):
            newton = np.linalg.pinv(np.asarray(hessian(jnp.asarray(x))), rcond=1e-10, hermitian=True)
            trial = x - newton @ np.asarray(gradient(jnp.asarray(x)))
            lower = float(f(jnp.asarray(trial)))
            if not lower < value:
                break
            x, value = trial, lower
        return x, value, scale

    return descend


def _order(f: Callable, x: Float[np.ndarray, " d"], grid: Grid) -> Order:
    """How f leaves 0: the power of the distance, and the number of directions."""
    size = 1e-3 * max(1.0, float(np.max(np.abs(x))))
    directions = np.random.default_rng(0).normal(size=(64, len(x)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    near, far = (float(np.mean(evaluate(f, x + r * directions))) for r in (size / 2, size))
    power = float(np.log2(far / near)) if near > 0 else 2.0
    curvatures = np.linalg.eigvalsh(np.nan_to_num(np.asarray(jax.hessian(f)(jnp.asarray(x)))))
    if abs(power - 2) > 0.1:
        return power, len(x)
    return 2.0, int(np.sum(curvatures > 1e-6 * curvatures[-1]))


# Starts of descents; Newton steps that take a quadratic minimum to rounding, and a quartic one to 1e-28 of its start.
_descents, _polishing_steps = 8, 40

# A minimum below this fraction of the loss nearby is zero but for rounding.
_rounding = 1e-14
