"""The rectangular grids on which densities live."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from ._tracing import Numbers, is_traced, namespace, traceable

# Points in one vectorised call of a user's function: large enough to be fast, small enough to stay in memory.
_points_per_call = 1 << 18


class Grid(eqx.Module):
    """A rectangular grid of cells in R^d: `shape[k]` cells along axis k.

    `edges[k]` holds the `shape[k] + 1` cell boundaries and `centres[k]` the points at which a density is
    represented. On a stretched grid the centre is the image of the middle of the cell, not the middle of its edges:
    that keeps finite volumes second order.
    """

    edges: tuple[Float[np.ndarray, " ..."], ...]
    centres: tuple[Float[np.ndarray, " ..."], ...]

    def __init__(self, edges: Sequence, centres: Sequence | None = None):
        """From the edges of each axis, and the centres if they are not halfway between the edges."""
        self.edges = tuple(np.asarray(e, dtype=np.float64) for e in edges)
        if not self.edges:
            raise ValueError("`edges` must hold one array per axis, but it is empty.")
        for k, e in enumerate(self.edges):
            if e.ndim != 1 or e.size < 2 or not np.all(np.isfinite(e)) or not np.all(np.diff(e) > 0):
                raise ValueError(
                    f"`edges` of axis {k} must be at least two finite, strictly increasing numbers, got {e!r}."
                )
        if centres is None:
            centres = [0.5 * (e[1:] + e[:-1]) for e in self.edges]
        self.centres = tuple(np.asarray(c, dtype=np.float64) for c in centres)
        if len(self.centres) != len(self.edges):
            raise ValueError(
                f"`centres` must hold one array per axis, but there are {len(self.centres)} for {len(self.edges)} axes."
            )
        for k, (e, c) in enumerate(zip(self.edges, self.centres, strict=True)):
            if c.shape != (e.size - 1,) or not np.all((e[:-1] < c) & (c < e[1:])):
                raise ValueError(f"`centres` of axis {k} must lie one in each cell, got {c!r}.")

    @staticmethod
    def uniform(*axes: tuple[float, float, int]) -> "Grid":
        """Equal cells: one `(low, high, cells)` per axis, as in `Grid.uniform((-3, 3, 400), (0, 1, 100))`."""
        edges = []
        for k, axis in enumerate(axes):
            if np.shape(axis) != (3,):
                raise ValueError(f"Axis {k} of `Grid.uniform` must be (low, high, cells), got {axis!r}.")
            low, high, cells = float(axis[0]), float(axis[1]), _cells(k, axis[2])
            if not -np.inf < low < high < np.inf:
                raise ValueError(f"Axis {k} of `Grid.uniform` must have low < high, got low={low}, high={high}.")
            edges.append(np.linspace(low, high, cells + 1))
        return Grid(edges)

    @staticmethod
    def stretched(*axes: tuple[float, int, float]) -> "Grid":
        """Cells that grow with |x|, for heavy tails: one `(reach, cells, scale)` per axis.

        x = scale · sinh(s) with s uniform, from -reach to +reach. Within |x| < scale the cells are nearly equal;
        beyond, their width is proportional to |x|, so 400 cells span a reach of 10^6.
        """
        edges, centres = [], []
        for k, axis in enumerate(axes):
            if np.shape(axis) != (3,):
                raise ValueError(f"Axis {k} of `Grid.stretched` must be (reach, cells, scale), got {axis!r}.")
            reach, cells, scale = float(axis[0]), _cells(k, axis[1]), float(axis[2])
            if not 0 < scale < np.inf or not 0 < reach < np.inf:
                raise ValueError(
                    f"Axis {k} of `Grid.stretched` must have a positive reach and scale, got reach={reach}, "
                    f"scale={scale}."
                )
            s_max = np.arcsinh(reach / scale)
            # Whole numbers over `cells`: the grid is symmetric to the last bit, and edges interleave with centres.
            s = s_max * np.arange(-cells, cells + 1) / cells
            x = scale * np.sinh(s)
            edges.append(x[::2])
            centres.append(x[1::2])
        return Grid(edges, centres)

    @staticmethod
    def heavy_tailed(*axes: tuple[float, int, float], outside: float = 1e-12) -> "Grid":
        """A stretched grid for laws with power tails: one `(index, cells, scale)` per axis.

        If the mass beyond a distance R falls as (R / scale)^(-index), it leaves out about `outside`: it reaches to
        scale · outside^(-1 / index). The index of a process is `fokker_planck.tail_index`.
        """
        if not 0 < outside < 1:
            raise ValueError(f"`outside` must be a mass between 0 and 1, got {outside!r}.")
        return Grid.stretched(*((_reach(k, axis, outside), *axis[1:]) for k, axis in enumerate(axes)))

    @staticmethod
    def half_line(reach: float, cells: int, scale: float) -> "Grid":
        """From 0 to `reach`, for distances from a point: the upper half of a stretched grid, x = scale · sinh(s)."""
        cells = _cells(0, cells)
        both = Grid.stretched((reach, 2 * cells, scale))
        return Grid([both.edges[0][cells:]], [both.centres[0][cells:]])

    @property
    def ndim(self) -> int:
        """The number of axes d."""
        return len(self.edges)

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of cells along each axis."""
        return tuple(c.size for c in self.centres)

    @property
    def size(self) -> int:
        """The number of cells."""
        return int(np.prod(self.shape))

    @property
    def volumes(self) -> Float[np.ndarray, "*shape"]:
        """The volume of each cell."""
        volumes = np.ones(())
        for e in self.edges:
            volumes = np.multiply.outer(volumes, np.diff(e))
        return volumes

    @property
    def points(self) -> Float[np.ndarray, "*shape d"]:
        """The centre of each cell."""
        return np.stack(np.meshgrid(*self.centres, indexing="ij"), axis=-1)

    def axis(self, k: int) -> "Grid":
        """The one-dimensional grid of axis k."""
        if not -self.ndim <= k < self.ndim:
            raise ValueError(f"`axis` must be below the number of axes, {self.ndim}, but got {k}.")
        return Grid((self.edges[k],), (self.centres[k],))

    def coarsen(self) -> "Grid":
        """The grid with two cells made one along each axis; every axis must have an even number of cells."""
        if any(n % 2 for n in self.shape):
            raise ValueError(f"Only axes with an even number of cells can be coarsened, got shape {self.shape}.")
        return Grid([e[::2] for e in self.edges], [e[1::2] for e in self.edges])

    def cell_averages(self, fn: Callable, nodes: int = 3) -> Float[np.ndarray, "*shape"]:
        """The average of the JAX function `fn` of one point (d,) over each cell, by Gauss-Legendre quadrature.

        Exact for polynomials of degree 2·`nodes` - 1 along each axis.
        """
        value = jax.eval_shape(fn, jax.ShapeDtypeStruct((self.ndim,), jax.numpy.result_type(float)))
        if getattr(value, "shape", None) != ():
            raise ValueError(f"The function must return one number for a point of shape ({self.ndim},), got {value}.")
        batched = jax.jit(jax.vmap(fn))
        x, w = np.polynomial.legendre.leggauss(nodes)
        x, w = 0.5 * (1 + x), 0.5 * w
        along = [e[:-1, None] + np.diff(e)[:, None] * x for e in self.edges]
        total = np.zeros(self.shape)
        for index in np.ndindex(*[nodes] * self.ndim):
            points = np.stack(np.meshgrid(*[a[:, i] for a, i in zip(along, index, strict=True)], indexing="ij"), -1)
            weight = np.prod([w[i] for i in index])
            total += weight * evaluate_batched(batched, points.reshape(-1, self.ndim)).reshape(self.shape)
        return total

    def __str__(self) -> str:
        spans = " × ".join(
            f"[{e[0]:.6g}, {e[-1]:.6g}] in {n} cells" for e, n in zip(self.edges, self.shape, strict=True)
        )
        return f"Grid {spans}"


def interpolated(
    centres: Sequence[Float[np.ndarray, " _"]], values: Float[Numbers, "..."], points: Float[Numbers, "n d"]
) -> Float[Numbers, " n"]:
    """Values at grid points, interpolated linearly along each axis and constant beyond the ends."""
    xp = namespace(points)
    below, above, share = [], [], []
    for k, c in enumerate(centres):
        i = xp.clip(xp.searchsorted(c, points[:, k], side="right") - 1, 0, c.size - 1)
        j = xp.minimum(i + 1, c.size - 1)
        length = xp.where(j > i, xp.asarray(c)[j] - xp.asarray(c)[i], 1.0)
        below.append(i)
        above.append(j)
        share.append(xp.clip((points[:, k] - xp.asarray(c)[i]) / length, 0.0, 1.0))
    total = 0.0
    for corner in itertools.product((False, True), repeat=len(centres)):
        index = tuple(j if up else i for up, i, j in zip(corner, below, above, strict=True))
        weight = math.prod(s if up else 1 - s for up, s in zip(corner, share, strict=True))
        total = total + weight * namespace(values, points).asarray(values)[index]
    return total


def evaluate(fn: Callable, points: Float[Numbers, "n d"]) -> Any:
    """`fn` of one point (d,) at each of the points, vectorised and compiled, in slices of bounded memory.

    A NumPy array, or one of JAX if `fn` closes over a tracer or this is called inside `jit`.
    """
    return evaluate_batched(jax.jit(jax.vmap(fn)), points)


def evaluate_batched(batched: Callable, points: Float[Numbers, "n d"]) -> Any:
    """A function of points (n, d), compiled already, in slices of bounded memory."""
    slices = [points[i : i + _points_per_call] for i in range(0, len(points), _points_per_call)]
    with traceable("A function of one point x"):
        parts = [batched(jax.numpy.asarray(s)) for s in slices]
    return jax.numpy.concatenate(parts) if is_traced(parts) else np.concatenate([np.asarray(p) for p in parts])


def _reach(k: int, axis, outside: float) -> float:
    if np.shape(axis) != (3,):
        raise ValueError(f"Axis {k} of `Grid.heavy_tailed` must be (index, cells, scale), got {axis!r}.")
    index, scale = float(axis[0]), float(axis[2])
    if not 0 < index < np.inf or not 0 < scale < np.inf:
        raise ValueError(
            f"Axis {k} of `Grid.heavy_tailed` must have a positive, finite index and scale, got index={index}, "
            f"scale={scale}. Lighter tails than a power (index inf) need no stretching: use `Grid.uniform`. With an "
            "index of 0 or less there is no stationary law."
        )
    log_reach = np.log(scale) - np.log(outside) / index
    if log_reach > np.log(_largest_reach):
        raise ValueError(
            f"Axis {k} would have to reach beyond {_largest_reach:.0e} to leave out only outside={outside:.3g} of the "
            f"mass at tail index {index:.3g}. Leave out more: raise `outside`."
        )
    return float(np.exp(log_reach))


# Fourth powers of distances are finite up to here.
_largest_reach = 1e75


def _cells(k: int, cells) -> int:
    if not np.isfinite(cells) or int(cells) != cells or cells < 1:
        raise ValueError(f"Axis {k} must have a whole, positive number of cells, got {cells!r}.")
    return int(cells)
