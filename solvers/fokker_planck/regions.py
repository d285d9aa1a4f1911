"""Sets of cells given by boolean functions of a point, and where their boundaries cross the edges of the grid.

A cell belongs to a set if its centre does. Between the centres of two neighbours, one of them free and one not, the
crossing is found by bisection of the user's function, so that a boundary need not follow the grid.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from .._tracing import Numbers, is_traced, namespace, traceable
from ..grid import Grid, evaluate
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


def cuts(
    grid: Grid, boundary: tuple[Boundary, ...], labels: Int[np.ndarray, "..."], sets: Sequence[Callable]
) -> list[Cuts]:
    """The cut edges of each axis. Label 0 is free and label l > 0 is where `sets[l - 1]` holds."""
    flat, points = labels.ravel(), grid.points.reshape(-1, grid.ndim)
    found = []
    for k, kind in enumerate(boundary):
        pairs = neighbours(grid, kind, k)
        up = (flat[pairs.below] == 0) & (flat[pairs.above] > 0)
        down = (flat[pairs.below] > 0) & (flat[pairs.above] == 0)
        start = np.concatenate([pairs.below[up], pairs.above[down]])
        end = np.concatenate([pairs.above[up], pairs.below[down]])
        sign = np.repeat([1, -1], [up.sum(), down.sum()])
        dist = np.concatenate([pairs.dist[up], pairs.dist[down]])
        found.append(Cuts(start, end, flat[end], sign, dist, np.ones(len(start))))
    label = np.concatenate([c.label for c in found])
    x, step = (
        points[np.concatenate([c.start for c in found])],
        np.concatenate([steps(c, grid, k) for k, c in enumerate(found)]),
    )
    fraction = np.ones(len(x))
    for value, fn in enumerate(sets, 1):
        fraction[label == value] = _crossings(fn, grid, boundary, x[label == value], step[label == value])
    length = np.linalg.norm(step, axis=1)
    near = nearest + 8 * np.finfo(np.float64).eps * np.linalg.norm(x, axis=1) / length
    ends = np.cumsum([len(c.start) for c in found])[:-1]
    fractions = np.split(np.clip(fraction, near, 1.0), ends)
    return [dataclasses.replace(c, fraction=f) for c, f in zip(found, fractions, strict=True)]


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


def _crossings(
    fn: Callable,
    grid: Grid,
    boundary: tuple[Boundary, ...],
    x: Float[np.ndarray, "cuts d"],
    step: Float[np.ndarray, "cuts d"],
) -> Float[np.ndarray, " cuts"]:
    # The fraction of the step after which the set begins.
    low, high = np.zeros(len(x)), np.ones(len(x))
    there = jax.jit(jax.vmap(fn))
    with jax.ensure_compile_time_eval():
        for _ in range(_halvings if len(x) else 0):
            middle = 0.5 * (low + high)
            holds = np.asarray(there(wrapped(grid, boundary, x + middle[:, None] * step)))
            low, high = np.where(holds, low, middle), np.where(holds, middle, high)
    return high
