"""The stationary law of a generator: the masses m with A m = 0."""

import warnings
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg
from jaxtyping import Float

from ..density import Density
from .assembly import Generator, assemble, check_generator, coarsen
from .axis_jumps import many_full
from .balance import multilevel_log_law
from .extrapolation import extrapolate as extrapolated
from .jump_edges import LongJumpsError

# A box counts as too small when this much mass would lie beyond one of its faces.
_truncation_limit = 1e-3

# The stationary law must balance the traffic of all cells to this fraction: rounding of the elimination.
_residual_limit = 1e-9

# The cell that is pinned must hold a mass within this factor of the largest: each factor 10 costs a digit. A cell from
# which mass only leaves would leave none. If it does not, the heaviest is pinned instead, so many times at most.
_pin_ratio = 1e3
_most_pins = 3

# Both grids need some cells along each axis for an estimate of the error.
_fewest_cells = 8

# From so many cells on multigrid takes the place of elimination, by the number of axes.
_many = {1: 1 << 62, 2: 60_000, 3: 8_000}

# The step that finds a heavy cell, in units of the fastest time scale: half of float64's digits remain.
_long_step = 1e8


def stationary(generator: Any, extrapolate: bool = False) -> Density:
    """The stationary law of the process: A m = 0, Σ m = 1.

    For a reversible process its logarithm is summed along the axes, and masses as small as 1e-300 are right to the
    error of the quadrature. Otherwise A m = 0 is solved by elimination without pivoting, or for many
    cells by factors from multigrid: both keep masses positive, and right where they are small.
    The former masses are those of cells, with small errors also in heavy tails; the latter are those of the density at
    the cell centre, second order in the width of the cell (see `assemble`).

    Without detailed balance `error` of the result estimates the error of each mass, by comparison with the law on cells
    twice as wide; None if the grid can't be coarsened or is too coarse for that. With `extrapolate` the masses are
    those that the comparison leads to: fourth order, for the mass in a cell and not at its centre, positive, and not
    those to which `evolve` tends; their current has a divergence of second order. `error` is the same, and then on the
    safe side. For a reversible process, or where there is no estimate, `extrapolate` changes nothing.

    Warns (`UserWarning`) if more than 1e-3 of the mass would lie beyond a no-flux face, estimated by `truncated_mass`:
    the law is then that of a process between walls.

    Raises `ValueError` for absorbing boundaries, and `RuntimeError` if too many digits were lost or if there is
    more than one stationary law, because noise is degenerate.
    """
    check_generator(generator)
    if not generator.conserving:
        raise ValueError(
            "A process that is absorbed has no stationary law, but `generator` has boundary "
            f"{generator.boundary!r}. Assemble it with boundary='no-flux', or look at `spectrum`: its slowest mode is "
            "the rate of absorption."
        )
    p = Density(generator.grid, closed_law(generator))
    if not generator.reversible:
        p = _with_error(generator, p, extrapolate)
    _warn_if_truncated(generator, p)
    return p


def truncated_mass(p: Density) -> Float[np.ndarray, "d 2"]:
    """An estimate of the mass beyond the low and the high face of each axis, if the tails went on as they end.

    The masses m₀ and m₁ of the two outermost layers of cells are continued as a geometric series, m₀ r / (1 - r) with
    r = m₀ / m₁, over at most as many cells as the axis has. This is right for exponential tails on a uniform grid and
    for power laws on a stretched one; too large for tails that end faster.
    """
    estimate = np.zeros((p.grid.ndim, 2))
    for k, cells in enumerate(p.grid.shape):
        mass = p.marginal(k).mass
        for side, (outer, inner) in enumerate([(mass[0], mass[1]), (mass[-1], mass[-2])]):
            if outer > 0:
                r = outer / inner if inner > outer else 1.0
                estimate[k, side] = outer * min(cells, r / (1 - r) if r < 1 else np.inf)
    return estimate


def closed_law(generator: Generator) -> Float[np.ndarray, "..."]:
    """The masses of the stationary law, after absorbing faces have been closed."""
    _check_one_law(generator)
    if generator.log_weights is not None:
        mass = np.exp(generator.log_weights)
        return mass / mass.sum()
    if not generator.conserving:
        kinds = ["no-flux" if kind == "absorbing" else kind for kind in generator.boundary]
        generator = assemble(generator.process, generator.grid, kinds)
    return _eliminate(generator).reshape(generator.grid.shape)


def _with_error(generator: Generator, p: Density, extrapolate: bool) -> Density:
    if any(n % 2 or n < _fewest_cells for n in p.grid.shape):
        return p
    try:
        wide = coarsen(generator)
    except LongJumpsError:
        return p
    periodic = tuple(kind == "periodic" for kind in generator.boundary)
    mass, error = extrapolated(p.mass, closed_law(wide), periodic)
    return Density(p.grid, mass if extrapolate else p.mass, error=error)


def _check_one_law(generator: Generator) -> None:
    """With degenerate noise there may be sets of cells that are never left: more than one makes the law arbitrary."""
    if generator.diagonals is None:
        return
    jumps = generator.matrix.tocoo()
    there = (jumps.data > 0) & (jumps.row != jumps.col)
    row, column = jumps.row[there], jumps.col[there]
    graph = scipy.sparse.csr_matrix((np.ones(row.size), (column, row)), shape=jumps.shape)
    count, part = scipy.sparse.csgraph.connected_components(graph, connection="strong")
    leaves = np.zeros(count, dtype=bool)
    leaves[part[column][part[column] != part[row]]] = True
    if np.sum(~leaves) > 1:
        raise RuntimeError(
            f"There is more than one stationary law: {np.sum(~leaves)} sets of cells are never left, because noise and "
            "drift vanish in some direction. Add noise in that direction, or drop the coordinate that does not move."
        )


def _eliminate(generator: Generator) -> Float[np.ndarray, " n"]:
    a = generator.matrix
    many = _many if generator.diagonals is None else many_full
    mass = np.exp(multilevel_log_law(generator, _eliminated, many[generator.grid.ndim])).ravel()
    mass /= mass.sum()
    residual = np.abs(a @ mass).sum() / np.abs(a.diagonal() * mass).sum()
    if not residual <= _residual_limit or np.any(mass < 0):
        raise RuntimeError(
            f"The solver left a residual of {residual:.2g} of the traffic and a smallest mass of {np.min(mass):.2g}. "
            "Drift and noise probably vary by many orders of magnitude from cell to cell: use more cells or a smaller "
            "box."
        )
    return mass


def _eliminated(generator: Generator) -> Float[np.ndarray, " n"]:
    a = generator.matrix
    mass = _pinned(a, _heavy_cell(a))
    for _ in range(_most_pins - 1):
        heaviest = int(np.argmax(np.abs(mass)))
        if np.abs(mass[heaviest]) <= _pin_ratio:
            break
        mass = _pinned(a, heaviest)
    return mass


def _heavy_cell(a: scipy.sparse.csc_matrix) -> int:
    # The heaviest cell after one long implicit step from equal masses. That system is strictly dominant, and safe.
    n = len(a.diagonal())
    step = _long_step / np.max(np.abs(a.diagonal()))
    return int(np.argmax(m_matrix_lu(scipy.sparse.identity(n) - step * a).solve(np.full(n, 1 / n))))


def _pinned(a: scipy.sparse.csc_matrix, pin: int) -> Float[np.ndarray, " n"]:
    # A m = 0 with m[pin] = 1. Without the row and the column of one cell, -A is a nonsingular M-matrix: elimination
    # on the diagonal is stable and its solution positive.
    mass = np.ones(len(a.diagonal()))
    rest = np.delete(np.arange(mass.size), pin)
    inflow = a[:, [pin]].toarray().ravel()[rest]
    mass[rest] = m_matrix_lu(-a[rest][:, rest]).solve(inflow)
    return mass


def m_matrix_lu(a) -> scipy.sparse.linalg.SuperLU:
    """The factors of an M-matrix, eliminated on the diagonal in an order for symmetric patterns."""
    return scipy.sparse.linalg.splu(
        a.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )


def _warn_if_truncated(generator: Generator, p: Density) -> None:
    estimate = truncated_mass(p)
    for k, kind in enumerate(generator.boundary):
        for side, name in enumerate(["low", "high"]):
            if kind == "no-flux" and estimate[k, side] > _truncation_limit:
                edge = p.grid.edges[k][0 if side == 0 else -1]
                warnings.warn(
                    f"The box is too small: about {min(estimate[k, side], 1.0):.2g} of the mass would lie beyond the "
                    f"{name} face of axis {k}, at {edge:.6g}. Move that face outwards (for heavy tails use "
                    "`Grid.stretched`), or ignore this if the wall is part of your model.",
                    UserWarning,
                    stacklevel=3,
                )
