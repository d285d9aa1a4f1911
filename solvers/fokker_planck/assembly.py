r"""Assemble the generator of a process on a grid: dm/dt = A m for the masses m of the cells.

Integrating ∂tρ = -∂k J_k, J_k = b_k ρ - ∂k(D_kk ρ), over a cell of volume V gives one term per face. With m_i = a_i V_i
ρ(centre i), a_i from `cell_means`, and the current of `weights`, the rate at which mass jumps from cell i over the face
to its neighbour j, a length `dist` away, is

    k_ij = D_i W ā / (a_i width_i dist),    k_ji = D_j W e^(-Ω) ā / (a_j width_j dist),    Ω = ∫ b_k / D_kk dx, i to j.

Detailed balance on an edge, k_ij m_i = k_ji m_j, holds where

    log(m_j / m_i) = Ω + log(D_i / D_j) + log(width_j / width_i) + log(a_j / a_i),

whatever W and ā, the mean over the face, are. If these ratios add up to zero around every closed path, they are the
differences of one function: the logarithm of the stationary law. Whether they do is tested here, never declared.

Drift and noise are all that enters. In particular no stationary density does, so that a comparison with a closed form
can fail.
"""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import scipy.sparse
from jaxtyping import Float

from .._tracing import Numbers, namespace
from ..grid import Grid
from ..process import AbstractDiffusion
from .cell_means import face_means
from .coefficients import check_process, edge_limit, half_edge_integrals
from .detailed_balance import log_law
from .memory import check_fits
from .process_values import holds_tracers
from .reference import Reference, check_reference, not_needed, referred_rates
from .tensor_rates import Diagonals, tensor_rates
from .traced_generator import Boundary, Layout, TracedGenerator
from .weights import bernoulli, edge_weights, is_midpoint, resolved_edge

Masses = Literal["cells", "points"]

_boundaries = ("no-flux", "absorbing", "periodic")

# What others call them.
_synonyms = {
    **dict.fromkeys(("reflecting", "reflective", "neumann", "closed", "wall", "zero-flux"), "no-flux"),
    **dict.fromkeys(("dirichlet", "open", "killing"), "absorbing"),
    **dict.fromkeys(("wrap", "cyclic", "torus"), "periodic"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """The generator A of a process on a grid: dm/dt = A m for the masses m, flattened in C order.

    `matrix` is A: off-diagonal entries are not negative, and columns sum to zero but for absorption. Its entries again
    face by face: `up[k][..., f, ...]` is the rate of jumps through face f of axis k from the cell below it, and
    `down[k]` that from the cell above; face f lies between cells f - 1 and f, and the last face of a periodic axis
    leads to cell 0. `log_ratios[k]` is log(m_j / m_i) at detailed balance, from each cell to the next.

    `log_weights` is the logarithm of the stationary law (with absorbing faces closed), up to a constant, if the process
    is reversible, and None if not; `cycle_defect` is the largest sum of log ratios around a closed path. `masses` says
    whether it is the law's mass of each "cells", or the density at "points", the centres, times the volume: a = 1.
    `reference` says whether a reference that was given is used, and why; None if there was none.
    """

    process: AbstractDiffusion
    grid: Grid
    boundary: tuple[Boundary, ...]
    matrix: scipy.sparse.csc_matrix
    up: tuple[Float[np.ndarray, "..."], ...]
    down: tuple[Float[np.ndarray, "..."], ...]
    log_ratios: tuple[Float[np.ndarray, "..."], ...]
    log_weights: Float[np.ndarray, "..."] | None
    cycle_defect: float
    resolved: float
    masses: Masses
    diagonals: Diagonals | None = None
    reference: Reference | None = None

    @property
    def reversible(self) -> bool:
        """Whether the stationary law has no current: detailed balance on every edge."""
        return self.log_weights is not None

    @property
    def conserving(self) -> bool:
        """Whether mass stays in the grid: no face absorbs."""
        return "absorbing" not in self.boundary

    @property
    def exit_rates(self) -> Float[np.ndarray, "..."]:
        """The rate at which each cell loses mass through absorbing faces."""
        rates = np.zeros(self.grid.shape)
        for k, kind in enumerate(self.boundary):
            if kind == "absorbing":
                along = np.moveaxis(rates, k, -1)
                along[..., 0] += np.moveaxis(self.down[k], k, -1)[..., 0]
                along[..., -1] += np.moveaxis(self.up[k], k, -1)[..., -1]
        if self.diagonals is not None:
            rates += sum(leaving.sum(axis=0) for leaving in self.diagonals.leaving)
        return rates

    def __str__(self) -> str:
        kind = "reversible" if self.reversible else f"not reversible (cycle defect {self.cycle_defect:.2g})"
        jumps = "" if self.diagonals is None else f", jumps of up to {self.diagonals.longest} cells"
        said = "" if self.reference is None else f", {self.reference}"
        return f"Generator on {self.grid}, boundary {' × '.join(self.boundary)}: {kind}{jumps}{said}"


def assemble(
    process: AbstractDiffusion,
    grid: Grid,
    boundary: str | Sequence[str] = "no-flux",
    reference: Callable | None = None,
) -> Generator | TracedGenerator:
    """The Fokker-Planck generator of `process` on the cells of `grid`, in one to three dimensions.

    `boundary` is one word for all axes or one per axis: "no-flux" (walls that reflect), "absorbing" (mass that
    reaches the face is gone) or "periodic" (the process must be periodic, too). The scheme is second order in the
    width of the cells. The stationary law of a reversible process is better: up to quadrature with an error of order 8
    its masses are those of the cells in one dimension, or if the law is a product; of order 4 otherwise. In cells
    across which the law changes by more than a factor e^4, and without detailed balance, masses are those of the
    density at the centre, second order.

    D may be any positive semidefinite tensor in two and three dimensions. Where it is full, mass jumps between cells
    that share no face, too, and stays positive at any correlation; drift in a direction without diffusion is upwind,
    first order in the width of the cells. With a full D, no-flux walls are first order where there is mass at them.

    `reference` may be the logarithm of a density, up to a constant, as a JAX function of one point (d,). It improves
    the scheme without detailed balance where it is close to the stationary law: if it is that law, the law on the grid
    is exact (`reference.py`). It is used only if the process changes it at most a fifth as fast as a constant density,
    and `generator.reference` says so with the numbers; it is never needed. A law that was computed with a closed form
    as its reference can't confirm it: compare with a generator assembled without.

    Processes are autonomous here: drift and noise are evaluated at t = 0.

    If JAX traces the process (`jax.grad`, `jit` or `vmap` over numbers that it holds, or over which its loss closes),
    the result is a `TracedGenerator`, for `stationary` and `spectrum`, which have derivatives. D must then be diagonal.
    Processes that differ in the arrays they hold share compiled programs; a new loss function is compiled anew.

    Raises `RuntimeError` if float64 is off, `ValueError` for arguments that do not fit together, for drift or noise
    that is not finite, and for a D so anisotropic that jumps would be too long (`LongJumpsError`), `MemoryError` if the
    generator would not fit in half of the machine's memory, and `NotImplementedError` for more than three axes and
    for degenerate D on one axis.
    """
    kinds = checked_boundary(process, grid, boundary, tracers=True)
    if reference is not None:
        check_reference(reference, grid)
    if holds_tracers(process, grid.ndim):
        return _traced(process, grid, kinds, reference)
    generator = assemble_checked(process, grid, kinds, masses="cells")
    if reference is None:
        return generator
    if generator.reversible:
        return dataclasses.replace(generator, reference=not_needed(reference))
    referred = _referred(generator, reference)
    assert referred.reference is not None
    return referred if referred.reference.used else dataclasses.replace(generator, reference=referred.reference)


def _traced(
    process: AbstractDiffusion, grid: Grid, boundary: tuple[Boundary, ...], reference: Callable | None
) -> TracedGenerator:
    if reference is not None:
        raise NotImplementedError(
            "`reference` has no derivatives: it can't be used while JAX traces the process (`jax.grad`, `jit` or "
            "`vmap`). Leave it out, or assemble a process of numbers and take differences."
        )
    return TracedGenerator(process, Layout(grid, boundary, resolved_edge))


def checked_boundary(
    process: Any, grid: Grid, boundary: str | Sequence[str], most_axes: int = 3, tracers: bool = False
) -> tuple[Boundary, ...]:
    """`boundary`, one word an axis, after checks of all three arguments; computes nothing.

    `tracers` tells whether the process may hold numbers that JAX traces.
    """
    kinds = _per_axis(boundary, grid)
    if any(n < 2 for n in grid.shape):
        raise ValueError(f"`grid` must have at least two cells along each axis, got shape {grid.shape}.")
    check_process(process, grid, most_axes, tracers)
    return kinds


def check_generator(generator: Any) -> None:
    """`TypeError` for anything but what `assemble` returns for a process of numbers."""
    if isinstance(generator, TracedGenerator):
        raise NotImplementedError(
            "JAX traces the process of `generator` (`jax.grad`, `jit` or `vmap`), and of all that takes a generator "
            "only `stationary` and `spectrum` have derivatives. Assemble a process of numbers for the others."
        )
    if not isinstance(generator, Generator):
        raise TypeError(
            f"`generator` must come from `fokker_planck.assemble(process, grid)`, got {type(generator).__name__}."
        )


def coarsen(generator: Generator) -> Generator:
    """The generator of the same process with two cells made one along each axis, for error estimates.

    Edges that were resolved count as resolved again, though twice as long: both schemes are then the same but for the
    width of the cells, and their results can be extrapolated.
    """
    return assemble_alike(generator, generator.grid.coarsen(), generator.boundary, 2 * generator.resolved)


def assemble_alike(generator: Generator, grid: Grid, boundary: tuple[Boundary, ...], resolved: float) -> Generator:
    """The generator of the same process on another grid or with another boundary, by the same scheme."""
    other = assemble_checked(generator.process, grid, boundary, resolved, generator.masses)
    if generator.reference is None or not generator.reference.used:
        return other
    return dataclasses.replace(_referred(other, generator.reference.log_density), reference=generator.reference)


def _referred(generator: Generator, log_density: Callable) -> Generator:
    base = generator.up, generator.down, generator.diagonals
    process, grid, boundary = generator.process, generator.grid, generator.boundary
    found = referred_rates(process, grid, boundary, log_density, generator.resolved, base)
    verdict, up, down, log_ratios, diagonals = found
    matrix = rate_matrix(up, down, diagonals, boundary, grid.shape)
    return dataclasses.replace(
        generator,
        matrix=matrix,
        up=up,
        down=down,
        log_ratios=log_ratios,
        log_weights=None,
        diagonals=diagonals,
        reference=verdict,
    )


def assemble_checked(
    process: AbstractDiffusion,
    grid: Grid,
    boundary: tuple[Boundary, ...],
    resolved: float = resolved_edge,
    masses: Masses = "points",
) -> Generator:
    """The generator, of arguments that `checked_boundary` let pass.

    The masses are those of the centres for functions, as mean exit times, which are values at the centres, too; and for
    processes without detailed balance.
    """
    check_fits(grid)
    found, limit = half_edge_integrals(process, grid, resolved), edge_limit(process, grid, resolved)
    if found is None:
        check_fits(grid, full_tensor=True)
        masses = "points"
        up, down, log_ratios, diagonals = tensor_rates(process, grid, boundary, resolved)
    else:
        diagonals = None
        up, down, log_ratios = face_rates(grid, boundary, found, masses, limit)
    log_weights, defect = log_law(log_ratios, diagonals, grid.shape)
    if found is not None and log_weights is None and masses == "cells":
        masses = "points"
        up, down, log_ratios = face_rates(grid, boundary, found, masses, limit)
    matrix = rate_matrix(up, down, diagonals, boundary, grid.shape)
    return Generator(
        process, grid, boundary, matrix, up, down, log_ratios, log_weights, defect, resolved, masses, diagonals
    )


def _per_axis(boundary: str | Sequence[str], grid: Grid) -> tuple[Boundary, ...]:
    kinds = (boundary,) * grid.ndim if isinstance(boundary, str) else tuple(boundary)
    for kind in kinds:
        if kind not in _boundaries:
            said = str(kind).lower().replace("_", "-").replace(" ", "-")
            near = [_synonyms[said]] if said in _synonyms else difflib.get_close_matches(said, _boundaries, 1, 0.4)
            raise ValueError(
                f"`boundary` must be one of {', '.join(map(repr, _boundaries))}, but got {kind!r}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )
    if len(kinds) != grid.ndim:
        raise ValueError(
            f"`boundary` must be one word or one for each of the {grid.ndim} axes of `grid`, but got {len(kinds)}: "
            f"{kinds!r}."
        )
    return kinds  # pyright: ignore[reportReturnType]


def face_rates(
    grid: Grid, boundary: tuple[Boundary, ...], found: Any, masses: Masses, limit: Any
) -> tuple[Any, Any, Any]:
    """Jump rates up and down, and log ratios, for each axis; from what `half_edge_integrals` found."""
    integrals, diffusion, log_means = found
    if masses == "points":
        log_means = tuple(np.zeros(grid.shape) for _ in log_means)
    axes = [_axis_rates(grid, k, boundary[k], integrals[k], diffusion[k], log_means, limit) for k in range(grid.ndim)]
    up, down, log_ratios = zip(*axes, strict=True)
    return up, down, log_ratios


def _axis_rates(
    grid: Grid,
    k: int,
    kind: Boundary,
    integrals: Float[Numbers, "2 ..."],
    diffusion: Float[Numbers, "..."],
    log_means: tuple[Float[Numbers, "..."], ...],
    resolved: Float[np.ndarray, "..."],
) -> tuple[Float[Numbers, "..."], Float[Numbers, "..."], Float[Numbers, "..."]]:
    # Jump rates up and down through each face of axis k, and log(m_j / m_i) from each cell to the next.
    xp = namespace(integrals, diffusion)
    low, high = (xp.moveaxis(half, k, -1) for half in integrals)
    d = xp.moveaxis(diffusion, k, -1)
    e, c = grid.edges[k], grid.centres[k]
    width = np.diff(e)
    dist = np.append(np.diff(c), (e[-1] - c[-1]) + (c[0] - e[0]))
    after = xp.roll(low, -1, axis=-1)
    d_after, width_after = xp.roll(d, -1, axis=-1), np.roll(width, -1)
    log_a, log_a_after, log_face = face_means(log_means, k, is_midpoint(high, after, resolved))
    out, back = edge_weights(high, after, resolved)
    out, back = out * xp.exp(log_face - log_a), back * xp.exp(log_face - log_a_after)
    up, down = d * out / (width * dist), d_after * back / (width_after * dist)
    log_ratios = high + after + xp.log(d / d_after) + np.log(width_after / width) + log_a_after - log_a
    closed = xp.zeros_like(d[..., :1])
    first, last = (closed, closed), (up[..., -1:], down[..., -1:])
    if kind != "periodic":
        log_ratios = log_ratios[..., :-1]
        last = closed, closed
    if kind == "absorbing":
        # Half an edge, at whose end q = 0.
        first = closed, d[..., :1] * bernoulli(low[..., :1]) / (width[0] * (c[0] - e[0]))
        last = d[..., -1:] * bernoulli(-high[..., -1:]) / (width[-1] * (e[-1] - c[-1])), closed
    # As many inner faces as lead from a cell to the next; the last one leads to the first cell, or is a wall.
    up, down = (
        xp.concatenate([a, inner[..., :-1], b], axis=-1) for a, inner, b in zip(first, (up, down), last, strict=True)
    )
    return xp.moveaxis(up, -1, k), xp.moveaxis(down, -1, k), xp.moveaxis(log_ratios, -1, k)


def rate_matrix(
    up: tuple[Float[np.ndarray, "..."], ...],
    down: tuple[Float[np.ndarray, "..."], ...],
    diagonals: Diagonals | None,
    boundary: tuple[Boundary, ...],
    shape: tuple[int, ...],
) -> scipy.sparse.csc_matrix:
    """The matrix of these rates of jumps."""
    cells = np.arange(np.prod(shape)).reshape(shape)
    leaving = np.zeros(shape)
    rows, columns, rates = [], [], []
    for k, kind in enumerate(boundary):
        here = np.moveaxis(cells, k, -1)
        through_up, through_down = (np.moveaxis(r[k], k, -1) for r in (up, down))
        along = np.moveaxis(leaving, k, -1)
        along += through_up[..., 1:]
        along += through_down[..., :-1]
        there = np.roll(here, -1, axis=-1)
        if kind == "periodic":
            along[..., 0] += through_down[..., -1]
        else:
            here, there = here[..., :-1], there[..., :-1]
        n = here.shape[-1]
        rows += [there.ravel(), here.ravel()]
        columns += [here.ravel(), there.ravel()]
        rates += [through_up[..., 1 : n + 1].ravel(), through_down[..., 1 : n + 1].ravel()]
    if diagonals is not None:
        source, target = diagonals.source, diagonals.target
        rows += [target, source]
        columns += [source, target]
        rates += [diagonals.forth, diagonals.back]
        leaving += np.bincount(source, diagonals.forth, leaving.size).reshape(shape)
        leaving += np.bincount(target, diagonals.back, leaving.size).reshape(shape)
        leaving += sum(through.sum(axis=0) for through in diagonals.leaving)
    rows.append(cells.ravel())
    columns.append(cells.ravel())
    rates.append(-leaving.ravel())
    entries = (np.concatenate(rates), (np.concatenate(rows), np.concatenate(columns)))
    return scipy.sparse.csc_matrix(entries, shape=(cells.size, cells.size))
