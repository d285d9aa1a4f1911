"""Whether a generator has detailed balance, and then the logarithm of its stationary law: sums of log mass ratios."""

import itertools
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from .._tracing import Numbers, cumsum, is_traced, namespace
from .tensor_rates import Diagonals

# A process counts as reversible when the logarithms of its mass ratios close around every path to this: well above
# the error of the quadrature on a resolved grid, and a current of 1e-8 of the traffic is none.
cycle_tolerance = 1e-8
# What is not asked to close: paths to cells that hold less than exp(-100) of the largest mass, and four cells around a
# corner where the mass changes by more than exp(30) from one to the next. Rounding alone may be above the tolerance.
_negligible, _steep = 100.0, 30.0
# The rounding of sums of log ratios, as a fraction of the sum.
_rounding = 1e-12

# The cell from which log ratios are summed is moved to the heaviest one so many times at most.
_most_origins = 5


def log_law(
    log_ratios: tuple[Float[np.ndarray, "..."], ...], diagonals: Diagonals | None, shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "..."] | None, float]:
    """The logarithm of the stationary law, None without detailed balance, and the largest sum around a closed path."""
    total, defect = potential(log_ratios, shape)
    defect = float(defect)
    if diagonals is not None:
        defect = max(defect, _diagonal_defect(total, diagonals))
    return (total if defect <= cycle_tolerance else None), defect


def _diagonal_defect(total: Float[np.ndarray, "..."], diagonals: Diagonals) -> float:
    if not diagonals.carried:
        return np.inf
    low, high = total.ravel()[diagonals.source], total.ravel()[diagonals.target]
    matters = np.minimum(low, high) > -_negligible
    return float(np.max(np.abs(high - low - diagonals.log_ratio), where=matters, initial=0.0))


def potential(log_ratios: tuple[Float[Numbers, "..."], ...], shape: tuple[int, ...]) -> tuple[Any, Any]:
    """The function whose differences are the log ratios along paths from the heaviest cell, and by how much it misses
    those of the edges that the paths do not use, where mass is not negligible.

    From the heaviest cell, because sums through the far tails, which may be as low as -1e24, would lose all digits of
    the law where it lives.
    """
    xp = namespace(*log_ratios)
    total = _summed(log_ratios, shape, _heaviest(log_ratios, shape))
    total = total - xp.max(total)
    defect = _corner_defect(log_ratios)
    for k, ratio in enumerate(log_ratios):
        low, high, ratio = (xp.moveaxis(a, k, 0) for a in (total, xp.roll(total, -1, axis=k), ratio))
        missed = xp.abs((high - low)[: len(ratio)] - ratio)
        matters = xp.minimum(low, high)[: len(ratio)] > -_negligible
        defect = xp.maximum(defect, xp.max(missed, where=matters, initial=0.0))
        if len(ratio) == len(low):
            # Around a periodic axis, however little mass there is where it closes.
            defect = xp.maximum(defect, xp.max(missed[-1] - _rounding * xp.abs(low[-1])))
    return total, defect


def _heaviest(log_ratios: tuple[Float[Numbers, "..."], ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    # The same cell found from itself ends the search.
    start = tuple(n // 2 for n in shape)
    if is_traced(log_ratios):
        known = jax.lax.stop_gradient(log_ratios)
        search = lambda _, origin: _next_origin(known, shape, origin)  # noqa: E731
        return jax.lax.fori_loop(0, _most_origins, search, start)
    for _ in range(_most_origins):
        origin, start = start, _next_origin(log_ratios, shape, start)
        if origin == start:
            break
    return start


def _next_origin(log_ratios: tuple[Float[Numbers, "..."], ...], shape: tuple[int, ...], origin: tuple[Any, ...]):
    xp = namespace(*log_ratios)
    return xp.unravel_index(xp.argmax(_summed(log_ratios, shape, origin)), shape)


def _corner_defect(log_ratios: tuple[Float[Numbers, "..."], ...]) -> Any:
    """The largest sum of log ratios around four cells that meet in a corner, or in an edge of cells in space."""
    xp, defect = namespace(*log_ratios), 0.0
    for k, m in itertools.combinations(range(len(log_ratios)), 2):
        x, y = (xp.moveaxis(log_ratios[a], (k, m), (0, 1)) for a in (k, m))
        x, y = x[: y.shape[0] - 1], y[:, : x.shape[1] - 1]
        around = xp.abs(x[:, :-1] + y[1:] - x[:, 1:] - y[:-1])
        gentle = xp.max(xp.abs(xp.stack([x[:, :-1], y[1:], x[:, 1:], y[:-1]])), axis=0) < _steep
        defect = xp.maximum(defect, xp.max(around, where=gentle, initial=0.0))
    return defect


def _summed(log_ratios: tuple[Float[Numbers, "..."], ...], shape: tuple[int, ...], origin: tuple[Any, ...]) -> Any:
    """Sums of log ratios along paths that leave the origin in the direction of the first axis, then of the next."""
    xp = namespace(*log_ratios)
    total = xp.zeros(())
    for k, ratio in enumerate(log_ratios):
        line = ratio[(..., *origin[k + 1 :])][..., : shape[k] - 1]
        # Where the origin is may be traced: sums that start there have zeros before.
        beyond, zero = np.arange(shape[k] - 1) >= origin[k], xp.zeros((*shape[:k], 1))
        after = cumsum(xp.where(beyond, line, 0.0))
        back = -cumsum(xp.where(beyond, 0.0, line)[..., ::-1])[..., ::-1]
        total = total[..., None] + xp.concatenate([zero, after], axis=-1) + xp.concatenate([back, zero], axis=-1)
    return total
