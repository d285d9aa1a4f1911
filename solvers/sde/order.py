"""Order studies: how fast a method's error falls with the step, measured with error bars.

Every step size is driven by the same Brownian paths: a coarse step takes the sum of the fine increments, and its Lévy
area by Chen's relation. The interval of the fitted order comes from how much the fit varies between groups of paths.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt32
from scipy import optimize, stats

from ..process import AbstractDiffusion, noise_structure
from .brownian import Increment, Need, increment, numbers_per_step
from .levy import MatrixArea, chain
from .method import AbstractMethod, check_method
from .milstein import Milstein
from .random import key_words, normal_pairs, unpaired

# Steps of the reference in one smallest step of the study, where no exact solution is given.
_refinement = {"strong": 32, "weak": 16}

# Groups of paths between which the fitted order varies; and paths computed at a time.
_groups = 32
_block = 4096

_whole = 1e-6

# An error counts as known when it is so many standard errors, and so many roundings, away from 0.
_significant, _roundings = 3.0, 100.0


class OrderStudy(eqx.Module):
    """Errors at each step size and the order fitted to them.

    `errors[i]` belongs to `dts[i]` and has the standard error `sem[i]`; `interval` is the 95 % confidence interval of
    `order`, infinite if some error can't be told from 0: use more paths or larger steps. It covers the sampling error
    of the fit, not a bend of the curve at large steps: choose `dts` in the range where `errors` lie on a line.
    `reference` says what the errors are measured against, and `reference_dt` at which step, 0 for an exact solution.
    """

    dts: Float[np.ndarray, " levels"]
    errors: Float[np.ndarray, " levels"]
    sem: Float[np.ndarray, " levels"]
    order: float
    interval: tuple[float, float]
    kind: str
    method: str
    reference: str
    reference_dt: float
    paths: int

    def __str__(self) -> str:
        rows = [
            f"  dt {dt:<10.6g} error {e:.4g} ± {s:.1g}"
            for dt, e, s in zip(self.dts, self.errors, self.sem, strict=True)
        ]
        low, high = self.interval
        return "\n".join(
            [
                f"{self.kind} order of {self.method}: {self.order:.3f}, 95 % interval [{low:.3f}, {high:.3f}], "
                f"{self.paths} paths against {self.reference}",
                *rows,
            ]
        )


def strong_order(
    process: AbstractDiffusion,
    method: AbstractMethod,
    x0: Any,
    t1: float = 1.0,
    *,
    dts: Sequence[float] | np.ndarray,
    key: Any,
    paths: int,
    exact: Callable | None = None,
    reference: AbstractMethod | None = None,
) -> OrderStudy:
    """Measures the strong order: how E|X(t1) - X_dt(t1)| falls with dt, on the same Brownian paths.

    `exact(x0, t, w)` is the solution at time t as a function of the start (d,) and of the Brownian motion at that time,
    shape (m,). Without it the errors are measured against the method `reference` at 1/32 of the smallest step, by
    default this method itself, or `Milstein` if this method declares a strong order below 1. The error of the reference
    then biases the order upward by about 0.02 at most. Lévy areas are sampled at the finest step and handed up, so that
    every step size sees those of the same path.

    Each of `dts` must divide `t1` and be a multiple of the smallest. `x0` is one point, shape (d,).
    """
    x0, ladder = _point(x0), _ladder(dts, t1, 1 if exact else _refinement["strong"])
    if reference is None:
        reference = method if method.strong_order >= 1 else Milstein()
    x, w = _coupled(process, method, None if exact else reference, x0, ladder, key, paths)
    if exact is None:
        target, name = x[0], f"{type(reference).__name__} at dt={ladder.finest:g}"
    else:
        target, name = _solution(exact, x0, t1, w), "the exact solution"
    errors = np.linalg.norm(x[-len(ladder.ratios) :] - target, axis=-1)
    return _study(ladder, errors, exact is None, "strong", type(method).__name__, name)


def weak_order(
    process: AbstractDiffusion,
    method: AbstractMethod,
    x0: Any,
    t1: float = 1.0,
    *,
    dts: Sequence[float] | np.ndarray,
    key: Any,
    paths: int,
    functional: Callable,
    exact: float | Callable | None = None,
) -> OrderStudy:
    """Measures the weak order: how |E φ(X(t1)) - E φ(X_dt(t1))| falls with dt, for a functional φ(x) -> scalar.

    `exact` is the number E φ(X(t1)), or a function `exact(x0, t, w)` giving X(t) from the Brownian motion, which
    removes most of the sampling error. Without it the reference is this method at 1/16 of the smallest step, and the
    fit accounts for the reference's own error by the model C (dt^order - dt_ref^order).

    Each of `dts` must divide `t1` and be a multiple of the smallest. `x0` is one point, shape (d,).
    """
    x0, ladder = _point(x0), _ladder(dts, t1, 1 if exact is not None else _refinement["weak"])
    x, w = _coupled(process, method, None if exact is not None else method, x0, ladder, key, paths)
    values = np.asarray(jax.jit(jax.vmap(jax.vmap(functional)))(jnp.asarray(x)), dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"`functional(x)` must return a scalar, got shape {values.shape[2:]}.")
    if exact is None:
        target, name = values[0], f"{type(method).__name__} at dt={ladder.finest:g}"
    elif callable(exact):
        solution = jnp.asarray(_solution(exact, x0, t1, w))
        target, name = np.asarray(jax.jit(jax.vmap(functional))(solution)), "the exact solution"
    else:
        target, name = float(exact), "the exact expectation"
    differences = values[-len(ladder.ratios) :] - target
    return _study(ladder, differences, exact is None, "weak", type(method).__name__, name)


class _Ladder(eqx.Module):
    """Step sizes as multiples of the finest, which is the smallest of them or the reference's."""

    dts: Float[np.ndarray, " levels"]
    ratios: tuple[int, ...]
    finest: float
    steps: int


def _ladder(dts: Sequence[float] | np.ndarray, t1: float, refinement: int) -> _Ladder:
    if not 0 < t1 < np.inf:
        raise ValueError(f"`t1` must be positive and finite, got {t1}.")
    sizes = np.asarray(dts, dtype=np.float64)
    if sizes.ndim != 1 or len(sizes) < 2 or not np.all(sizes > 0) or len(np.unique(sizes)) != len(sizes):
        raise ValueError(f"`dts` must be at least two different positive step sizes, got {dts}.")
    least = sizes.min()
    for multiple, what in ((t1 / sizes, "divide `t1`"), (sizes / least, "be a multiple of the smallest")):
        if np.any(np.abs(multiple - np.round(multiple)) > _whole):
            raise ValueError(f"Each of `dts` must {what}, but dts={sizes} and t1={t1}.")
    ratios = np.round(sizes / least).astype(int) * refinement
    return _Ladder(sizes, tuple(ratios.tolist()), float(least / refinement), round(t1 / least) * refinement)


def _point(x0: Any) -> Float[np.ndarray, " d"]:
    x0 = np.asarray(x0)
    if x0.ndim != 1 or not np.issubdtype(x0.dtype, np.floating):
        raise ValueError(f"`x0` must be one point of shape (d,) and floating dtype, got shape {x0.shape}, {x0.dtype}.")
    return x0.astype(jax.dtypes.canonicalize_dtype(x0.dtype))


def _solution(exact: Callable, x0: np.ndarray, t1: float, w: np.ndarray) -> np.ndarray:
    t = jnp.asarray(t1, w.dtype)
    x = np.asarray(jax.jit(jax.vmap(lambda w: exact(jnp.asarray(x0), t, w)))(jnp.asarray(w)))
    if x.shape != (len(w), x0.size):
        raise ValueError(f"`exact(x0, t, w)` must return shape {x0.shape}, got {x.shape[1:]}.")
    return x


def _coupled(process, method, reference, x0, ladder: _Ladder, key, paths: int):
    """End points of every level, shape (levels, paths, d), the reference's first, and W(t1), shape (paths, m)."""
    if int(paths) != paths or paths < 2 * _groups:
        raise ValueError(f"`paths` must be a whole number of at least {2 * _groups}, got {paths}.")
    check_method(method)
    point = jnp.asarray(x0)[None]
    _, m = noise_structure(process, point[0])
    need = method.needs(process, point)
    if reference is not None:
        need = max(need, reference.needs(process, point), key=["increment", "direction", "matrix"].index)
    # A sampled direction is good for one step only; here all steps must see parts of one area.
    need = "increment" if need == "increment" else "matrix"
    methods = ((reference,) if reference else ()) + (method,) * len(ladder.ratios)
    ratios = ((1,) if reference else ()) + ladder.ratios
    # Coarse areas are made of fine ones, all levels of the same: one Fourier term is enough at the finest step.
    levels = _Levels(process, methods, ratios, need, m, numbers_per_step(need, m, np.inf))
    words, dt = key_words(key), jnp.asarray(ladder.finest, x0.dtype)
    xs, ws = [], []
    block = min(_block, paths)
    for first in range(0, paths, block):
        path = jnp.arange(first, first + block, dtype=jnp.uint32)
        x, w = _integrate(levels, words, path, jnp.asarray(x0), dt, ladder.steps)
        xs.append(np.asarray(x))
        ws.append(np.asarray(w))
    return np.concatenate(xs, axis=1)[:, :paths], np.concatenate(ws)[:paths]


class _Levels(eqx.Module):
    """Which methods run at which multiples of the finest step."""

    process: AbstractDiffusion
    methods: tuple[AbstractMethod, ...]
    ratios: tuple[int, ...] = eqx.field(static=True)
    need: Need = eqx.field(static=True)
    motions: int = eqx.field(static=True)
    numbers: int = eqx.field(static=True)

    def step(self, level: int, t, x, dt, dw, da):
        """One step of a level for each path."""

        def one(x, dw, da):
            area = None if self.need == "increment" else MatrixArea(da)
            return self.methods[level].step(self.process, t, x, dt, Increment(dw, area))

        return jax.vmap(one)(x, dw, da)


@eqx.filter_jit
def _integrate(
    levels: _Levels,
    words: UInt32[Array, "2"],
    path: UInt32[Array, " n"],
    x0: Float[Array, " d"],
    dt: Float[Array, ""],
    steps: int,
) -> tuple[Float[Array, "levels n d"], Float[Array, "n m"]]:
    n, m = path.size, levels.motions
    none = jnp.zeros((n, m), x0.dtype), jnp.zeros((n, m, m), x0.dtype)
    start = [(jnp.broadcast_to(x0, (n, x0.size)), *none) for _ in levels.ratios]

    def draw(k):
        return normal_pairs(words, path, k.astype(jnp.uint32), -(-levels.numbers // 2), x0.dtype)

    def fine_step(k, carry):
        states, w, pairs = carry
        fine = jax.vmap(lambda z: increment(levels.need, m, dt, z))(unpaired(pairs, levels.numbers))
        area = fine.area.matrix if isinstance(fine.area, MatrixArea) else none[1]
        states = [_climb(levels, i, s, k, dt, fine.dw, area) for i, s in enumerate(states)]
        # Drawn a step ahead, as in `engine`: computed once.
        return states, w + fine.dw, draw(k + 1)

    states, w, _ = lax.fori_loop(0, steps, fine_step, (start, none[0], draw(jnp.asarray(0))))
    return jnp.stack([x for x, _, _ in states]), w


def _climb(levels: _Levels, level: int, state, k, dt, dw, da):
    """Adds a fine increment to a level's own, and takes the level's step when that is complete."""
    ratio = levels.ratios[level]
    x, w, a = state
    w, a = (w + dw, a) if levels.need == "increment" else chain(w, a, dw, da)

    def step(x, w, a):
        began = (k + 1 - ratio).astype(dt.dtype) * dt
        return levels.step(level, began, x, ratio * dt, w, a), jnp.zeros_like(w), jnp.zeros_like(a)

    return lax.cond((k + 1) % ratio == 0, step, lambda x, w, a: (x, w, a), x, w, a)


def _study(
    ladder: _Ladder, samples: Float[np.ndarray, "levels n"], approximate: bool, kind: str, method: str, reference: str
) -> OrderStudy:
    """The study of errors |mean of samples| over paths, against a reference that is `approximate` or exact.

    Only weak errors against an approximate reference are its error plus theirs, and are fitted so.
    """
    dts, finest = ladder.dts, ladder.finest if approximate and kind == "weak" else 0.0
    rounding = _roundings * np.finfo(samples.dtype).eps * max(1.0, float(np.max(np.abs(samples))))
    if not np.all(np.isfinite(samples)):
        raise FloatingPointError(f"Paths of {method} or of the reference became non-finite: use smaller `dts`.")
    paths = samples.shape[1]
    means = samples.mean(axis=1)
    sem = samples.std(axis=1, ddof=1) / np.sqrt(paths)
    weights = _weights(means, sem)
    order = _fit(dts, np.abs(means), finest, weights)
    # Delete-one-group jackknife: the errors of all step sizes come from the same paths and are strongly correlated.
    totals = np.stack([samples[:, g::_groups].sum(axis=1) for g in range(_groups)])
    sizes = np.array([len(range(g, paths, _groups)) for g in range(_groups)])
    left_out = (totals.sum(axis=0) - totals) / (paths - sizes)[:, None]
    orders = np.array([_fit(dts, np.abs(e), finest, weights) for e in left_out])
    spread = np.sqrt((_groups - 1) / _groups * np.sum((orders - orders.mean()) ** 2))
    half = float(stats.t.ppf(0.975, _groups - 1) * spread)
    interval = order - half, order + half
    if np.any(np.abs(means) < _significant * sem) or np.any(np.abs(means) < rounding):
        # The fit follows noise; the jackknife does not know that the errors might as well have the other sign.
        interval = -np.inf, np.inf
    reference_dt = ladder.finest if approximate else 0.0
    return OrderStudy(dts, np.abs(means), sem, order, interval, kind, method, reference, reference_dt, paths)


def _weights(means: np.ndarray, sem: np.ndarray) -> np.ndarray:
    """Weights of log errors: by their sampling error, but no error counts as known to better than 2 %.

    The power law itself holds only to about that, and would otherwise be fitted at the largest step alone.
    """
    return 1 / np.maximum(sem / np.maximum(np.abs(means), 1e-300), 0.02)


def _fit(dts: np.ndarray, errors: np.ndarray, finest: float, weights: np.ndarray) -> float:
    """The order p of the weighted least-squares fit errors = C (dts^p - finest^p)."""
    logs = np.log(np.maximum(errors, 1e-300))
    order = float(np.polyfit(np.log(dts), logs, 1, w=weights)[0])
    if finest == 0:
        return order

    def misfit(p):
        residual = logs - np.log(np.abs(dts**p - finest**p))
        return np.sum(weights**2 * (residual - np.average(residual, weights=weights**2)) ** 2)

    best = optimize.minimize_scalar(misfit, bounds=(0.05, order + 2), method="bounded")
    return float(best.x)  # pyright: ignore[reportAttributeAccessIssue]
