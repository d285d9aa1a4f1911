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
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy.sparse
from jaxtyping import Float

from ..grid import Grid
from ..process import AbstractDiffusion
from .cell_means import face_means
from .coefficients import check_process, edge_limit, half_edge_integrals
from .weights import bernoulli, edge_weights, resolved_edge

Boundary = Literal["no-flux", "absorbing", "periodic"]

Masses = Literal["cells", "points"]

_boundaries = ("no-flux", "absorbing", "periodic")

# What others call them.
_synonyms = {
    **dict.fromkeys(("reflecting", "reflective", "neumann", "closed", "wall", "zero-flux"), "no-flux"),
    **dict.fromkeys(("dirichlet", "open", "killing"), "absorbing"),
    **dict.fromkeys(("wrap", "cyclic", "torus"), "periodic"),
}

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
        return rates

    def __str__(self) -> str:
        kind = "reversible" if self.reversible else f"not reversible (cycle defect {self.cycle_defect:.2g})"
        return f"Generator on {self.grid}, boundary {' × '.join(self.boundary)}: {kind}"


def assemble(process: AbstractDiffusion, grid: Grid, boundary: str | Sequence[str] = "no-flux") -> Generator:
    """The Fokker-Planck generator of `process` on the cells of `grid`, for diagonal D in one or two dimensions.

    `boundary` is one word for all axes or one per axis: "no-flux" (walls that reflect), "absorbing" (mass that
    reaches the face is gone) or "periodic" (the process must be periodic, too). The scheme is second order in the
    width of the cells. The stationary law of a reversible process is better: up to quadrature with an error of order 8
    its masses are those of the cells in one dimension, or if the law is a product; of order 4 otherwise. In cells
    across which the law changes by more than a factor e^4, and without detailed balance, masses are those of the
    density at the centre, second order.

    Processes are autonomous here: drift and noise are evaluated at t = 0.

    Raises `RuntimeError` if float64 is off, `ValueError` for arguments that do not fit together and for drift or noise
    that is not finite, `NotImplementedError` for diffusion that is degenerate or has off-diagonal entries, and for
    more than two axes.
    """
    return assemble_checked(process, grid, checked_boundary(process, grid, boundary), masses="cells")


def checked_boundary(
    process: Any, grid: Grid, boundary: str | Sequence[str], most_axes: int = 2
) -> tuple[Boundary, ...]:
    """`boundary`, one word an axis, after checks of all three arguments; computes nothing."""
    kinds = _per_axis(boundary, grid)
    if any(n < 2 for n in grid.shape):
        raise ValueError(f"`grid` must have at least two cells along each axis, got shape {grid.shape}.")
    check_process(process, grid, most_axes)
    return kinds


def check_generator(generator: Any) -> None:
    """`TypeError` for anything but what `assemble` returns."""
    if not isinstance(generator, Generator):
        raise TypeError(
            f"`generator` must come from `fokker_planck.assemble(process, grid)`, got {type(generator).__name__}."
        )


def coarsen(generator: Generator) -> Generator:
    """The generator of the same process with two cells made one along each axis, for error estimates.

    Edges that were resolved count as resolved again, though twice as long: both schemes are then the same but for the
    width of the cells, and their results can be extrapolated.
    """
    process, grid, boundary = generator.process, generator.grid.coarsen(), generator.boundary
    return assemble_checked(process, grid, boundary, 2 * generator.resolved, generator.masses)


def assemble_checked(
    process: AbstractDiffusion,
    grid: Grid,
    boundary: tuple[Boundary, ...],
    resolved: float = resolved_edge,
    masses: Masses = "points",
) -> Generator:
    """The generator in any number of dimensions, of arguments that `checked_boundary` let pass.

    The masses are those of the centres for functions, as mean exit times, which are values at the centres, too.
    """
    integrals, diffusion, log_means = half_edge_integrals(process, grid, resolved)
    if masses == "points":
        log_means = tuple(np.zeros(grid.shape) for _ in log_means)
    limit = edge_limit(process, grid, resolved)
    axes = [_axis_rates(grid, k, boundary[k], integrals[k], diffusion[k], log_means, limit) for k in range(grid.ndim)]
    up, down, log_ratios = zip(*axes, strict=True)
    log_weights, defect = _potential(log_ratios, grid.shape)
    if defect > _cycle_tolerance:
        if masses == "cells":
            return assemble_checked(process, grid, boundary, resolved)
        log_weights = None
    matrix = _matrix(up, down, boundary, grid.shape)
    return Generator(process, grid, boundary, matrix, up, down, log_ratios, log_weights, defect, resolved, masses)


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


def _axis_rates(
    grid: Grid,
    k: int,
    kind: Boundary,
    integrals: Float[np.ndarray, "2 ..."],
    diffusion: Float[np.ndarray, "..."],
    log_means: tuple[Float[np.ndarray, "..."], ...],
    resolved: Float[np.ndarray, "..."],
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    # Jump rates up and down through each face of axis k, and log(m_j / m_i) from each cell to the next.
    low, high = (np.moveaxis(half, k, -1) for half in integrals)
    d = np.moveaxis(diffusion, k, -1)
    e, c = grid.edges[k], grid.centres[k]
    width = np.diff(e)
    dist = np.append(np.diff(c), (e[-1] - c[-1]) + (c[0] - e[0]))
    after = np.roll(low, -1, axis=-1)
    d_after, width_after = np.roll(d, -1, axis=-1), np.roll(width, -1)
    log_a, log_a_after, log_face = face_means(log_means, k, np.abs(high) + np.abs(after) <= resolved)
    out, back = edge_weights(high, after, resolved)
    out, back = out * np.exp(log_face - log_a), back * np.exp(log_face - log_a_after)
    up, down = np.zeros((2, *d.shape[:-1], c.size + 1))
    up[..., 1:] = d * out / (width * dist)
    down[..., 1:] = d_after * back / (width_after * dist)
    log_ratios = high + after + np.log(d / d_after) + np.log(width_after / width) + log_a_after - log_a
    if kind != "periodic":
        log_ratios = log_ratios[..., :-1]
        up[..., -1] = down[..., -1] = 0.0
    if kind == "absorbing":
        # Half an edge, at whose end q = 0.
        down[..., :1] = d[..., :1] * bernoulli(low[..., :1]) / (width[0] * (c[0] - e[0]))
        up[..., -1:] = d[..., -1:] * bernoulli(-high[..., -1:]) / (width[-1] * (e[-1] - c[-1]))
    return np.moveaxis(up, -1, k), np.moveaxis(down, -1, k), np.moveaxis(log_ratios, -1, k)


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


def _matrix(
    up: tuple[Float[np.ndarray, "..."], ...],
    down: tuple[Float[np.ndarray, "..."], ...],
    boundary: tuple[Boundary, ...],
    shape: tuple[int, ...],
) -> scipy.sparse.csc_matrix:
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
    rows.append(cells.ravel())
    columns.append(cells.ravel())
    rates.append(-leaving.ravel())
    entries = (np.concatenate(rates), (np.concatenate(rows), np.concatenate(columns)))
    return scipy.sparse.csc_matrix(entries, shape=(cells.size, cells.size))
