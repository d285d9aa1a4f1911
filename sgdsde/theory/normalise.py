"""An invariant law that is known up to a constant, as a `Density`: the constant and the mass outside the grid."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from solvers import Density, Grid

from .._checks import scalar_valued
from .cubature import Cubature, PeakError as PeakError, PointError as PointError
from .valley import masses_along_valley


class TailError(ValueError):
    """The law cannot be normalised far out. `decay` is the power -e of the tail mass beyond R, R^e, if it is one."""

    def __init__(self, message: str, decay: float | None):
        super().__init__(message)
        self.decay = decay


def normalise(loss: Callable, log_weight: Callable, grid: Grid, peak: Float[np.ndarray, " d"]) -> Density:
    """The law ∝ exp(log_weight(f)), f the loss, on all of R^d; `peak` is where it is highest, as far as known.

    Integrates over the cells of the grid, and over shells of doubling size around it up to 1e8 times its size; the
    mass beyond follows from the ratio of the last shells. Raises `TailError` where that ratio is not below 1, and
    `PointError` where the weight is not a number, `PeakError` where the integral does not converge.
    """
    integrate = Cubature(scalar_valued(loss), log_weight, peak)
    low, high = _boxes(grid.edges)
    inside = integrate(low, high, np.arange(grid.size), grid.size)
    if grid.ndim > 1:
        _check_valley(loss, log_weight, grid, inside)
    shells = _shells(integrate, grid, logsumexp(inside))
    total = logsumexp(np.concatenate([inside, shells]))
    if not np.isfinite(total):
        raise TailError("its weight vanishes, or is infinite, wherever it was evaluated", None)
    tail = _beyond(shells - total, grid)
    mass, outside = np.exp(inside - total).reshape(grid.shape), float(np.sum(np.exp(shells - total)) + tail)
    return Density(grid, mass / (mass.sum() + outside), outside / (mass.sum() + outside))


def _check_valley(loss: Callable, log_weight: Callable, grid: Grid, inside: Float[np.ndarray, " n"]) -> None:
    """`TailError` if a valley leads out of the grid and carries as much mass in every doubling of the radius.

    Far out it may be too narrow for the shells, which would then report a law that does not exist.
    """
    total, cells = logsumexp(inside), inside.reshape(grid.shape)
    rim = cells.copy()
    rim[tuple(slice(1, -1) for _ in grid.shape)] = -np.inf
    if not np.max(rim) > total + np.log(_visible):
        return
    centre = np.array([0.5 * (e[0] + e[-1]) for e in grid.edges])
    radius = float(np.linalg.norm([0.5 * (e[-1] - e[0]) for e in grid.edges]))
    masses, angles, x = masses_along_valley(scalar_valued(loss), log_weight, centre, radius)
    # Without a valley the shells see the mass themselves.
    hidden = np.all(np.isfinite(masses)) and angles[-1] < np.log(_narrow) and masses[-1] > total + np.log(_visible)
    if hidden and np.all(np.diff(masses)[-3:] > -_level):
        raise TailError(f"its mass does not fall off along the valley through x = {x}", None)


def _boxes(edges) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    low, high = (
        np.stack(np.meshgrid(*side, indexing="ij"), -1) for side in ([e[:-1] for e in edges], [e[1:] for e in edges])
    )
    return low.reshape(-1, len(edges)), high.reshape(-1, len(edges))


def _shells(integrate: Cubature, grid: Grid, reference: float) -> Float[np.ndarray, " k"]:
    """The log masses between nested boxes around the grid, each twice as large as the last."""
    edges, levels = [], []
    growth = 2.0 ** np.arange(1, _doublings + 1)
    for e in grid.edges:
        # Across the other axes cells stay as fine as the grid is, or a narrow valley would be missed.
        inner = e[np.unique(np.linspace(0, e.size - 1, _inner_cells + 1).astype(int))]
        middle, half = 0.5 * (e[0] + e[-1]), 0.5 * (e[-1] - e[0])
        edges.append(np.concatenate([middle - half * growth[::-1], inner, middle + half * growth]))
        steps = np.arange(1, _doublings + 1)
        levels.append(np.concatenate([steps[::-1], np.zeros(inner.size - 1, int), steps]))
    shell = np.max(np.stack(np.meshgrid(*levels, indexing="ij"), -1), axis=-1).ravel()
    low, high = _boxes(edges)
    out = shell > 0
    return integrate(low[out], high[out], shell[out] - 1, _doublings, reference)


def _beyond(shells: Float[np.ndarray, " k"], grid: Grid) -> float:
    """The mass beyond the last shell, as a geometric series; shells are logs of masses whose total is 1."""
    with np.errstate(invalid="ignore"):
        slopes = np.diff(shells)[-2:]
    if not shells[-1] > -np.inf:
        return 0.0
    if shells[-1] < -_vanishing and shells[-1] < shells[-1 - _trend] - _vanishing:
        return 0.0
    if not slopes[-1] < -_least_decay:
        reach = max(e[-1] - e[0] for e in grid.edges) * 2.0**_doublings
        raise TailError(
            f"the mass of shells, each twice as large as the last, does not fall off near |x| = {reach:.0e}",
            float(-slopes[-1] / np.log(2)),
        )
    with np.errstate(over="ignore"):
        last, before = np.exp(shells[-1]) / np.expm1(-slopes[::-1])
    if not abs(last - before) <= _tail_error:
        raise TailError(
            f"its tail is not a power of |x| and holds about {last:.3g} of the mass beyond the reach of integration",
            None,
        )
    return float(last)


# 2^27 is about 1e8. Shells whose log masses fall by less than the rounding of the integrals do not decay.
_doublings, _inner_cells, _least_decay = 27, 16, 1e-6

# A last shell that holds less than exp(-300) of the mass, and of the shell eight doublings before, has nothing beyond
# it, though narrow valleys may make the masses of single shells go up and down.
_vanishing, _trend = 300.0, 8

# Shares of the mass that could matter, in a cell at the rim or in a shell; slopes of log mass that count as level; and
# the solid angle of a valley, which boxes might miss.
_visible, _level, _narrow = 1e-6, 2e-3, 0.05

# How far the tail beyond the last shell may be uncertain: above rounding, below what a histogram can see.
_tail_error = 1e-8
