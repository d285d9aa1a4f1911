"""Drift and diffusion of a process at many points, checked: finite, and where needed with a diagonal tensor."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from .._tracing import Numbers, namespace
from ..grid import Grid
from ..process import AbstractDiffusion, noise_structure
from .cell_means import log_axis_means
from .process_values import at_points, drift_and_tensor, holds_tracers

# Off-diagonal diffusion counts as zero below this fraction of sqrt(D_ii D_jj): rounding of G Gᵀ.
_diagonal_tolerance = 1e-12

# Gauss-Legendre nodes for the integral of b / D over half a cell.
_nodes = 4

# Beyond so many points values are found axis by axis: they fill the memory before the generator does.
_points_at_once = 1 << 21

# Central differences of D, in cells: their error is about 1e-10 of D, between truncation and rounding.
_difference_step = 1e-5


def check_process(process: AbstractDiffusion, grid: Grid, most_axes: int = 3, tracers: bool = False) -> None:
    """Raise if the process can't be evaluated at the points of the grid in float64; computes nothing."""
    if jnp.zeros(()).dtype != jnp.float64:
        raise RuntimeError(
            "The Fokker-Planck solver needs float64, which is off in JAX. Add at the top of your program: "
            'jax.config.update("jax_enable_x64", True)'
        )
    if grid.ndim > most_axes:
        raise NotImplementedError(
            f"`grid` has {grid.ndim} axes; the Fokker-Planck solver handles 1 to {most_axes}. In more dimensions "
            "simulate particles with `solvers.sde.simulate`, or reduce the process to a radial or marginal one."
        )
    try:
        noise_structure(process, jnp.zeros(grid.ndim))
    except Exception as error:
        raise ValueError(
            f"`process` can't be evaluated at a point of `grid`, which has {grid.ndim} "
            f"{'axis' if grid.ndim == 1 else 'axes'} (x has shape ({grid.ndim},)): {error} "
            "The grid must have one axis for each coordinate of the process."
        ) from error
    if not holds_tracers(process, grid.ndim):
        _check_autonomous(process, grid)
    elif not tracers:
        raise NotImplementedError(
            "`process` holds numbers that JAX traces (`jax.grad`, `jit` or `vmap`). With such a process "
            "`fokker_planck.assemble`, and then `stationary` and `spectrum`, and `exit_time` can be called; for all "
            "else give it numbers, and take differences of the results."
        )


def _check_autonomous(process: AbstractDiffusion, grid: Grid) -> None:
    """Drift and noise must be the same at other times, at some points of the grid."""
    points = np.stack([c[np.linspace(0, c.size - 1, _probed_points).astype(int)] for c in grid.centres], axis=1)
    values = at_points(_at_times, process, points)
    # NaN differs from itself; it is reported later, with its place.
    differ = (values != values[:, :1]) & ~np.isnan(values)
    if np.any(differ):
        x = points[np.argwhere(differ)[0][0]]
        raise ValueError(
            f"`process` depends on time: its drift or noise at x={x} is not the same at t = 0 and later. The "
            "Fokker-Planck solver needs coefficients that depend on x alone; fix t in them, or simulate particles."
        )


def _at_times(process, x):
    def value(t):
        t = jnp.asarray(t, x.dtype)
        return jnp.concatenate([process.drift(t, x), process.diffusion(t, x).ravel()])

    return jnp.stack([value(t) for t in _probed_times])


# Where and when drift and noise are compared with those at time 0.
_probed_points, _probed_times = 9, (0.0, 0.37, 1.0, 20.0)


def coefficients(
    process: AbstractDiffusion, points: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    """The drift b and the diagonal of D at the points, at t = 0. Raises where they are of no use, and says where."""
    drift, tensor = drift_and_tensors(process, points)
    diagonal = np.diagonal(tensor, axis1=1, axis2=2)
    _check_not_degenerate(diagonal, points)
    _check_diagonal(tensor, diagonal, points)
    return drift, diagonal


def drift_and_tensors(
    process: AbstractDiffusion, points: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d d"]]:
    """The drift b and the tensor D at the points, at t = 0, both finite."""
    drift, tensor = at_points(drift_and_tensor, process, points)
    check_finite("drift", drift, points)
    check_finite("noise", tensor, points)
    return drift, tensor


def diffusion_tensors(process: AbstractDiffusion, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d d"]:
    """The tensor D at the points, at t = 0, finite."""
    tensor = at_points(_tensor, process, points)
    check_finite("noise", tensor, points)
    return tensor


def _tensor(process, x):
    return process.diffusion(jnp.zeros((), x.dtype), x)


def central_divergences(
    process: AbstractDiffusion, points: Float[np.ndarray, "n d"], sizes: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n d"]:
    """∂_j D_ij at the points by central differences over a part of the lengths `sizes`.

    For where D has a derivative, but G has none: the square root of a loss at its zero.
    """
    total, h = np.zeros_like(points), _difference_step * sizes
    for j in range(points.shape[1]):
        step = np.zeros_like(points)
        step[:, j] = h[:, j]
        difference = diffusion_tensors(process, points + step) - diffusion_tensors(process, points - step)
        total += difference[:, :, j] / (2 * h[:, j : j + 1])
    return total


def half_edge_integrals(
    process: AbstractDiffusion, grid: Grid, resolved: float
) -> tuple[tuple[Float[np.ndarray, "..."], ...], Float[np.ndarray, "..."], tuple[Float[np.ndarray, "..."], ...]] | None:
    """The integrals of b_k / D_kk from low face to centre and centre to high face, D_kk at the centres, and log a_k.

    One array of shape (2, *shape) for each axis k, one of shape (d, *shape), and one of shape `shape` for each axis
    with the means of `cell_means`, on edges that count as resolved up to the limit `resolved`. The part power / x of
    b / D in a process with a `surface_power` is integrated in closed form. None if D is not diagonal or not positive
    everywhere, unless there is one axis only: then a zero of D raises.
    """
    power = getattr(process, "surface_power", 0)
    if (1 + 2 * _nodes * grid.ndim) * grid.size <= _points_at_once:
        found = _if_diagonal(process, half_edge_points(grid))
        return None if found is None else integrals_at(grid, *by_axis(grid, *found), resolved, power)
    found = _if_diagonal(process, grid.points.reshape(-1, grid.ndim))
    if found is None:
        return None
    centre, along = found[1], []
    for k in range(grid.ndim):
        found = _if_diagonal(process, _line_points(grid, k))
        if found is None:
            return None
        # Copies, so that the values along the other axes are forgotten.
        along.append((found[0][:, k].copy(), found[1][:, k].copy()))
    return integrals_at(grid, centre, along, resolved, power)


def _if_diagonal(
    process: AbstractDiffusion, points: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]] | None:
    """The drift and the diagonal of D, both finite; None if D is not diagonal or not positive, if d > 1."""
    drift, diagonal, excess = at_points(_drift_and_diagonal, process, points)
    check_finite("drift", drift, points)
    check_finite("noise", np.column_stack([diagonal, excess]), points)
    if points.shape[1] == 1:
        _check_not_degenerate(diagonal, points)
    elif not np.all(diagonal > 0) or np.any(excess > 0):
        return None
    return drift, diagonal


def _drift_and_diagonal(process, x):
    # The last value is positive if D couples two coordinates.
    drift, tensor = drift_and_tensor(process, x)
    diagonal = jnp.diagonal(tensor)
    scale = jnp.sqrt(jnp.maximum(diagonal[:, None] * diagonal, 0.0))
    beyond = jnp.abs(tensor) - _diagonal_tolerance * scale
    apart = ~np.eye(x.size, dtype=bool)
    return drift, diagonal, jnp.max(beyond, where=apart, initial=0.0)


def half_edge_points(grid: Grid) -> Float[np.ndarray, "n d"]:
    """The centres of the cells, and the nodes of the integrals over half edges, one axis after another."""
    return np.concatenate([grid.points.reshape(-1, grid.ndim)] + [_line_points(grid, k) for k in range(grid.ndim)])


def by_axis(
    grid: Grid, drift: Float[Numbers, "n d"], diffusion: Float[Numbers, "n d"]
) -> tuple[Float[Numbers, "m d"], list[tuple[Float[Numbers, " r"], Float[Numbers, " r"]]]]:
    """Of b and the diagonal of D at the `half_edge_points`: D at the centres, and b_k and D_kk along each axis k."""
    ends = grid.size * np.cumsum([1] + [2 * _nodes] * grid.ndim)
    lines = [slice(ends[k], ends[k + 1]) for k in range(grid.ndim)]
    return diffusion[: ends[0]], [(drift[line, k], diffusion[line, k]) for k, line in enumerate(lines)]


def integrals_at(
    grid: Grid,
    centre: Float[Numbers, "m d"],
    along: list[tuple[Float[Numbers, " r"], Float[Numbers, " r"]]],
    resolved: float,
    power: float = 0,
) -> tuple[tuple[Float[Numbers, "..."], ...], Float[Numbers, "..."], tuple[Float[Numbers, "..."], ...]]:
    """`half_edge_integrals` from the values of `by_axis`."""
    xp = namespace(centre, *along[0])
    weights = [_half_edge_nodes(grid, k)[1] for k in range(grid.ndim)]
    centre = centre.T.reshape(grid.ndim, *grid.shape)
    integrals, log_means = [], []
    for k in range(grid.ndim):
        shape = (*grid.shape[:k], grid.shape[k], 2, _nodes, *grid.shape[k + 1 :])
        across = along[k][1].reshape(shape)
        omega = along[k][0].reshape(shape) / across
        weight = weights[k].reshape(*weights[k].shape, *[1] * (grid.ndim - k - 1))
        slope, known, halves = _known_part(power, grid, k)
        omega = omega - slope
        integrals.append(halves + xp.moveaxis((omega * weight).sum(k + 2), k + 1, 0))
        log_means.append(log_axis_means(omega, across, centre[k], weights[k].sum(axis=-1), k, resolved, known))
    return tuple(integrals), centre, tuple(log_means)


# Rates grow as the exponential of what is known. Edges along which it is more than this lie so near 0, in so many
# dimensions, that less than e^(-30) of the mass is ever there; rates of 2^1000 would leave the others no digits.
_most_known = 30.0


def edge_limit(process: AbstractDiffusion | None, grid: Grid, resolved: float) -> Float[np.ndarray, "..."]:
    """Up to which change of Φ an edge counts as resolved: `resolved`, beyond the part that is known in closed form."""
    power = getattr(process, "surface_power", 0)
    if not power:
        return np.array(resolved)
    return resolved + np.append(np.minimum(power * np.diff(np.log(grid.centres[0])), _most_known), 0.0)


def _known_part(power: float, grid: Grid, k: int) -> tuple[Any, Any, Any]:
    # power / x at the nodes of the halves, its integrals from the centre to there, and over the halves.
    if not power:
        return 0.0, 0.0, 0.0
    x, c, e = _half_edge_nodes(grid, k)[0], grid.centres[k], grid.edges[k]
    # The integral over the low half of a cell at 0 diverges, but no mass goes there.
    low = np.append(x[0, 0, 0] if e[0] == 0 else e[0], e[1:-1])
    return power / x, power * np.log(x / c[:, None, None]), power * np.log([c / low, e[1:] / c])


def _half_edge_nodes(grid: Grid, k: int) -> tuple[Float[np.ndarray, "n 2 q"], Float[np.ndarray, "n 2 q"]]:
    # Nodes and weights on the two halves of every cell of axis k, apart at the centre.
    xi, w = np.polynomial.legendre.leggauss(_nodes)
    low = np.stack([grid.edges[k][:-1], grid.centres[k]], axis=-1)[..., None]
    length = np.stack([grid.centres[k] - grid.edges[k][:-1], grid.edges[k][1:] - grid.centres[k]], axis=-1)[..., None]
    return low + length * 0.5 * (1 + xi), length * 0.5 * w


def _line_points(grid: Grid, k: int) -> Float[np.ndarray, "n d"]:
    along = list(grid.centres)
    along[k] = _half_edge_nodes(grid, k)[0].ravel()
    return np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, grid.ndim)


def check_finite(name: str, values: Float[np.ndarray, "n ..."], points: Float[np.ndarray, "n d"]) -> None:
    """Raise with the first point at which drift or noise is not finite."""
    bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if np.any(bad):
        hint = (
            " A common cause is the square root of a negative variance, such as a negative loss under "
            "loss-proportional noise: add a constant to the loss."
            if name == "noise"
            else ""
        )
        raise ValueError(
            f"`{name}(t, x)` is not finite at {bad.sum()} of {bad.size} points, the first being "
            f"x={show(points[bad][0])}.{hint}"
        )


def _check_not_degenerate(diagonal: Float[np.ndarray, "n d"], points: Float[np.ndarray, "n d"]) -> None:
    bad = ~(diagonal > 0).all(axis=1)
    if np.any(bad):
        raise NotImplementedError(
            f"The diffusion of coordinate {int(np.argmin(diagonal[bad][0] > 0))} is zero at {bad.sum()} of {bad.size} "
            f"points, the first being x={show(points[bad][0])}; degenerate diffusion is implemented only for "
            "`assemble` on two and three axes. Add a constant to the noise (for loss-proportional noise, to the loss), "
            "or simulate particles with `solvers.sde.simulate`."
        )


def _check_diagonal(
    tensor: Float[np.ndarray, "n d d"], diagonal: Float[np.ndarray, "n d"], points: Float[np.ndarray, "n d"]
) -> None:
    off = off_diagonal(tensor, diagonal)
    if np.any(off):
        n, i, j = np.argwhere(off)[0]
        raise NotImplementedError(
            f"Full-tensor diffusion is implemented for `assemble` and what takes its generator, not for exit times, "
            f"quasi-stationary laws and committors, and D_{i}{j} = {tensor[n, i, j]:.6g} at x={show(points[n])}, where "
            f"D_{i}{i} = {tensor[n, i, i]:.6g} and D_{j}{j} = {tensor[n, j, j]:.6g}. Choose coordinates in which D is "
            "diagonal (for a constant D, its eigenvectors), or simulate particles with `solvers.sde.simulate`."
        )


def off_diagonal(tensor: Float[Numbers, "n d d"], diagonal: Float[Numbers, "n d"]) -> Bool[Numbers, "n d d"]:
    """Which entries of D couple two coordinates."""
    xp = namespace(tensor)
    scale = xp.sqrt(diagonal[:, :, None] * diagonal[:, None, :])
    return (xp.abs(tensor) > _diagonal_tolerance * scale) & ~np.eye(diagonal.shape[1], dtype=bool)


def show(x: Float[np.ndarray, " d"]) -> str:
    """A point in an error message."""
    return "(" + ", ".join(f"{c:.6g}" for c in x) + ")"
