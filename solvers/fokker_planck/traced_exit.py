r"""Mean exit times of a process that holds tracers, and their derivatives to any order.

On a line the elimination without subtraction is differentiated as it is: every step adds, multiplies and divides
positive numbers, so that derivatives of log T are as accurate as T itself, however rare exits are. In two and three
dimensions -L T = 1 is solved by elimination, and dT solves -L dT = (dL) T.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._tracing import Static
from ..grid import Grid
from ..process import AbstractDiffusion
from .elimination import m_matrix_lu
from .jumps import Jumps
from .killed_solver import check_resolved, rounding
from .line import Line, divided, line_nodes, romberg
from .pieces import Pieces, piece_points, pieces_at
from .process_values import at_points, drift_and_tensor
from .regions import Cuts, steps, wrapped
from .traced_generator import Boundary, Layout, TracedGenerator
from .traced_rates import point_rates, unusable
from .weights import resolved_edge


def traced_exit_time(
    process: AbstractDiffusion,
    grid: Grid,
    boundary: tuple[Boundary, ...],
    labels: Int[np.ndarray, "..."],
    cut: list[Cuts],
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """Mean, variance and error of the time in the cells with label 0; the error is nan but on a line."""
    if grid.ndim == 1:
        return _on_line(process, grid, boundary, labels, cut[0])
    return _in_space(process, grid, boundary, labels, cut)


def traced_continuation(values: Float[Array, "..."], cut: list[Cuts]) -> Float[Array, "..."]:
    """Values continued behind the boundary of the set, as for times of numbers."""
    end, start, fraction = (np.concatenate([getattr(c, name) for c in cut]) for name in ("end", "start", "fraction"))
    count = np.bincount(end, minlength=values.size)
    behind = jnp.zeros(values.size).at[end].add(-values.ravel()[start] * (1 - fraction) / fraction)
    return jnp.where(count > 0, behind / np.maximum(count, 1.0), values.ravel()).reshape(values.shape)


def _on_line(process, grid, boundary, labels, cut):
    place = line_nodes(grid, boundary, labels, cut)
    nodes = [divided(*place, parts) for parts in (1, 2, 4)]
    start, step = (np.concatenate([f(x) for x, _, _ in nodes])[:, None] for f in (lambda x: x[:-1], np.diff))
    points = wrapped(grid, boundary, piece_points(start, step))
    return _line_times(Static((nodes, step, labels)), *at_points(drift_and_tensor, process, points))


@functools.partial(jax.jit, static_argnums=0)
def _line_times(static: Static, drift: Float[Array, "n 1"], tensor: Float[Array, "n 1 1"]):
    nodes, step, labels = static.value
    pieces = pieces_at(step, *_checked(drift, tensor))
    ends = np.cumsum([len(x) - 1 for x, _, _ in nodes])[:-1]
    parts = zip(*(jnp.split(a, ends) for a in vars(pieces).values()), strict=True)
    chains = [Line(x, label, cell, Pieces(*part)) for (x, label, cell), part in zip(nodes, parts, strict=True)]
    # Squares of times may overflow: variances are in units of a longest time, whatever it is.
    first = _solved(chains[0], [jnp.ones(run.stop - run.start) for run in chains[0].components()])
    unit = jax.lax.stop_gradient(jnp.max(jnp.concatenate(first)))
    results = [_moments(chain, unit, len(labels)) for chain in chains]
    means, variances = (jnp.stack(a) for a in zip(*results, strict=True))
    variance = jnp.where(labels == 0, romberg(variances)[0], 0.0) * unit * unit
    rounding = len(labels) * np.finfo(np.float64).eps * means[-1]
    return means[-1], variance, jnp.abs(means[-1] - means[-2]) + rounding


def _moments(chain: Line, unit: Float[Array, ""], cells: int) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    # Means, and variances in squares of the unit, at the centres of cells.
    first = _solved(chain, [jnp.ones(run.stop - run.start) for run in chain.components()])
    second = _solved(chain, [2 * u / unit for u in first])
    mean, variance = jnp.zeros((2, cells))
    for run, one, two in zip(chain.components(), first, second, strict=True):
        cell = chain.cell[run]
        there = cell >= 0
        mean = mean.at[cell[there]].set(one[there])
        variance = variance.at[cell[there]].set((two / unit - (one / unit) ** 2)[there])
    return mean, variance


def _solved(chain: Line, sources: Sequence[Float[Array, " _"]]) -> list[Float[Array, " _"]]:
    return [_chain(*chain.rates(run), source) for run, source in zip(chain.components(), sources, strict=True)]


def _chain(up: Float[Array, " m"], down: Float[Array, " m"], source: Float[Array, " m"]) -> Float[Array, " m"]:
    # `line.solve_chain`, for which see there.
    first = down[0], source[0]
    _, rest = jax.lax.scan(_forth, first, (up[:-1], down[1:], source[1:]))
    stop, given = (jnp.concatenate([a[None], b]) for a, b in zip(first, rest, strict=True))
    return jax.lax.scan(_back, jnp.zeros(()), (stop, given, up), reverse=True)[1]


def _forth(carry, row):
    (stop, given), (up_below, down, source) = carry, row
    back = down / (stop + up_below)
    new = back * stop, source + back * given
    return new, new


def _back(above, row):
    stop, given, up = row
    u = (given + up * above) / (stop + up)
    return u, u


class _Killed(NamedTuple):
    """Rates at which each cell is left for its free neighbours along each axis, and for the set. Others have rate 1."""

    up: tuple[Float[Array, "..."], ...]
    down: tuple[Float[Array, "..."], ...]
    killed: Float[Array, "..."]


def _in_space(process, grid, boundary, labels, cut):
    layout = Layout(grid, boundary, resolved_edge)
    up, down = point_rates(TracedGenerator(process, layout))
    start = grid.points.reshape(-1, grid.ndim)[np.concatenate([c.start for c in cut])]
    whole = np.concatenate([steps(c, grid, k) for k, c in enumerate(cut)])
    piece = whole * np.concatenate([c.fraction for c in cut])[:, None]
    start, step = np.concatenate([start, start]), np.concatenate([whole, piece])
    if len(start):
        values = at_points(drift_and_tensor, process, wrapped(grid, boundary, piece_points(start, step)))
        shorter = _ratios(Static(step), *values)
    else:
        shorter = jnp.ones(0)
    stretch = [_stretch(grid, kind, k, c) for k, (kind, c) in enumerate(zip(boundary, cut, strict=True))]
    static = Static((labels == 0, stretch, [(c.start, c.sign) for c in cut]))
    return _space_times(layout, static, up, down, shorter)


@functools.partial(jax.jit, static_argnums=0)
def _ratios(static: Static, drift, tensor) -> Float[Array, " cuts"]:
    # The resistance of whole edges over that of their pieces.
    resistance = pieces_at(static.value, *_checked(drift, tensor)).log_resistance.reshape(2, -1)
    return jnp.exp(resistance[0] - resistance[1])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _space_times(layout: Layout, static: Static, up, down, shorter):
    free, stretch, cut = static.value
    edges = _killed(layout, free, stretch, cut, up, down, shorter)
    mean = _solve(edges, free, jnp.where(free, 1.0, 0.0))
    variance = _solve(edges, free, 2 * mean) - mean**2
    return mean, variance, jnp.where(free, jnp.nan, 0.0)


def _killed(layout: Layout, free: Bool[np.ndarray, "..."], stretch, cut, up, down, shorter) -> _Killed:
    ups, downs, killed = [], [], jnp.where(free, 0.0, 1.0)
    ends = np.cumsum([len(start) for start, _ in cut])[:-1]
    for k, kind in enumerate(layout.boundary):
        (start, sign), ratio = cut[k], jnp.split(shorter, ends)[k]
        # Face f lies between the cells f - 1 and f; the last one of a ring leads to cell 0.
        rise, fall = (jnp.moveaxis(a[k], k, 0) for a in (up, down))
        fall = jnp.concatenate([fall[-1:], fall[1:-1]]) if kind == "periodic" else fall[:-1]
        for rates, shift, side, of in ((ups, -1, 1, rise[1:]), (downs, 1, -1, fall)):
            there = sign == side
            # From each cell at most one edge of this axis and side is cut.
            rate = (jnp.moveaxis(of, 0, k) * stretch[k]).ravel()
            rate = rate.at[start[there]].multiply(ratio[there], unique_indices=True)
            rate = jnp.where(free, rate.reshape(free.shape), 0.0)
            inner = np.roll(free, shift, axis=k)
            if kind != "periodic":
                np.moveaxis(inner, k, 0)[-1 if shift < 0 else 0] = False
            rates.append(jnp.where(inner, rate, 0.0))
            killed = killed + jnp.where(inner, 0.0, rate)
    return _Killed(tuple(ups), tuple(downs), killed)


def _solve(edges: _Killed, free: Bool[np.ndarray, "..."], source: Float[Array, "..."]) -> Float[Array, "..."]:
    def operator(u):
        total = edges.killed * u
        for k, (up, down) in enumerate(zip(edges.up, edges.down, strict=True)):
            total = total + up * (u - jnp.roll(u, -1, axis=k)) + down * (u - jnp.roll(u, 1, axis=k))
        return total

    def solve(transposed):
        host = functools.partial(_host_solve, free.shape, transposed)
        return lambda _, b: jax.pure_callback(
            host, jax.ShapeDtypeStruct(b.shape, b.dtype), edges, b, vmap_method="sequential"
        )

    return jax.lax.custom_linear_solve(operator, source, solve(False), solve(True))


def _host_solve(shape: tuple[int, ...], transposed: bool, edges: Any, source: Any) -> Float[np.ndarray, "..."]:
    stacked = np.stack([np.asarray(a) for a in (*edges.up, *edges.down, edges.killed)])
    lu = _factors(shape, stacked.tobytes())
    return lu.solve(np.asarray(source).ravel(), trans="T" if transposed else "N").reshape(shape)


@functools.lru_cache(maxsize=1)
def _factors(shape: tuple[int, ...], rates: bytes):
    # Mean, variance and derivatives are asked for one after another, with the same rates.
    d = len(shape)
    stacked = np.frombuffer(rates).reshape(2 * d + 1, *shape)
    jumps = Jumps(tuple(stacked[:d]), tuple(stacked[d : 2 * d]), stacked[-1], np.zeros(shape))
    matrix = jumps.matrix().tocsc()
    lu = m_matrix_lu(matrix)
    check_resolved(lu.solve(rounding(matrix)))
    return lu


def _stretch(grid: Grid, kind: Boundary, k: int, cut: Cuts) -> Float[np.ndarray, "..."]:
    # The width of a cell over that of its pieces, which reach half way to the crossings.
    e, c = grid.edges[k], grid.centres[k]
    low, high = c - e[:-1], e[1:] - c
    if kind == "absorbing":
        low[0], high[-1] = 0.5 * low[0], 0.5 * high[-1]
    along = lambda a: np.broadcast_to(a.reshape(-1, *[1] * (grid.ndim - k - 1)), grid.shape).ravel()  # noqa: E731
    low, high, width = along(low).copy(), along(high).copy(), along(np.diff(e))
    half, above = 0.5 * cut.fraction * cut.dist, cut.sign > 0
    high[cut.start[above]], low[cut.start[~above]] = half[above], half[~above]
    return (width / (low + high)).reshape(grid.shape)


def _checked(drift, tensor):
    diffusion = jnp.diagonal(tensor, axis1=1, axis2=2)
    bad = ~jnp.all(jnp.isfinite(drift)) | ~jnp.all((diffusion > 0) & jnp.isfinite(diffusion))
    return eqx.error_if(drift, bad, unusable), diffusion
