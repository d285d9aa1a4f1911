"""The stationary law of a generator: the masses m with A m = 0."""

import warnings
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from jaxtyping import Float

from ..density import Density
from .assembly import Generator, assemble, check_generator, coarsen
from .balance import multilevel_log_law
from .elimination import eliminated
from .extrapolation import extrapolate as extrapolated
from .jump_edges import LongJumpsError
from .traced_generator import TracedGenerator
from .traced_law import traced_stationary

# A box counts as too small when this much mass would lie beyond one of its faces.
_truncation_limit = 1e-3

# The stationary law must balance the traffic of all cells to this fraction: rounding of the elimination.
_residual_limit = 1e-9

# Both grids need some cells along each axis for an estimate of the error.
_fewest_cells = 8

# From so many cells on multigrid takes the place of elimination, by the number of axes.
_many = {1: 1 << 62, 2: 60_000, 3: 8_000}


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

    If JAX traces the process, the masses, and so expectations, have derivatives of any order, and `vmap` sweeps over
    parameters; there is no warning and no `error`. In one dimension nothing but JAX is used:

        def mean_square(sigma):
            model = sg.SGD(loss, sg.noise.LossProportional(sigma), learning_rate=0.1)
            return fokker_planck.stationary(fokker_planck.assemble(model, grid)).expect(lambda x: x @ x)

        jax.grad(mean_square)(0.5)
        jax.jit(jax.vmap(mean_square))(jnp.linspace(0.2, 1.0, 50))

    In more dimensions A m = 0 is solved by elimination, one member of a sweep after another. Where a process has
    detailed balance for one value of a number only, the masses jump there by the error of the scheme, and the
    derivative is that of the scheme with detailed balance.

    Raises `ValueError` for absorbing boundaries, and `RuntimeError` if too many digits were lost or if there is
    more than one stationary law, because noise is degenerate.
    """
    if isinstance(generator, TracedGenerator):
        return traced_stationary(generator, extrapolate)
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
    if generator.diagonals is None:
        mass = np.exp(multilevel_log_law(generator, eliminated, _many[generator.grid.ndim])).ravel()
    else:
        mass = eliminated(generator)
    mass /= mass.sum()
    residual = np.abs(a @ mass).sum() / np.abs(a.diagonal() * mass).sum()
    if not residual <= _residual_limit or np.any(mass < 0):
        raise RuntimeError(
            f"The solver left a residual of {residual:.2g} of the traffic and a smallest mass of {np.min(mass):.2g}. "
            "Drift and noise probably vary by many orders of magnitude from cell to cell: use more cells or a smaller "
            "box."
        )
    return mass


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
