"""What is measured along a simulation, streamed: memory grows with neither time nor paths.

An observable is updated on the device for blocks of paths, then reduced on the host. Partial results merge in a fixed
order, so that chunks, devices and segments give the same bits.
"""

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt32

from .._tracing import traceable
from ..density import Density
from ..grid import Grid
from ..process import AbstractDiffusion
from .transform import AbstractTransform


class AbstractObservable(eqx.Module):
    """A statistic of an ensemble that can be computed path by path as time goes on.

    The state on the device is a pair `(counters, running)`. Counters are int32 arrays that only grow: they are moved
    to 64-bit integers on the host after each segment of steps. Everything else is `running`.
    """

    @abc.abstractmethod
    def init(self, t: Float[Array, ""], x: Float[Array, "n d"], weighted: bool) -> tuple[Any, Any]:
        """The state before the first sample, for a block of n paths; `weighted` says what `update` will be given."""

    @abc.abstractmethod
    def update(
        self,
        state: tuple[Any, Any],
        t: Float[Array, ""],
        x: Float[Array, "n d"],
        weight: Bool[Array, " n"] | Float[Array, " n"],
    ) -> tuple[Any, Any]:
        """The state after a sample at time t: each path counts by its weight, or if that is true and not if false."""

    @abc.abstractmethod
    def reduce(self, state: tuple[Any, Any], block: int) -> Any:
        """What `merge` takes, from the state of the block of that number: NumPy arrays, with 64-bit counters."""

    @abc.abstractmethod
    def merge(self, a: Any, b: Any) -> Any:
        """Two partial results made one. Associative: exactly for counts, to rounding for sums."""

    @abc.abstractmethod
    def result(self, total: Any) -> Any:
        """What the user gets."""


class Paths(eqx.Module):
    """What the paths of a block are, apart from their states.

    A variable y is stepped as a path of `process`, by `dt` at a time; the state is x = `transform.leave(y)`, or y
    itself. `words`, `path` and the number `origin` of the first step address random numbers, see `random`.
    """

    process: AbstractDiffusion
    transform: AbstractTransform | None
    dt: Float[Array, ""]
    words: UInt32[Array, "2"]
    origin: UInt32[Array, ""]
    path: UInt32[Array, " n"]
    exists: Bool[Array, " n"]


class AbstractFollower(AbstractObservable):
    """An observable that follows each path from step to step: `update` comes after every step from the start on.

    It does not ask for `every` and `burn_in`, and sees what the method steps, in the coordinates of the state: what
    methods that look at another variable show elsewhere is no path of the process.
    """

    @abc.abstractmethod
    def check(self, x: Float[Array, "n d"]) -> None:
        """Raises `ValueError` or `TypeError` if this can't be observed from typical starting points `x`."""

    @abc.abstractmethod
    def following(self, paths: Paths) -> "AbstractFollower":
        """This observable for the paths of a block: what `init` and `update` are called of."""


def checked_observables(observe: Any) -> dict[str, AbstractObservable]:
    """What a run is to observe, by name; `TypeError` for anything but a dictionary of observables, or None."""
    if not isinstance(observe, Mapping | None):
        raise TypeError(
            f"`observe` must be a dictionary of observables, as in {{'x': sde.Moments()}}, got {observe!r}."
        )
    for name, observable in (observe or {}).items():
        if not isinstance(observable, AbstractObservable):
            raise TypeError(
                f"`observe[{name!r}]` must be an observable such as `sde.Moments()`, got {observable!r}. "
                "For a function, write `sde.Moments(fn)`."
            )
    return dict(observe or {})


def result_of(results: Mapping[str, Any], name: str) -> Any:
    """The result of the observable of that name; `KeyError` that says which there are."""
    if name not in results:
        raise KeyError(f"no observable {name!r} in this run; it has {sorted(results)}")
    return results[name]


class MomentsResult(eqx.Module):
    """Mean and covariance over paths and times. `sem` is the standard error of the mean over independent paths."""

    mean: Float[np.ndarray, "*k"]
    cov: Float[np.ndarray, "..."]
    sem: Float[np.ndarray, "*k"]
    paths: int

    def __str__(self) -> str:
        with np.printoptions(precision=6):
            return f"mean {_short(self.mean)} ± {_short(self.sem)} over {self.paths} paths"


def _short(value: Float[np.ndarray, "..."]) -> str:
    return f"{value:.6g}" if value.ndim == 0 else str(value)


class Moments(AbstractObservable):
    """Mean, covariance and standard error of a function of the state, over all paths and sampled times.

    `fn(t, x)` maps one point (d,) to a scalar or a vector (k,); by default it is the state itself. In the result,
    `mean` and `sem` have that shape and `cov` has shape (k, k), or () for a scalar. The standard error comes from the
    spread of the time averages of independent paths, so that correlation in time does not flatter it; with one path
    it is NaN. Define `fn` once rather than as a new lambda for every run: a new function is a new program to compile.

    A law with heavy tails may not have the moment asked for: under loss-proportional noise of strength κ on a loss
    that grows like |x|², E|x|^q is finite only for q < 2 + 2/κ - d.
    """

    fn: Callable | None = None

    def init(self, t, x, weighted):
        phi = self._values(t, x)
        if phi.ndim > 2:
            raise ValueError(
                f"`fn(t, x)` of `Moments` must return a scalar or a vector, got shape {phi.shape[1:]}. Ravel it first."
            )
        spread = jnp.zeros(phi.shape + phi.shape[1:], phi.dtype)
        return (), (jnp.zeros(len(phi), phi.dtype), jnp.zeros_like(phi), spread)

    def update(self, state, t, x, weight):
        # West's recurrence for each path by itself: stable, and elementwise, so the same bits in every layout.
        _, (total, mean, spread) = state
        phi = self._values(t, x)
        weight = weight.astype(total.dtype)
        counts = weight > 0
        total = total + weight
        share = jnp.where(counts, weight / jnp.where(counts, total, 1), 0)
        wide = (slice(None),) + (None,) * (phi.ndim - 1)
        deviation = jnp.where(counts[wide], phi - mean, 0)
        mean = mean + share[wide] * deviation
        residual = weight[wide] * jnp.where(counts[wide], phi - mean, 0)
        product = deviation * residual if phi.ndim == 1 else deviation[:, :, None] * residual[:, None, :]
        return (), (total, mean, spread + product)

    def reduce(self, state, block):
        total, mean, spread = (np.asarray(a, dtype=np.float64) for a in state[1])
        used = total > 0
        total, mean, spread = total[used], mean[used], spread[used].sum(axis=0)
        shape = mean.shape[1:]
        mean = mean.reshape(len(mean), math.prod(shape))
        over_time = _Spread.of(mean, total)
        samples = _Spread(over_time.weight, over_time.mean, over_time.spread + spread.reshape(over_time.spread.shape))
        return shape, samples, _Spread.of(mean, total**2), len(total)

    def merge(self, a, b):
        return a[0], a[1].merged(b[1]), a[2].merged(b[2]), a[3] + b[3]

    def result(self, total):
        shape, samples, paths, n = total
        # The mean is a ratio of sums over independent paths, Σ W m / Σ W: its variance is Σ W² (m - mean)² / (Σ W)².
        gap = paths.mean - samples.mean
        scatter = np.diagonal(paths.spread) + paths.weight * gap**2
        sem = np.sqrt(scatter * n / (n - 1)) / samples.weight if n > 1 else np.full_like(paths.mean, np.nan)
        cov = samples.spread / samples.weight if n > 0 else np.full_like(samples.spread, np.nan)
        mean = samples.mean if n > 0 else np.full_like(samples.mean, np.nan)
        return MomentsResult(mean.reshape(shape), cov.reshape(shape + shape), sem.reshape(shape), n)

    def _values(self, t, x):
        return _values(self.fn, t, x)


class _Spread(eqx.Module):
    """Total weight, weighted mean and weighted sum of squared deviations; merges in pairs (Chan, Golub and LeVeque)."""

    weight: float
    mean: Float[np.ndarray, " k"]
    spread: Float[np.ndarray, "k k"]

    @staticmethod
    def of(values: Float[np.ndarray, "n k"], weights: Float[np.ndarray, " n"]) -> "_Spread":
        total = float(weights.sum())
        mean = (weights @ values) / max(total, 1.0)
        deviation = values - mean
        return _Spread(total, mean, (weights[:, None] * deviation).T @ deviation)

    def merged(self, other: "_Spread") -> "_Spread":
        weight = self.weight + other.weight
        gap = other.mean - self.mean
        share = other.weight / max(weight, 1.0)
        spread = self.spread + other.spread + self.weight * share * np.outer(gap, gap)
        return _Spread(weight, self.mean + share * gap, spread)


class Histogram(AbstractObservable):
    """The law of the state, or of `fn(t, x)`, on a grid: a `Density` with standard errors from groups of paths.

    Samples outside the grid are counted in `Density.outside`.
    """

    grid: Grid
    fn: Callable | None = None
    evenly: tuple[bool, ...] = eqx.field(static=True, init=False)

    def __post_init__(self):
        widths = [np.diff(np.asarray(edges)) for edges in self.grid.edges]
        self.evenly = tuple(bool(np.ptp(w) < _even * w.mean()) for w in widths)

    def init(self, t, x, weighted):
        y = self._values(t, x)
        if y.ndim != 2 or y.shape[1] != self.grid.ndim:
            raise ValueError(
                f"`grid` of `Histogram` has {self.grid.ndim} axes, but what it counts has shape {y.shape[1:]}. "
                "Pass `fn` to choose the components, as in `Histogram(grid, lambda t, x: x[:1])`."
            )
        shape = (self._groups, self.grid.size + 1)
        if weighted:
            return (), (jnp.zeros(shape, y.dtype), jnp.zeros(shape, y.dtype))
        return jnp.zeros(shape, jnp.int32), ()

    def update(self, state, t, x, weight):
        y = self._values(t, x)
        cell = jnp.zeros(len(y), jnp.int32)
        inside = jnp.ones(len(y), bool)
        for k, (edges, n) in enumerate(zip(self.grid.edges, self.grid.shape, strict=True)):
            index = _cell(jnp.asarray(edges, y.dtype), self.evenly[k], y[:, k])
            inside &= (index >= 0) & (index < n)
            cell = cell * n + index
        cell = jnp.where(inside, cell, self.grid.size)
        # In one row: the compiler adds to an array of one axis twice as fast.
        cell = cell + (self.grid.size + 1) * (jnp.arange(len(y), dtype=jnp.int32) % self._groups)

        def added(rows, values):
            flat = rows.reshape(-1).at[cell].add(values.astype(rows.dtype), mode="promise_in_bounds")
            return flat.reshape(rows.shape)

        counts, running = state
        if not running:
            return added(counts, weight), ()
        # Sums of weights lose nothing to their length: what rounding drops is carried along (Kahan).
        total, dropped = running
        sample = added(jnp.zeros_like(total), weight) - dropped
        new = total + sample
        return (), (new, (new - total) - sample)

    def reduce(self, state, block):
        counters, running = state
        rows = np.asarray(running[0], np.float64) - np.asarray(running[1], np.float64) if running else counters
        return {(block * self._groups + g) % _most_groups: row for g, row in enumerate(np.asarray(rows))}

    def merge(self, a, b):
        return {g: a.get(g, 0) + b.get(g, 0) for g in sorted(a.keys() | b.keys())}

    def result(self, total):
        groups = np.stack([total[g] for g in sorted(total)]).astype(np.float64)
        groups = groups[groups.sum(axis=1) > 0]
        samples = groups.sum()
        if samples == 0:
            raise FloatingPointError("`Histogram` holds no samples: every path became non-finite before the first one.")
        mass = groups.sum(axis=0) / samples
        replicates = groups / groups.sum(axis=1, keepdims=True)
        shape = self.grid.shape
        return Density(
            self.grid,
            mass[:-1].reshape(shape),
            mass[-1],
            replicates[:, :-1].reshape(-1, *shape) if len(replicates) > 1 else None,
        )

    @property
    def _groups(self) -> int:
        return int(np.clip(_most_group_cells // self.grid.size, 1, _most_groups))

    def _values(self, t, x):
        return _values(self.fn, t, x)


def _cell(edges: Float[Array, " edges"], evenly: bool, y: Float[Array, " n"]) -> Int32[Array, " n"]:
    """The number of the cell between edges in which each y lies; negative or too large outside, and for NaN."""
    if not evenly:
        return jnp.searchsorted(edges, y, side="right").astype(jnp.int32) - 1
    n, low, high = len(edges) - 1, edges[0], edges[-1]
    index = jnp.clip(jnp.floor((y - low) * (n / (high - low))), 0, n - 1).astype(jnp.int32)
    return jnp.where(y < low, -1, jnp.where(y < high, index, n))


def _values(fn: Callable | None, t: Float[Array, ""], x: Float[Array, "n d"]) -> Float[Array, "n ..."]:
    if fn is None:
        return x
    with traceable("`fn(t, x)` of an observable"):
        values = jax.vmap(fn, in_axes=(None, 0))(t, x)
    if not isinstance(values, jax.Array) or jnp.iscomplexobj(values):
        kind = values.dtype if isinstance(values, jax.Array) else type(values).__name__
        raise TypeError(
            f"`fn(t, x)` of an observable must return one real array, got {kind}. Use `jnp.stack` for a list."
        )
    return values.astype(x.dtype)


# Cells count as of one width when their widths differ by less than this part.
_even = 1e-9

# Groups of paths whose spread gives a histogram's standard errors: 31 degrees of freedom.
_most_groups = 32

# Counters of one block of paths, over all its groups; fewer groups a block on larger grids.
_most_group_cells = 1 << 18
