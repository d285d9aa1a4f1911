"""Order studies: how fast a method's error falls with the step, measured with error bars.

Every step size is driven by the same Brownian paths: a coarse step takes the sum of the fine increments, and its Lévy
area by Chen's relation. Weak methods whose numbers follow no Brownian motion get independent ones at each step size.
The interval of the fitted order comes from how much the fit varies between groups of paths.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt32
from scipy import optimize, stats

from ..diagnosis import Diagnosis, finite, judged
from ..drawing import draw_power
from ..process import AbstractDiffusion, noise_structure
from ..provenance import Provenance, made_by, recorded
from ..result import AbstractResult
from .brownian import Need, increment, joined, numbers_per_step
from .method import AbstractMethod, AbstractPostprocessed, check_method
from .milstein import Milstein
from .random import key_words, normal_pairs, unpaired

# Steps of the reference in one smallest step of the study, where no exact solution is given.
_refinement = {"strong": 32, "weak": 16}

# Groups of paths between which the fitted order varies; and paths computed at a time.
_groups = 32
_block = 4096

# What the increments of one path are drawn with, for each need; what several needs have in common is a path. A sampled
# direction is good for one step only, where here all steps must see parts of one area.
_drawn: dict[Need, Need] = {"increment": "increment", "direction": "matrix", "matrix": "matrix", "time": "time"}

# A standard normal number is as often beyond this as a three-point one is not 0: with probability 1/3.
_three_point_bound = float(stats.norm.ppf(5 / 6))

# The method of each level, and its step as a multiple of the finest.
_Methods = Sequence[tuple[AbstractMethod, int]]

_whole = 1e-6

# An order that is known to less than this width, and slopes that differ by more than this, say little.
_wide, _bent = 0.5, 0.3

# An error counts as known when it is so many standard errors, and so many roundings, away from 0.
_significant, _roundings = 3.0, 100.0


class OrderStudy(AbstractResult):
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
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def diagnose(self) -> Diagnosis:
        """Whether errors stand out from the noise, the order is known to ±0.25, and the errors lie on a line."""
        noise = float(np.max(self.sem / np.maximum(self.errors, 1e-300)))
        low, high = self.interval
        slopes = np.diff(np.log(np.maximum(self.errors, 1e-300))[np.argsort(self.dts)]) / np.diff(
            np.log(np.sort(self.dts))
        )
        bend = float(np.ptp(slopes))
        return Diagnosis(
            (
                finite("errors", self.errors),
                judged(
                    "noise",
                    noise < 1 / _significant,
                    f"standard errors up to {noise:.2g} of an error",
                    "Use more `paths`, or larger `dts`",
                ),
                judged("order", high - low < _wide, f"95 % interval [{low:.3f}, {high:.3f}]", "Use more `paths`"),
                judged(
                    "line",
                    bend < _bent,
                    f"slopes between neighbours differ by up to {bend:.2g}",
                    "Use smaller `dts`, or more `paths`: the order is that of small steps",
                ),
            )
        )

    def plot(self, ax: Any = None) -> Any:
        """Draws errors against steps and the fitted slope on `ax`, or on new axes, which are returned."""
        return draw_power(self.dts, self.errors, self.sem, self.order, ax, f"{self.method}, {self.kind}")

    def __str__(self) -> str:
        rows = [
            f"  dt {dt:<10.6g} error {e:.4g} ± {s:.1g}"
            for dt, e, s in zip(self.dts, self.errors, self.sem, strict=True)
        ]
        low, high = self.interval
        return "\n".join(
            [
                f"{self.kind} order of {self.method}: {self.order:.3f}, 95 % interval [{low:.3f}, {high:.3f}], "
                f"{self.paths} paths against {self.reference}{made_by(self)}",
                *rows,
            ]
        )


@recorded("process")
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
    then biases the order upward by about 0.02 at most. Lévy areas and time integrals are sampled at the finest step and
    handed up, so that every step size sees those of the same path.

    Each of `dts` must divide `t1` and be a multiple of the smallest. `x0` is one point, shape (d,). Raises `ValueError`
    for a method with three-point numbers or signs: these follow no Brownian motion.
    """
    x0, ladder = _point(x0), _ladder(dts, t1, 1 if exact else _refinement["strong"])
    if reference is None:
        reference = method if method.strong_order >= 1 else Milstein()
    methods = _methods(method, None if exact else reference, ladder)
    need = _common_need(process, methods, x0)
    if need not in _drawn:
        raise ValueError(
            f"A strong order compares solutions for one Brownian motion, but the {need} numbers of "
            f"`{type(method).__name__}` follow none. Use `weak_order`."
        )
    x, w = _coupled(process, methods, need, x0, ladder, key, paths)
    if exact is None:
        target, name = x[0], f"{type(reference).__name__} at dt={ladder.finest:g}"
    else:
        target, name = _solution(exact, x0, t1, w), "the exact solution"
    errors = np.linalg.norm(x[-len(ladder.ratios) :] - target, axis=-1)
    return _study(ladder, errors, exact is None, "strong", type(method).__name__, name)


@recorded("process")
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

    All step sizes follow the same Brownian paths, except for methods with three-point numbers or signs, which can't be
    summed to those of a longer step: they get independent numbers at each step size, so that the sampling error of a
    difference is larger, and `exact` must be a number.
    """
    x0, ladder = _point(x0), _ladder(dts, t1, 1 if exact is not None else _refinement["weak"])
    methods = _methods(method, None if exact is not None else method, ladder)
    need = _common_need(process, methods, x0)
    if need in _drawn:
        x, w = _coupled(process, methods, need, x0, ladder, key, paths)
    elif callable(exact):
        raise ValueError(
            f"`exact` must be the number E φ(X(t1)): the {need} numbers of `{type(method).__name__}` follow no "
            "Brownian motion at which a solution could be evaluated."
        )
    else:
        x, w = _independent(process, methods, need, x0, ladder, key, paths), np.empty((paths, 0))
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


def _methods(method, reference, ladder: _Ladder) -> _Methods:
    """The reference first, if there is one."""
    check_method(method)
    return ([(reference, 1)] if reference else []) + [(method, ratio) for ratio in ladder.ratios]


def _common_need(process: AbstractDiffusion, methods: _Methods, x0: Float[np.ndarray, " d"]) -> Need:
    """What to draw so that each level finds what it needs in it."""
    point = jnp.asarray(x0)[None]
    common: Need = "increment"
    for method in {id(method): method for method, _ in methods}.values():
        need: Need = method.needs(process, point)
        need = _drawn.get(need, need)
        # Increments are part of every other need.
        if common not in ("increment", need) and need != "increment":
            raise ValueError(
                f"The method and its reference need {common!r} and {need!r} of the Brownian motion, which are not "
                "drawn together. Pass a `reference` with the needs of the method, such as the method itself, or an "
                "`exact` solution."
            )
        common = common if need == "increment" else need
    return common


def _coupled(process, methods: _Methods, need: Need, x0, ladder: _Ladder, key, paths: int):
    """End points of every level, shape (levels, paths, d), the reference's first, and W(t1), shape (paths, m)."""
    _, m = noise_structure(process, jnp.asarray(x0))
    # Coarse areas are made of fine ones, all levels of the same: one Fourier term is enough at the finest step.
    numbers = numbers_per_step(need, m, np.inf)
    levels = _Levels(process, tuple(one for one, _ in methods), tuple(ratio for _, ratio in methods), need, m, numbers)
    words, dt = key_words(key), jnp.asarray(ladder.finest, x0.dtype)
    ends = [_integrate(levels, words, path, jnp.asarray(x0), dt, ladder.steps) for path in _blocks(paths)]
    xs, ws = ([np.asarray(part) for part in parts] for parts in zip(*ends, strict=True))
    return np.concatenate(xs, axis=1)[:, :paths], np.concatenate(ws)[:paths]


def _independent(process, methods: _Methods, need: Need, x0, ladder: _Ladder, key, paths: int):
    """End points as those of `_coupled`, with independent numbers for each level: those of other paths."""
    _, m = noise_structure(process, jnp.asarray(x0))
    words, x, levels = key_words(key), jnp.asarray(x0), []
    for level, (method, ratio) in enumerate(methods):
        alone = _Levels(process, (method,), (1,), need, m, numbers_per_step(need, m, ladder.finest * ratio))
        dt, steps = jnp.asarray(ladder.finest * ratio, x0.dtype), jnp.asarray(ladder.steps // ratio)
        others = jnp.uint32(level * paths)
        ends = [np.asarray(_integrate(alone, words, path + others, x, dt, steps)[0][0]) for path in _blocks(paths)]
        levels.append(np.concatenate(ends)[:paths])
    return np.stack(levels)


def _blocks(paths: int) -> list[UInt32[Array, " n"]]:
    """Numbers of the paths, the last block filled up."""
    if int(paths) != paths or paths < 2 * _groups:
        raise ValueError(f"`paths` must be a whole number of at least {2 * _groups}, got {paths}.")
    block = min(_block, paths)
    return [jnp.arange(first, first + block, dtype=jnp.uint32) for first in range(0, paths, block)]


class _Levels(eqx.Module):
    """Which methods run at which multiples of the finest step."""

    process: AbstractDiffusion
    methods: tuple[AbstractMethod, ...]
    ratios: tuple[int, ...] = eqx.field(static=True)
    need: Need = eqx.field(static=True)
    motions: int = eqx.field(static=True)
    numbers: int = eqx.field(static=True)

    def increments(self, dt, pairs):
        """The finest increments of each path."""
        z = unpaired(pairs, self.numbers)
        if self.need == "three-point":
            z = jnp.where(jnp.abs(z) > _three_point_bound, jnp.sign(z) * math.sqrt(3), 0)
        return jax.vmap(lambda z: increment(self.need, self.motions, dt, z))(z)

    def step(self, level: int, t, x, dt, total, first):
        """One step of a level for each path."""
        method = self.methods[level]

        def one(x, total):
            if isinstance(method, AbstractPostprocessed):
                x = jnp.where(first, method.enter(self.process, t, x, dt, total), x)
            return method.step(self.process, t, x, dt, total)

        return jax.vmap(one)(x, total)

    def leave(self, level: int, t, x, dt, total):
        """The states of a level's paths at the end, from the increments after it."""
        method = self.methods[level]
        if not isinstance(method, AbstractPostprocessed):
            return x
        return jax.vmap(lambda y, total: method.leave(self.process, t, y, dt, total))(x, total)


@eqx.filter_jit
def _integrate(
    levels: _Levels,
    words: UInt32[Array, "2"],
    path: UInt32[Array, " n"],
    x0: Float[Array, " d"],
    dt: Float[Array, ""],
    steps: int | Int[Array, ""],
) -> tuple[Float[Array, "levels n d"], Float[Array, "n m"]]:
    def draw(k):
        return normal_pairs(words, path, k.astype(jnp.uint32), -(-levels.numbers // 2), x0.dtype)

    def fine_step(k, carry):
        states, w, pairs = carry
        fine = levels.increments(dt, pairs)
        states = [_climb(levels, i, s, k, dt, fine, steps) for i, s in enumerate(states)]
        # Drawn a step ahead, as in `engine`: computed once.
        return states, w + jnp.where(k < steps, fine.dw, 0), draw(k + 1)

    first = draw(jnp.asarray(0))
    none = jax.tree.map(jnp.zeros_like, levels.increments(dt, first))
    start = [(jnp.broadcast_to(x0, (path.size, x0.size)), none) for _ in levels.ratios]
    # The state of a method that steps another variable depends on the increment after it: on one more step.
    extra = max(
        r if isinstance(m, AbstractPostprocessed) else 0 for m, r in zip(levels.methods, levels.ratios, strict=True)
    )
    states, w, _ = lax.fori_loop(0, steps + extra, fine_step, (start, none.dw, first))
    return jnp.stack([x for x, _ in states]), w


def _climb(levels: _Levels, level: int, state, k, dt, fine, steps):
    """Adds a fine increment to a level's own. When that is complete, steps; or leaves, if it is the first after t1."""
    ratio = levels.ratios[level]
    x, total = state
    total = fine if ratio == 1 else jax.vmap(joined, in_axes=(0, 0, None))(total, fine, dt)
    t, length = (k + 1 - ratio).astype(dt.dtype) * dt, ratio * dt

    def wait(x, total):
        return x, total

    def step(x, total):
        return levels.step(level, t, x, length, total, k + 1 == ratio), jax.tree.map(jnp.zeros_like, total)

    def leave(x, total):
        return levels.leave(level, t, x, length, total), total

    due = (k + 1) % ratio == 0
    now = jnp.where(due & (k < steps), 1, jnp.where(k + 1 == steps + ratio, 2, 0))
    return lax.switch(now, [wait, step, leave], x, total)


def _study(
    ladder: _Ladder, samples: Float[np.ndarray, "levels n"], approximate: bool, kind: str, method: str, reference: str
) -> OrderStudy:
    """The study of errors |mean of samples| over paths, against a reference that is `approximate` or exact.

    Only weak errors against an approximate reference are its error plus theirs, and are fitted so.
    """
    finest = ladder.finest if approximate and kind == "weak" else 0.0
    if not np.all(np.isfinite(samples)):
        raise FloatingPointError(f"Paths of {method} or of the reference became non-finite: use smaller `dts`.")
    fit = power_law(ladder.dts, samples, finest)
    reference_dt = ladder.finest if approximate else 0.0
    errors, paths = np.abs(fit.means), samples.shape[1]
    return OrderStudy(
        ladder.dts, errors, fit.sem, fit.order, fit.interval, kind, method, reference, reference_dt, paths
    )


class PowerLaw(eqx.Module):
    """Means with standard errors, and the order p of |mean| = C size^p with its 95 % interval.

    The interval is infinite if some mean can't be told from 0, and the order then means nothing.
    """

    means: Float[np.ndarray, " levels"]
    sem: Float[np.ndarray, " levels"]
    order: float
    interval: tuple[float, float]


def power_law(
    sizes: Float[np.ndarray, " levels"], samples: Float[np.ndarray, "levels n"], finest: float = 0.0
) -> PowerLaw:
    """The power law C (size^p - finest^p) of the means of `samples`; column i of them may be one path at all sizes.

    There must be two sizes at least, and 64 columns.
    """
    rounding = _roundings * np.finfo(samples.dtype).eps * max(1.0, float(np.max(np.abs(samples))))
    paths = samples.shape[1]
    means = samples.mean(axis=1)
    sem = samples.std(axis=1, ddof=1) / np.sqrt(paths)
    weights = _weights(means, sem)
    order = _fit(sizes, np.abs(means), finest, weights)
    # Delete-one-group jackknife: the errors of all step sizes come from the same paths and are strongly correlated.
    totals = np.stack([samples[:, g::_groups].sum(axis=1) for g in range(_groups)])
    counts = np.array([len(range(g, paths, _groups)) for g in range(_groups)])
    left_out = (totals.sum(axis=0) - totals) / (paths - counts)[:, None]
    orders = np.array([_fit(sizes, np.abs(e), finest, weights) for e in left_out])
    spread = np.sqrt((_groups - 1) / _groups * np.sum((orders - orders.mean()) ** 2))
    half = float(stats.t.ppf(0.975, _groups - 1) * spread)
    interval = order - half, order + half
    if np.any(np.abs(means) < _significant * sem) or np.any(np.abs(means) < rounding):
        # The fit follows noise; the jackknife does not know that the errors might as well have the other sign.
        interval = -np.inf, np.inf
    return PowerLaw(means, sem, order, interval)


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
