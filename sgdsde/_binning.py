"""Where the laws of a model are compared: a grid that covers them, and bins in which particles are counted."""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float

from solvers import Density, Grid, fokker_planck
from solvers.grid import evaluate

from ._checks import scalar_valued
from .models import SGD
from .noise import LossProportional

# The mass beyond the grid along each axis, the reach in units of the spread of the law at most, and cells along each
# axis, by dimension.
_tail_mass = 1e-9
_reach = {1: 1e6, 2: 1e3}
_cells = {1: 4000, 2: 300}

# Bins of the comparison: this many of equal mass per axis, and the far tails by themselves.
_bins = {1: 40, 2: 12}
_tail_quantiles = {1: (1e-4, 1e-3, 1e-2), 2: (1e-3, 1e-2)}

# Bins that hold less than this by the Fokker-Planck law count as one: alone they would be noise.
_least_mass = 2e-4


def automatic_grid(model: SGD, d: int) -> Grid:
    """A stretched grid about the median of the law, on the scale of its spread, found from coarse solutions."""
    centre, scale, reach = np.zeros(d), np.ones(d), np.full(d, _reach[d])
    _check_loss(model, _about(centre, scale, reach, _cells[d] // 2))
    for _ in range(2):
        with warnings.catch_warnings():
            # The law in this first, coarse box only sets the scale of the next.
            warnings.simplefilter("ignore", UserWarning)
            p = fokker_planck.stationary(fokker_planck.assemble(model, _about(centre, scale, reach, _cells[d] // 2)))
        for k in range(d):
            low, centre[k], high = quantiles(p.marginal(k), [0.1, 0.5, 0.9])
            scale[k] = 0.5 * (high - low)
            ends = quantiles(p.marginal(k), [_tail_mass, 1 - _tail_mass])
            reach[k] = min(_reach[d] * scale[k], 1.5 * np.max(np.abs(ends - centre[k])))
    return _about(centre, scale, reach, _cells[d])


def _check_loss(model: SGD, grid: Grid) -> None:
    """A negative loss under loss-proportional noise is named as such, before it is the root of a negative number."""
    if not isinstance(model.gradient_noise, LossProportional):
        return
    points = grid.points.reshape(-1, grid.ndim)
    values = evaluate(scalar_valued(model.loss), points)
    lowest = int(np.argmin(values))
    if values[lowest] < 0:
        raise ValueError(
            f"The loss must not be negative under loss-proportional noise, because D = ησf must not, but f = "
            f"{values[lowest]:.6g} at x = {points[lowest]}. Add a constant above {-values[lowest]:.6g} to the loss."
        )


def _about(centre: np.ndarray, scale: np.ndarray, reach: np.ndarray, cells: int) -> Grid:
    grid = Grid.stretched(*[(r, cells, s) for r, s in zip(reach, scale, strict=True)])
    return Grid(
        [e + c for e, c in zip(grid.edges, centre, strict=True)],
        [x + c for x, c in zip(grid.centres, centre, strict=True)],
    )


def quantiles(p: Density, levels: Any) -> Float[np.ndarray, " n"]:
    cdf = p.cdf()
    return np.interp(np.asarray(levels) * cdf[-1], cdf, p.grid.edges[0])


class Bins:
    """Bins in which laws are compared: of about equal mass along each axis by the law p, and small ones for the tails.

    Their edges are edges of the fine grid, and of the coarser one with half as many cells. Bins of hardly any mass,
    such as the corners of a plane, count as one: their mass goes to `Density.outside`.
    """

    def __init__(self, p: Density):
        n = _bins[p.grid.ndim]
        tails = np.array(_tail_quantiles[p.grid.ndim])
        levels = np.sort(np.concatenate([tails, np.arange(1, n) / n, 1 - tails]))
        edges = []
        for k, fine in enumerate(p.grid.edges):
            cuts = np.searchsorted(fine, quantiles(p.marginal(k), levels)) // 2 * 2
            cuts = cuts[(cuts > 0) & (cuts < fine.size - 1)]
            edges.append(fine[np.unique(np.concatenate([[0], cuts, [fine.size - 1]]))])
        self.grid = Grid(edges)
        self.sparse = p.on(self.grid).mass < _least_mass

    def of(self, p: Density) -> Density:
        """The law in these bins, from one on them or on a finer grid."""
        p = p if p.grid.shape == self.grid.shape else p.on(self.grid)
        replicates = None if p.replicates is None else np.where(self.sparse, 0.0, p.replicates)
        return Density(self.grid, np.where(self.sparse, 0.0, p.mass), p.outside + p.mass[self.sparse].sum(), replicates)
