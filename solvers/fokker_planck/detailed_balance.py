"""Whether a generator has detailed balance, and then the logarithm of its stationary law: sums of log mass ratios."""

import itertools

import numpy as np
from jaxtyping import Float

from .tensor_rates import Diagonals

# A process counts as reversible when the logarithms of its mass ratios close around every path to this: well above
# the error of the quadrature on a resolved grid, and a current of 1e-8 of the traffic is none.
_cycle_tolerance = 1e-8
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
    total, defect = _potential(log_ratios, shape)
    if diagonals is not None:
        defect = max(defect, _diagonal_defect(total, diagonals))
    return (total if defect <= _cycle_tolerance else None), defect


def _diagonal_defect(total: Float[np.ndarray, "..."], diagonals: Diagonals) -> float:
    if not diagonals.carried:
        return np.inf
    low, high = total.ravel()[diagonals.source], total.ravel()[diagonals.target]
    matters = np.minimum(low, high) > -_negligible
    return float(np.max(np.abs(high - low - diagonals.log_ratio), where=matters, initial=0.0))


def _potential(
    log_ratios: tuple[Float[np.ndarray, "..."], ...], shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "..."], float]:
    """The function whose differences are the log ratios along paths from the heaviest cell, and by how much it misses
    those of the edges that the paths do not use, where mass is not negligible.

    From the heaviest cell, because sums through the far tails, which may be as low as -1e24, would lose all digits of
    the law where it lives.
    """
    origin = tuple(n // 2 for n in shape)
    total = _summed(log_ratios, shape, origin)
    for _ in range(_most_origins):
        heaviest = tuple(int(i) for i in np.unravel_index(np.argmax(total), shape))
        if heaviest == origin:
            break
        origin, total = heaviest, _summed(log_ratios, shape, heaviest)
    total -= np.max(total)
    defect = _corner_defect(log_ratios)
    for k, ratio in enumerate(log_ratios):
        low, high, ratio = (np.moveaxis(a, k, 0) for a in (total, np.roll(total, -1, axis=k), ratio))
        missed = np.abs((high - low)[: len(ratio)] - ratio)
        matters = np.minimum(low, high)[: len(ratio)] > -_negligible
        defect = max(defect, float(np.max(missed, where=matters, initial=0.0)))
        if len(ratio) == len(low):
            # Around a periodic axis, however little mass there is where it closes.
            defect = max(defect, float(np.max(missed[-1] - _rounding * np.abs(low[-1]))))
    return total, defect


def _corner_defect(log_ratios: tuple[Float[np.ndarray, "..."], ...]) -> float:
    """The largest sum of log ratios around four cells that meet in a corner, or in an edge of cells in space."""
    defect = 0.0
    for k, m in itertools.combinations(range(len(log_ratios)), 2):
        x, y = (np.moveaxis(log_ratios[a], (k, m), (0, 1)) for a in (k, m))
        x, y = x[: y.shape[0] - 1], y[:, : x.shape[1] - 1]
        around = np.abs(x[:, :-1] + y[1:] - x[:, 1:] - y[:-1])
        gentle = np.max(np.abs([x[:, :-1], y[1:], x[:, 1:], y[:-1]]), axis=0) < _steep
        defect = max(defect, float(np.max(around, where=gentle, initial=0.0)))
    return defect


def _summed(
    log_ratios: tuple[Float[np.ndarray, "..."], ...], shape: tuple[int, ...], origin: tuple[int, ...]
) -> Float[np.ndarray, "..."]:
    """Sums of log ratios along paths that leave the origin in the direction of the first axis, then of the next."""
    total = np.zeros(())
    for k, ratio in enumerate(log_ratios):
        line = ratio[(..., *origin[k + 1 :])][..., : shape[k] - 1]
        before, after = line[..., : origin[k]], line[..., origin[k] :]
        back = -np.cumsum(before[..., ::-1], axis=-1)[..., ::-1]
        along = np.concatenate([back, np.zeros((*shape[:k], 1)), np.cumsum(after, axis=-1)], axis=-1)
        total = total[..., None] + along
    return total
