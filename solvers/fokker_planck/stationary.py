"""The stationary law of a generator: the masses m with A m = 0."""

import warnings
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from jaxtyping import Float

from ..density import Density
from ..provenance import recorded
from .assembly import Boundary, Generator, assemble_alike, check_generator, coarsen
from .axis_jumps import many_full
from .balance import multilevel_log_law
from .cut_off import cut_off
from .elimination import eliminated
from .extrapolation import cell_errors, coarser_grids, extrapolate as extrapolated
from .traced_generator import TracedGenerator
from .traced_law import traced_stationary
from .weights import resolved_edge

# A box counts as too small when this much mass would lie beyond one of its faces.
_truncation_limit = 1e-3

# The box that a warning suggests leaves out so much beyond each face.
_suggested_outside = 1e-6

# The stationary law must balance the traffic of all cells to this fraction: rounding of the elimination.
_residual_limit = 1e-9

# The grid does not resolve the law if the masses of cells are uncertain by more than this, all together: for a Gaussian
# law if a cell is wider than 2.7 standard deviations.
_unresolved_limit = 0.5

# From so many cells on multigrid takes the place of elimination, by the number of axes.
_many = {1: 1 << 62, 2: 60_000, 3: 8_000}


@recorded("generator")
def stationary(generator: Any, extrapolate: bool = False) -> Density:
    """The stationary law of the process: A m = 0, Σ m = 1.

    For a reversible process its logarithm is summed along the axes, and masses as small as 1e-300 are right to the
    error of the quadrature. Otherwise A m = 0 is solved by elimination without pivoting, or for many
    cells by factors from multigrid: both keep masses positive, and right where they are small.
    The former masses are those of cells, with small errors also in heavy tails; the latter are those of the density at
    the cell centre, second order in the width of the cell (see `assemble`).

    `error` of the result estimates the error of each mass, by comparison with the laws on cells twice and, where the
    grid allows, four times as wide; None if the grid can't be coarsened or is too coarse for that. For masses of
    cells it is on the safe side: their order is taken to be four, or two where the grid does not resolve the law.

    `beyond` of the result is the mass that the walls of the box cut off, by `truncated_mass`; see `cut_off`, too.

    With `extrapolate` masses of centres are replaced by those that the comparison leads to: those of cells, fourth
    order from two grids and sixth from three (where offsets of a varying tensor change from place to place: of second
    order, with a smaller error). They are positive, and not those to which `evolve` tends; their current has a
    divergence of second order. `error` is then that of these masses; if there are only two grids, that of the others,
    on the safe side. Masses that are those of cells already are left alone.

    Warns (`UserWarning`) if more than 1e-3 of the mass would lie beyond a no-flux face, and says where it had better
    be: the law is then that of a process between walls. Warns, too, if cells are wider than the law.

    If JAX traces the process, the masses, and so expectations, have derivatives of any order, and `vmap` sweeps over
    parameters; there is no warning, no `error` and no `beyond`. In one dimension nothing but JAX is used:

        def mean_square(sigma):
            model = sg.SGD(loss, sg.noise.LossProportional(sigma), learning_rate=0.1)
            return fokker_planck.stationary(fokker_planck.assemble(model, grid)).expect(lambda x: x @ x)

        jax.grad(mean_square)(0.5)
        jax.jit(jax.vmap(mean_square))(jnp.linspace(0.2, 1.0, 50))

    In more dimensions A m = 0 is solved by elimination, one member of a sweep after another. Where a process has
    detailed balance for one value of a number only, the masses jump there by the error of the scheme, and the
    derivative is that of the scheme with detailed balance. Without detailed balance they also jump, by an error of
    second order, where an edge passes from one weight to the other (`weights`). The derivative is that on the side of
    the given value; differences taken across such a value measure the jump, and grow as their step shrinks.

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
    law = Density(generator.grid, closed_law(generator))
    cut = np.where(np.array([kind == "no-flux" for kind in generator.boundary])[:, None], truncated_mass(law), 0.0)
    law = Density(law.grid, law.mass, beyond=min(float(cut.sum()), 1.0))
    p = _with_error(generator, law, extrapolate)
    _warn_if_truncated(generator, p, cut)
    _warn_if_unresolved(p)
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
        kinds: list[Boundary] = ["no-flux" if kind == "absorbing" else kind for kind in generator.boundary]
        generator = assemble_alike(generator, generator.grid, tuple(kinds), generator.resolved)
    return _eliminate(generator).reshape(generator.grid.shape)


def _with_error(generator: Generator, p: Density, extrapolate: bool) -> Density:
    most = 1 if generator.masses == "cells" else 2
    wider = _wider(generator, most)
    if not wider:
        return p
    floor = unresolved(p)
    if generator.masses == "cells":
        return Density(p.grid, p.mass, error=cell_errors(p.mass, closed_law(wider[0]), floor), beyond=p.beyond)
    if np.sum(floor * p.mass) <= _unresolved_limit:
        # The comparison sees by how much masses of centres differ from those of cells.
        floor = np.zeros_like(floor)
    periodic = tuple(kind == "periodic" for kind in generator.boundary)
    mass, error, error_left = extrapolated([p.mass, *map(closed_law, wider)], periodic, _smooth(generator))
    if extrapolate:
        return Density(p.grid, mass, error=np.maximum(error_left, floor * mass), beyond=p.beyond)
    return Density(p.grid, p.mass, error=np.maximum(error, floor * p.mass), beyond=p.beyond)


def _wider(generator: Generator, most: int) -> list[Generator]:
    """The same process on cells 2, 4, ... times as wide, as many as there may be."""
    found = []
    for _ in range(coarser_grids(generator.grid.shape, most)):
        try:
            found.append(coarsen(found[-1] if found else generator))
        except ValueError:
            # Jumps that would be too long, or drift and noise that are not finite at one of the new points.
            break
    return found


def unresolved(p: Density) -> Float[np.ndarray, "..."]:
    """By how much, as a fraction, the mass of a cell is uncertain because the law is not resolved; 0 where it is.

    The mean of an exponential over a cell is sinh(Δ/2) / (Δ/2) times its value in the middle, Δ being the change of
    log ρ, here the larger of those to the neighbours. Where Δ is more than counts as resolved, masses are those of the
    centres, and wider cells are no better guide.
    """
    log_density = np.log(np.maximum(p.pdf, np.finfo(np.float64).tiny))
    steepest = np.zeros(p.grid.shape)
    for k in range(p.grid.ndim):
        change, along = np.moveaxis(np.abs(np.diff(log_density, axis=k)), k, 0), np.moveaxis(steepest, k, 0)
        along[:-1] = np.maximum(along[:-1], change)
        along[1:] = np.maximum(along[1:], change)
    half = np.minimum(0.5 * steepest, 700.0)
    steep = steepest > resolved_edge
    return np.where(steep, 1 - half / np.sinh(np.where(steep, half, 1.0)), 0.0)


def _smooth(generator: Generator) -> bool:
    """Whether all cells have the same jumps but for their rates; else the error is no smooth function."""
    if generator.diagonals is None:
        return True
    offsets, count = np.unique(generator.diagonals.offset, axis=0, return_counts=True)
    cells = np.array(generator.grid.shape)
    wraps = np.array([kind == "periodic" for kind in generator.boundary])
    return bool(np.all(count == np.prod(np.where(wraps, cells, cells - np.abs(offsets)), axis=1)))


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
    mass = np.exp(multilevel_log_law(generator, eliminated, many[generator.grid.ndim])).ravel()
    mass /= mass.sum()
    residual = np.abs(a @ mass).sum() / np.abs(a.diagonal() * mass).sum()
    if not residual <= _residual_limit or np.any(mass < 0):
        raise RuntimeError(
            f"The solver left a residual of {residual:.2g} of the traffic and a smallest mass of {np.min(mass):.2g}. "
            "Drift and noise probably vary by many orders of magnitude from cell to cell: use more cells or a smaller "
            "box."
        )
    return mass


def _warn_if_truncated(generator: Generator, p: Density, cut: Float[np.ndarray, "d 2"]) -> None:
    if np.max(cut) <= _truncation_limit:
        return
    box = cut_off(generator, p, _suggested_outside).box
    for k in range(p.grid.ndim):
        for side, name in enumerate(["low", "high"]):
            if cut[k, side] > _truncation_limit:
                edge, better = p.grid.edges[k][-side], box[k, side]
                where = f" to about {better:.3g}" if np.isfinite(better) else ""
                warnings.warn(
                    f"The box is too small: about {min(cut[k, side], 1.0):.2g} of the mass would lie beyond the {name} "
                    f"face of axis {k}, at {edge:.6g}. Move that face outwards{where} (for heavy tails use "
                    "`Grid.stretched`), or ignore this if the wall is part of your model.",
                    UserWarning,
                    stacklevel=3,
                )


def _warn_if_unresolved(p: Density) -> None:
    uncertain = float(np.sum(unresolved(p) * p.mass))
    if uncertain > _unresolved_limit:
        cell = np.unravel_index(int(np.argmax(p.mass)), p.grid.shape)
        widths = ", ".join(f"{np.diff(e)[i]:.3g}" for e, i in zip(p.grid.edges, cell, strict=True))
        warnings.warn(
            f"The grid does not resolve the law: cells are wider than it, and {min(uncertain, 1.0):.2g} of the mass is "
            f"uncertain. At its maximum they measure {widths}. Use more cells, a smaller box, or for heavy tails "
            "`Grid.stretched`.",
            UserWarning,
            stacklevel=3,
        )
