r"""How long a process stays in a set: L T = -1 inside, T = 0 outside, with L the backward generator."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, Int

from .._tracing import Numbers, is_traced, namespace
from ..diagnosis import Diagnosis, accuracy, finite
from ..drawing import draw_field
from ..grid import Grid, evaluate, interpolated
from ..provenance import Provenance, made_by, recorded
from ..result import AbstractResult
from .assembly import Boundary, Generator, assemble_checked, checked_boundary, coarsen
from .killed import killed
from .killed_solver import Solver
from .line import Line, at_cells, lines, romberg, solve_chain
from .process_values import holds_tracers
from .regions import Cuts, Regions, members, wrapped
from .traced_exit import traced_continuation, traced_exit_time


class ExitTime(AbstractResult):
    """The time at which a process that starts in a cell's centre leaves a set, in units of the process's time.

    `values` is its mean and `variance` its variance, infinite above 1e308; both are 0 outside the set. The error of
    `values` is estimated by `error`, nan where it is not known.
    """

    grid: Grid
    values: Float[Numbers, "*shape"]
    variance: Float[Numbers, "*shape"]
    error: Float[Numbers, "*shape"]
    inside: Callable = eqx.field(static=True)
    boundary: tuple[Boundary, ...] = eqx.field(static=True)
    _beyond: Float[Numbers, "*shape"]
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def at(self, x) -> Float[Numbers, "..."]:
        """The mean exit time from the point x (d,) or points (n, d), or n > 1 numbers on one axis.

        Interpolated linearly between cell centres, and continued to zero at the boundary of the set: second order in
        the width of the cells, whatever the order of `values`. 0 outside the set.
        """
        x = jnp.asarray(x) if is_traced(x) else np.asarray(x, dtype=np.float64)
        if self.grid.ndim == 1 and (x.ndim == 0 or (x.ndim == 1 and x.size != 1)):
            x = x[..., None]
        if x.ndim not in (1, 2) or x.shape[-1] != self.grid.ndim:
            raise ValueError(f"`x` must have shape ({self.grid.ndim},) or (n, {self.grid.ndim}), got {x.shape}.")
        points = wrapped(self.grid, self.boundary, x.reshape(-1, self.grid.ndim))
        if not is_traced(x) and not all(
            np.all((e[0] <= p) & (p <= e[-1])) for e, p in zip(self.grid.edges, points.T, strict=True)
        ):
            raise ValueError(f"`x` must lie in the grid, {self.grid}.")
        centres, values = _padded(self.grid, self.boundary, self._beyond)
        found = interpolated(centres, values, points)
        xp, there = namespace(found), evaluate(self.inside, points)
        return namespace(found, there).where(there, xp.maximum(found, 0.0), 0.0).reshape(x.shape[:-1])

    def diagnose(self) -> Diagnosis:
        """Whether times are finite, and the longest known to 1 %."""
        worst = int(np.argmax(self.values))
        value, error = float(self.values.flat[worst]), float(self.error.flat[worst])
        return Diagnosis(
            (finite("times", self.values), accuracy("longest time", value, error, "Use cells half as wide"))
        )

    def plot(self, ax: Any = None) -> Any:
        """Draws the mean exit time over the grid on `ax`, or on new axes, which are returned."""
        return draw_field(self.grid, self.values, "mean exit time", ax)

    def __str__(self) -> str:
        if is_traced(self.values):
            return f"ExitTime on {self.grid}, with values that JAX traces"
        worst = int(np.argmax(self.values))
        return (
            f"ExitTime on {self.grid}: at most {self.values.flat[worst]:.6g} ± {self.error.flat[worst]:.2g} in "
            f"{int(np.sum(self.values > 0))} cells{made_by(self)}"
        )


@recorded("process")
def exit_time(process: Any, grid: Grid, inside: Callable, boundary: str | Sequence[str] = "no-flux") -> ExitTime:
    """Mean and variance of the time at which the process first leaves the set in which `inside(x)` is true.

    `inside` is a JAX function of one point (d,) with one boolean. `boundary` is that of the box, as for `assemble`;
    through an absorbing face the set is left, too. One to three dimensions.

    The boundary of the set lies where `inside` changes between two cell centres: it need not follow the grid, but sets
    thinner than a cell are not seen. In one dimension means are exact but for quadrature, of eighth order in the width
    of the cells, and have full relative accuracy up to 1e300, however rare exits are; the variance is extrapolated to
    sixth order. In two and three dimensions both are second order, and `error` compares with cells twice as wide; D may
    be any positive semidefinite tensor. With a full D, and constant D and drift zero, means that are quadratic in x are
    exact; where the set meets a no-flux wall, or drift has a direction without diffusion, errors are first order.

    If JAX traces the process (`jax.grad`, `jit`, `vmap`), all values have derivatives with respect to the numbers it
    holds, and `error` is known on a line only. The set must not depend on them.

        jax.grad(lambda a: fokker_planck.exit_time(model(a), grid, inside=inside).at(x0))(2.0)

    Raises `ValueError` if there are no cells in the set, or none outside it and no way out, and `ArithmeticError` if
    exits are too rare for float64, which in more than one dimension happens at about 1e12 jumps, or if a degenerate
    noise never leaves.
    """
    kinds = checked_boundary(process, grid, boundary, most_axes=3, tracers=True)
    regions = outside(grid, kinds, inside)
    cut = regions.axis_cuts()
    if holds_tracers(process, grid.ndim):
        values, variance, error = traced_exit_time(process, grid, kinds, regions.labels, cut)
        return ExitTime(grid, values, variance, error, inside, kinds, traced_continuation(values, cut))
    if grid.ndim == 1:
        values, variance, error = _on_line(process, grid, kinds, regions.labels, cut[0])
    else:
        generator = assemble_checked(process, grid, kinds)
        values, variance, noise = _in_space(generator, regions)
        error = _error(generator, inside, values) + noise
    beyond = _continued(values, cut)
    return ExitTime(grid, values, variance, error, inside, kinds, beyond)


def outside(grid: Grid, boundary: tuple[Boundary, ...], inside: Callable) -> Regions:
    """The cells in which `inside` is true, as free ones, and all others as set 1.

    `ValueError` for a set without cells, and for one that is the whole box and can't be left. From any other there is a
    way out: a box is connected.
    """
    labels = (~members("inside", inside, grid)).astype(int)
    if np.all(labels > 0):
        raise ValueError(
            f"`inside` must hold at some cell centre, but holds at none of {grid}. Is its sign wrong, or the set "
            "smaller than a cell?"
        )
    if np.all(labels == 0) and "absorbing" not in boundary:
        raise ValueError(
            f"`inside` must be false somewhere, but holds at all cell centres of {grid}, whose faces let nothing "
            "through: the set is never left. Make the box larger than the set, or faces absorbing."
        )
    return Regions(grid, boundary, labels, (lambda x: ~inside(x),))


def _on_line(process, grid, kinds, labels, cut):
    chains = lines(process, grid, kinds, labels, cut)
    means, variances = np.zeros((2, len(chains), grid.size))
    # Squares of times may overflow: variances are in units of a longest time.
    unit = max(float(np.max(_mean(chains[0], run))) for run in chains[0].components())
    for mean, variance, chain in zip(means, variances, chains, strict=True):
        for run in chain.components():
            first = _mean(chain, run)
            second = solve_chain(*chain.rates(run), 2 * first / unit)
            at_cells(chain, run, first, mean)
            at_cells(chain, run, second / unit - (first / unit) ** 2, variance)
    with np.errstate(over="ignore"):
        variance = np.where(labels == 0, romberg(variances)[0], 0.0) * unit * unit
    rounding = grid.size * np.finfo(np.float64).eps * means[-1]
    return means[-1], variance, np.abs(means[-1] - means[-2]) + rounding


def _mean(chain: Line, run: slice) -> Float[np.ndarray, " m"]:
    up, down = chain.rates(run)
    return solve_chain(up, down, np.ones_like(up))


def _in_space(
    generator: Generator, regions: Regions
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    edges = killed(generator, regions)
    solver = Solver(generator, edges, stretched=True)
    first = solver.solve(np.ones(len(edges.free)))
    noise = solver.noise(first)
    second = solver.solve(2 * first)
    result = np.zeros((3, generator.grid.size))
    result[:, edges.free] = first, second - first**2, noise
    return tuple(result.reshape(3, *generator.grid.shape))  # pyright: ignore[reportReturnType]


def _error(generator: Generator, inside: Callable, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    # A third of the change from cells twice as wide.
    found = on_wide_cells(generator, inside, lambda *args: _in_space(*args)[0])
    if found is None:
        return np.where(values > 0, np.nan, 0.0)
    coarse, labels = found
    return coarse_difference(values, values > 0, coarse, labels == 0) / 3


def on_wide_cells(generator: Generator, inside: Callable, solve: Callable) -> tuple[Any, Int[np.ndarray, "..."]] | None:
    """What `solve(generator, regions)` gives on cells twice as wide, and their labels.

    None if the grid has no such cells, or the set is too small for them.
    """
    if any(n % 2 or n < 4 for n in generator.grid.shape):
        return None
    try:
        wide = coarsen(generator)
        regions = outside(wide.grid, wide.boundary, inside)
        return solve(wide, regions), regions.labels
    except (ValueError, ArithmeticError):
        return None


def coarse_difference(
    fine: Float[np.ndarray, "..."],
    free: Bool[np.ndarray, "..."],
    coarse: Float[np.ndarray, "..."],
    coarse_free: Bool[np.ndarray, "..."],
) -> Float[np.ndarray, "..."]:
    """How far the values on two grids are apart, on the fine one; nan if they can't be compared anywhere.

    Fine values are interpolated to the coarse centres, from four points along each axis. Where these are not all free,
    the difference in the nearest cell is taken.
    """
    value, known = fine, free
    for k in range(fine.ndim):
        value, known = _between(value, known, k)
    known = known & coarse_free
    if not np.any(known):
        return np.where(free, np.nan, 0.0)
    nearest: Any = scipy.ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    apart = np.abs(value - coarse)[tuple(nearest)]
    for k in range(fine.ndim):
        apart = np.repeat(apart, 2, axis=k)
    return np.where(free, apart, 0.0)


def _between(value, known, k):
    # Half way between the cells of each pair along axis k, and where four cells allow cubic interpolation.
    v, there = np.moveaxis(value, k, 0), np.moveaxis(known, k, 0)
    result, wide = 0.5 * (v[::2] + v[1::2]), np.zeros_like(there[::2])
    result[1:-1] = (9 * (v[2:-2:2] + v[3:-2:2]) - v[1:-3:2] - v[4::2]) / 16
    wide[1:-1] = there[2:-2:2] & there[3:-2:2] & there[1:-3:2] & there[4::2]
    return np.moveaxis(result, 0, k), np.moveaxis(wide, 0, k)


def _continued(values: Float[np.ndarray, "..."], cut: list[Cuts]) -> Float[np.ndarray, "..."]:
    # Behind the boundary, the mean of the straight lines through the free neighbours and their crossings.
    total, count = np.zeros(values.size), np.zeros(values.size)
    for c in cut:
        np.add.at(total, c.end, -values.ravel()[c.start] * (1 - c.fraction) / c.fraction)
        np.add.at(count, c.end, 1.0)
    return np.where(count > 0, total / np.maximum(count, 1), values.ravel()).reshape(values.shape)


def _padded(grid: Grid, boundary: tuple[Boundary, ...], values: Float[Numbers, "..."]):
    # One more layer at each end: the same value at a wall, none at an absorbing face, the other end around a ring.
    centres = []
    for k, kind in enumerate(boundary):
        e, c = grid.edges[k], grid.centres[k]
        xp, v = namespace(values), namespace(values).moveaxis(values, k, 0)
        if kind == "periodic":
            c = np.concatenate([[c[-1] - e[-1] + e[0]], c, [c[0] - e[0] + e[-1]]])
            v = xp.concatenate([v[-1:], v, v[:1]])
        else:
            c = np.concatenate([e[:1], c, e[-1:]])
            sign = 0.0 if kind == "absorbing" else 1.0
            v = xp.concatenate([sign * v[:1], v, sign * v[-1:]])
        centres.append(c)
        values = xp.moveaxis(v, 0, k)
    return centres, values
