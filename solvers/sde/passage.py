"""When and where paths leave a region for the first time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from .._tracing import traceable
from .observables import AbstractFollower, Paths
from .packing import bits
from .passage_result import FirstPassageResult, crossing_part
from .random import uniform

# What has become of a path: it is still inside, it left, it became non-finite before that, or it only fills a block.
INSIDE, OUT, LOST, ABSENT = range(4)

# What stands for no variance at all, or one that is not known.
_least_variance = 1e-30


class FirstPassage(AbstractFollower):
    """When and where each path leaves the region in which `inside(x)` holds, counted from the start of the run.

    `inside(x)` returns for a point (d,) either a boolean, or better a number that is positive inside: a level function,
    differentiable near the boundary, of any scale. For the ball of radius R, x @ x < R² or R² - x @ x.

    Every path is looked at after each step, whatever `every` and `burn_in` say. Still, a path may leave and come back
    between two looks: exit times come out too long by O(√dt). With a level function l and `bridge=True`, a step from x
    to x' both of which are inside counts as an exit with the probability exp(-2 l(x) l(x') / (|Gᵀ∇l|² dt)) that a
    Brownian bridge between them crosses the boundary, taken for flat, with the noise G at x. That leaves O(dt). What is
    left of a path's chance to have stayed inside so far is compared with one random number for each path. Times of
    crossing within a step are the mean ones of that bridge. Of booleans nothing is known between two looks: a crossing
    counts at the middle of the step, and the error is O(√dt). With `bridge=False` a level function is interpolated
    linearly, with the same order of error.

    Methods that look at another variable than they step, such as `LeimkuhlerMatthews`, are followed in what they
    step. With three-point numbers steps are no Brownian motion: the correction is for normal ones.

    Under `TimeChanged` exit times are times, not readings of the clock on which the steps are of equal length. Let such
    a run go on until all have left: at its end, those still inside have been watched for different times.

    Paths go on after they left. Where they blow up then, `simulate` takes `throw=False`.

    Source: Gobet, "Weak approximation of killed diffusion using Euler schemes", Stochastic Processes and their
    Applications 87, 2000, for both orders.
    """

    inside: Callable
    bridge: bool = eqx.field(static=True)
    paths: Paths | None

    def __init__(self, inside: Callable, bridge: bool = True):
        if not callable(inside):
            raise TypeError(
                f"`inside` must be a function of one point (d,), as in `lambda x: 1 - x @ x`, got {inside!r}."
            )
        if not isinstance(bridge, bool):
            raise TypeError(f"`bridge` must be True or False, got {bridge!r}.")
        self.inside, self.bridge, self.paths = inside, bridge, None

    def check(self, x):
        levels = np.asarray(jax.vmap(lambda x: _level(self.inside, x))(x))
        if not np.any(levels > 0):
            raise ValueError(
                f"`inside` of `FirstPassage` must hold, or be positive, where paths start, but at x={np.asarray(x[0])} "
                f"it is {levels[0]}. Is its sign wrong?"
            )

    def following(self, paths):
        return eqx.tree_at(lambda o: o.paths, self, paths, is_leaf=lambda leaf: leaf is None)

    def init(self, t, x, weighted):
        paths = self._told()
        level, variance, _ = self._look(t, x)
        status = jnp.where(level > 0, INSIDE, jnp.where(level <= 0, OUT, LOST)).astype(jnp.int32)
        zero = jnp.zeros_like(level)
        watch = Watch(
            status=jnp.where(paths.exists, status, ABSENT),
            point=x,
            level=level,
            variance=variance,
            weight=jax.vmap(lambda x: _weight(paths, t, x))(x) if weighted else zero + 1,
            steps=jnp.zeros(level.shape, jnp.int32),
            elapsed=zero if weighted else None,
            dropped=zero if weighted else None,
            chance=1 / uniform(paths.words, paths.path, paths.origin, x.dtype),
            end=zero,
            span=zero,
            dt=paths.dt,
        )
        return jnp.sum((watch.status == INSIDE) & ~jnp.isfinite(variance), dtype=jnp.int32), watch

    def begin(
        self,
        t: Float[Array, " n"],
        x: Float[Array, "n d"],
        watched: Bool[Array, " n"],
        steps: Int32[Array, " n"],
        watch: "Watch",
    ) -> "Watch":
        """The watch over some paths from states x at times t on, so many steps after the start."""
        level, variance, _ = self._look(t, x)
        return dataclasses.replace(
            watch,
            status=jnp.where(watched, INSIDE, ABSENT).astype(jnp.int32),
            point=x,
            level=level,
            variance=variance,
            steps=steps,
        )

    def update(self, state, t, x, weight):
        unknown, old = state
        level, variance, shift = self._look(t, x)
        weight = weight.astype(x.dtype)
        # Trapezoidal rule; without a change of time all weights of paths that exist and are finite are 1.
        span = self._told().dt * (0.5 * (old.weight + weight))
        watched = old.status == INSIDE
        fine = jnp.all(jnp.isfinite(x), axis=1) & ~jnp.isnan(level)
        chance = self.remaining_chance(x[0], old.chance, old.level, old.variance, level)
        out = watched & fine & (chance < 1)
        stay = watched & fine & ~out

        share = old.level / jnp.where(out, old.level + jnp.abs(level), 1)
        # The straight line to x', or from both ends inside the one to its mirror image behind the boundary.
        beyond = jnp.where(out & (level > 0), 2 * share * level, 0)
        exit_point = old.point + share[:, None] * (x - old.point) - beyond[:, None] * shift
        elapsed, dropped = None, None
        if old.elapsed is not None:
            elapsed, dropped = _added(old.elapsed, old.dropped, span)
            elapsed, dropped = jnp.where(stay, elapsed, old.elapsed), jnp.where(stay, dropped, old.dropped)
        new = Watch(
            status=jnp.where(out, OUT, jnp.where(watched & ~fine, LOST, old.status)),
            point=jnp.where(stay[:, None], x, jnp.where(out[:, None], exit_point, old.point)),
            level=jnp.where(stay, level, old.level),
            variance=jnp.where(stay, variance, old.variance),
            weight=jnp.where(stay, weight, old.weight),
            steps=old.steps + stay.astype(jnp.int32),
            elapsed=elapsed,
            dropped=dropped,
            chance=jnp.where(stay, chance, old.chance),
            end=jnp.where(out, level, old.end),
            span=jnp.where(out, span, old.span),
            dt=old.dt,
        )
        return unknown + jnp.sum(stay & ~jnp.isfinite(variance), dtype=jnp.int32), new

    def reduce(self, state, block):
        unknown, watch = state
        present = watch.status != ABSENT
        status, point = watch.status[present], watch.point[present]
        level, variance, end, span = (
            np.asarray(a[present], np.float64) for a in (watch.level, watch.variance, watch.end, watch.span)
        )
        if watch.elapsed is None:
            watched = watch.steps[present] * np.float64(watch.dt)
        else:
            watched = np.asarray(watch.elapsed, np.float64)[present] - np.asarray(watch.dropped, np.float64)[present]
        crossed = span > 0
        watched[crossed] += span[crossed] * crossing_part(
            level[crossed], np.abs(end[crossed]), np.sqrt(variance[crossed])
        )
        return {block: (status, watched, point[status == OUT], int(unknown))}

    def merge(self, a, b):
        return a | b

    def result(self, total):
        parts = [total[block] for block in sorted(total)]
        status, watched, points = (np.concatenate([p[i] for p in parts]) for i in range(3))
        return FirstPassageResult(
            times=np.where(status == OUT, watched, np.nan),
            points=points,
            watched=np.where(status == LOST, np.nan, watched),
            nonfinite=int(np.sum(status == LOST)),
            uncorrected=sum(p[3] for p in parts),
        )

    def _told(self) -> Paths:
        if self.paths is None:
            raise ValueError("`FirstPassage` has not been told of the paths: use `following` before `init`.")
        return self.paths

    def _look(
        self, t: Float[Array, "*n"], x: Float[Array, "n d"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, "n d"]]:
        """Levels; their variances over a step; and the shifts of x, across the boundary, by which they grow by 1.

        Where nothing is to be corrected, the latter two are 0.
        """
        if not self._bridged(x[0]):
            level = jax.vmap(lambda x: _level(self.inside, x))(x)
            return level, jnp.zeros_like(level), jnp.zeros_like(x)
        paths = self._told()

        def look(t, x):
            y = x if paths.transform is None else paths.transform.enter(x)
            level, variance, along = self._level_and_variance(t, y)
            shift = paths.process.noise(t, y).mv(along) * paths.dt / jnp.where(variance > 0, variance, 1)
            _, shift = jax.jvp(lambda y: self.leave(y), (y,), (shift,))
            return level, variance, jnp.where(jnp.isfinite(shift), shift, 0)

        return jax.vmap(look, in_axes=(0 if jnp.ndim(t) else None, 0))(t, x)

    def leave(self, y: Float[Array, " d"]) -> Float[Array, " d"]:
        """The state of a path whose stepped variable is y."""
        transform = self._told().transform
        return y if transform is None else transform.leave(y)

    def guard(self, t: Float[Array, ""], y: Float[Array, " d"]) -> Float[Array, "2"]:
        """Level and its variance over a step, for a path whose stepped variable is y."""
        if not self._bridged(y):
            level = _level(self.inside, self.leave(y))
            return jnp.stack([level, jnp.zeros_like(level)])
        return jnp.stack(self._level_and_variance(t, y)[:2])

    def remaining_chance(
        self,
        x: Any,
        chance: Float[Array, " n"],
        level: Float[Array, " n"],
        variance: Float[Array, " n"],
        after: Float[Array, " n"],
    ) -> Float[Array, " n"]:
        """`chance` times the probability that a bridge from `level` > 0 to `after` stays above 0; or 0 or less.

        Without a select, which would cut a loop over lanes into many; of the point `x` only the shape matters.
        """
        if not self._bridged(x):
            return jnp.minimum(chance, after / _least_variance)
        exponent = jnp.maximum(level * after / _known(variance), jnp.zeros_like(level))
        return chance - chance * jnp.exp(-2 * exponent)

    def _bridged(self, x: Any) -> bool:
        return self.bridge and eqx.filter_eval_shape(lambda x: _value(self.inside, x), x).dtype != bool

    def _level_and_variance(
        self, t: Float[Array, ""], y: Float[Array, " d"]
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, " m"]]:
        paths = self._told()
        level, gradient = jax.value_and_grad(lambda y: _level(self.inside, self.leave(y)))(y)
        along = paths.process.noise(t, y).transpose().mv(gradient)
        return level, (along @ along) * paths.dt, along


class Watch(eqx.Module):
    """What is known of paths: while they are inside, from the last look at them.

    Once they left, `level` to `dropped` are of the start of the step in which they did, `end` is the level after it,
    `span` its duration, and `point` the point of exit. Under a change of time `elapsed` is a sum with what rounding
    `dropped` (Kahan); otherwise `steps` of length `dt` tell the time. `chance` is the probability to have stayed inside
    so far over a random number: a path is out when that is less than 1.
    """

    status: Int32[Array, " n"]
    point: Float[Array, "n d"]
    level: Float[Array, " n"]
    variance: Float[Array, " n"]
    weight: Float[Array, " n"]
    steps: Int32[Array, " n"]
    elapsed: Float[Array, " n"] | None
    dropped: Float[Array, " n"] | None
    chance: Float[Array, " n"]
    end: Float[Array, " n"]
    span: Float[Array, " n"]
    dt: Float[Array, ""]


def _level(inside: Callable, x: Float[Array, " d"]) -> Float[Array, ""]:
    """The level function, or 1 inside and -1 outside."""
    value = _value(inside, x)
    if value.dtype == bool:
        return jnp.where(value, jnp.ones((), x.dtype), -jnp.ones((), x.dtype))
    return value.astype(x.dtype)


def _value(inside: Callable, x: Float[Array, " d"]) -> Array:
    with traceable("`inside(x)` of `FirstPassage`"):
        value = inside(x)
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise TypeError(
            f"`inside(x)` of `FirstPassage` must return one boolean or real number of JAX, got {type(value).__name__}."
        )
    if value.shape != () or not (value.dtype == bool or jnp.issubdtype(value.dtype, jnp.floating)):
        raise ValueError(
            "`inside(x)` of `FirstPassage` must return one boolean, or one real number that is positive inside, got "
            f"shape {value.shape} and dtype {value.dtype}. Use `jnp.all` or `jnp.min` to make one of several."
        )
    return jnp.asarray(value)


def _weight(paths: Paths, t: Float[Array, ""], x: Float[Array, " d"]) -> Float[Array, ""]:
    assert paths.transform is not None
    return paths.transform.weight(t, x)


def _known(variance: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The variance where it is positive and finite, and else next to nothing: then no bridge crosses."""
    word = bits(variance)
    integer = jnp.int32 if word.dtype == jnp.uint32 else jnp.int64
    with jax.enable_x64(True):
        infinity, least = (bits(jnp.asarray(v, variance.dtype)) for v in (jnp.inf, _least_variance))
        mask = lax.convert_element_type(
            -lax.convert_element_type(word - word.dtype.type(1) < infinity - 1, integer), word.dtype
        )
        return lax.bitcast_convert_type((word & mask) | (least & ~mask), variance.dtype)


def _added(
    total: Float[Array, " n"], dropped: Float[Array, " n"], value: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """A sum, and what rounding drops from it."""
    value = value - dropped
    new = total + value
    return new, (new - total) - value
