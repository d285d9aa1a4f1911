"""Sets of cells given by boolean functions of a point, and where their boundaries cross the edges of the grid.

A cell belongs to a set if its centre does. Along an edge from a free cell the first crossing is found by bisection of
the user's function, so that a boundary need not follow the grid.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from .._tracing import Numbers, is_traced, namespace, traceable
from ..grid import Grid, evaluate, evaluate_batched
from .assembly import Boundary

# Halvings of an edge: to the last bit of its length.
_halvings = 55

# Crossings keep this distance from a free centre, as a fraction of the edge: the rate there is large enough.
nearest = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """The pairs of neighbours along one axis: cells `below` and `above` (flat indices), `dist` apart across `face`."""

    below: Int[np.ndarray, " pairs"]
    above: Int[np.ndarray, " pairs"]
    face: Int[np.ndarray, " pairs"]
    dist: Float[np.ndarray, " pairs"]


@dataclasses.dataclass(frozen=True, eq=False)
class Cuts:
    """Edges of one axis from a free cell `start` to a cell `end` in the set `label`, crossed at `fraction` of `dist`.

    `sign` is 1 where `end` is above `start`, and -1 below; those above come first, in C order.
    """

    start: Int[np.ndarray, " cuts"]
    end: Int[np.ndarray, " cuts"]
    label: Int[np.ndarray, " cuts"]
    sign: Int[np.ndarray, " cuts"]
    dist: Float[np.ndarray, " cuts"]
    fraction: Float[np.ndarray, " cuts"]


@dataclasses.dataclass(frozen=True, eq=False)
class Regions:
    """Cells of a grid sorted into sets: label 0 is free, and label l > 0 is where `sets[l - 1]` holds."""

    grid: Grid
    boundary: tuple[Boundary, ...]
    labels: Int[np.ndarray, "..."]
    sets: tuple[Callable, ...]

    def axis_cuts(self) -> list[Cuts]:
        """The cut edges of each axis, between neighbours."""
        grid, flat = self.grid, self.labels.ravel()
        found = []
        for k, kind in enumerate(self.boundary):
            pairs = neighbours(grid, kind, k)
            up = (flat[pairs.below] == 0) & (flat[pairs.above] > 0)
            down = (flat[pairs.below] > 0) & (flat[pairs.above] == 0)
            start = np.concatenate([pairs.below[up], pairs.above[down]])
            end = np.concatenate([pairs.above[up], pairs.below[down]])
            sign = np.repeat([1, -1], [up.sum(), down.sum()])
            dist = np.concatenate([pairs.dist[up], pairs.dist[down]])
            found.append(Cuts(start, end, flat[end], sign, dist, np.ones(len(start))))
        x = grid.points.reshape(-1, grid.ndim)[np.concatenate([c.start for c in found])]
        step = np.concatenate([steps(c, grid, k) for k, c in enumerate(found)])
        _, fraction = self.crossings(x, step, np.ones(len(x), int), np.concatenate([c.label for c in found]))
        fractions = np.split(fraction, np.cumsum([len(c.start) for c in found])[:-1])
        return [dataclasses.replace(c, fraction=f) for c, f in zip(found, fractions, strict=True)]

    def crossings(
        self,
        x: Float[np.ndarray, "n d"],
        step: Float[np.ndarray, "n d"],
        cells: Int[np.ndarray, " n"],
        end: Int[np.ndarray, " n"],
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The label of the set that each step from a free point x meets first, and the fraction after which it does.

        `end` is the label where the step ends, and there it ends if it meets nothing. Steps over more than one of the
        `cells` are looked at twice in each on the way.
        """
        label, low, high = end.copy(), np.zeros(len(x)), np.ones(len(x))
        for count in np.unique(cells[cells > 1]):
            (these,) = np.nonzero(cells == count)
            part = np.arange(1, 2 * count) / (2 * count)
            seen = self._label(x[these, None] + part[:, None] * step[these, None])
            met = np.argmax(seen > 0, axis=1)
            there = seen[np.arange(len(these)), met] > 0
            label[these[there]] = seen[there, met[there]]
            high[these[there]] = part[met[there]]
            low[these] = np.where(there, part[met], 1.0) - part[0]
        (cut,) = np.nonzero(label > 0)
        # A face that absorbs is not in a set: its steps end there.
        cut = cut[(high[cut] < 1) | (self._label(x[cut] + step[cut]) > 0)]
        high[cut], label[cut] = self._bisected(x[cut], step[cut], low[cut], high[cut], label[cut])
        length = np.linalg.norm(step, axis=1)
        near = nearest + 8 * np.finfo(np.float64).eps * np.linalg.norm(x, axis=1) / length
        return label, np.clip(high, near, 1.0)

    def _bisected(self, x, step, low, high, label):
        for _ in range(_halvings if len(x) else 0):
            middle = 0.5 * (low + high)
            seen = self._label(x + middle[:, None] * step)
            low, high = np.where(seen > 0, low, middle), np.where(seen > 0, middle, high)
            label = np.where(seen > 0, seen, label)
        return high, label

    def _label(self, points: Float[np.ndarray, "... d"]) -> Int[np.ndarray, "..."]:
        inside = wrapped(self.grid, self.boundary, points.reshape(-1, self.grid.ndim))
        return self._labelled(inside).reshape(points.shape[:-1])

    @functools.cached_property
    def _labelled(self) -> Callable:
        # Compiled once.
        at = jax.jit(jax.vmap(lambda x: jnp.stack([s(x) for s in self.sets])))

        def labelled(points):
            if len(points) == 0:
                return np.zeros(0, int)
            # Also inside `jit` for something else.
            with jax.ensure_compile_time_eval():
                holds = evaluate_batched(at, points)
            return np.where(holds.any(axis=1), 1 + np.argmax(holds, axis=1), 0)

        return labelled


def members(name: str, fn: Any, grid: Grid) -> Bool[np.ndarray, "..."]:
    """Whether the centre of each cell is in the set. Raises unless `fn` returns one boolean for a point (d,)."""
    if not callable(fn):
        raise TypeError(f"`{name}` must be a function of one point (d,), as in `lambda x: x @ x < 1`, got {fn!r}.")
    with traceable(f"`{name}(x)`"):
        point = jax.ShapeDtypeStruct((grid.ndim,), jnp.float64)
        value = jax.eval_shape(fn, point)
        if is_traced(jax.make_jaxpr(fn)(point).consts):
            raise NotImplementedError(
                f"`{name}` depends on a number that JAX traces (`jax.grad`, `jit` or `vmap`), but sets must be known: "
                "there are derivatives with respect to drift and noise only. Take differences for those of a set."
            )
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if dtype != jnp.bool_:
        raise TypeError(
            f"`{name}(x)` must return one boolean of JAX, got {type(value).__name__ if dtype is None else dtype}. "
            "Compare with a number, as in `x @ x < 1`."
        )
    if shape != ():
        raise ValueError(
            f"`{name}(x)` must return one boolean for a point of shape ({grid.ndim},), got shape {shape}. Use `jnp.all`"
            " or `jnp.any` to make one of several."
        )
    # Also inside `jit` for something else.
    with jax.ensure_compile_time_eval():
        return evaluate(fn, grid.points.reshape(-1, grid.ndim)).reshape(grid.shape)


def neighbours(grid: Grid, kind: Boundary, k: int) -> Neighbours:
    """All pairs along axis k, in C order; around a periodic axis the last cell is below the first."""
    cells = np.arange(grid.size).reshape(grid.shape)
    faces = np.arange(grid.size // grid.shape[k] * (grid.shape[k] + 1)).reshape(
        *grid.shape[:k], grid.shape[k] + 1, *grid.shape[k + 1 :]
    )
    e, c = grid.edges[k], grid.centres[k]
    dist = np.append(np.diff(c), (e[-1] - c[-1]) + (c[0] - e[0]))
    above, through = np.roll(cells, -1, axis=k), np.delete(faces, 0, axis=k)
    along = np.broadcast_to(dist.reshape(-1, *[1] * (grid.ndim - k - 1)), grid.shape)
    n = grid.shape[k] - (kind != "periodic")
    return Neighbours(*(np.take(a, np.arange(n), axis=k).ravel() for a in (cells, above, through, along)))


def steps(cut: Cuts, grid: Grid, k: int) -> Float[np.ndarray, "cuts d"]:
    """The vectors from start to end of the cut edges of axis k."""
    step = np.zeros((len(cut.start), grid.ndim))
    step[:, k] = cut.sign * cut.dist
    return step


def wrapped(grid: Grid, boundary: tuple[Boundary, ...], points: Float[Numbers, "n d"]) -> Float[Numbers, "n d"]:
    """Points with those beyond the ends of periodic axes back in the box."""
    turns = np.array([kind == "periodic" for kind in boundary])
    if not np.any(turns):
        return points
    low, high = (np.array([e[end] for e in grid.edges]) for end in (0, -1))
    xp = namespace(points)
    return xp.where(turns, low + xp.mod(points - low, high - low), points)
