"""Rare escapes: how probable they are, and how long they take on average, without waiting for one.

Paths that come closer to the target than others are continued from there many times over. The probability of an escape
is a product of probabilities none of which is small.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32

from .._tracing import traceable
from ..process import AbstractDiffusion, noise_structure
from .brownian import numbers_per_step
from .clock import Clock, make_schedule
from .engine import Problem
from .method import AbstractMethod, check_method
from .random import group, group_size, key_words
from .transform import AbstractTransformed, unwrapped

# The part of the paths that is to reach the next level: about the one of least error for a given number of steps, if
# the steps between two levels are equally many.
_share = 0.25

# More levels than that are no way to the target; a path that takes more steps for one leg does not come to its end.
_most_levels = 1000
_longest = 1 << 22

# Paths in flight, numbers in flight in a step, and steps between two looks at who has arrived.
_lanes, _block_numbers, _segment = (16, 1024), 1 << 16, 64

# Times at which it is checked that the coefficients do not depend on time.
_times = (0.0, 0.37, 11.3)


class Splitting(eqx.Module):
    """The outcome of `splitting`: the mean time `time` until a path from x0 arrives, and its standard error.

    `time` = `loop_time` / `probability`, see there. All three are from `repeats` independent estimates, those of the
    latter two in `loop_times` and `probabilities`. The part `fractions[i]` of the paths at `levels[i]` came to
    `levels[i + 1]` before they came home. `steps` is the number of steps that all paths took.
    """

    time: float
    time_sem: float
    probability: float
    probability_sem: float
    loop_time: float
    loop_time_sem: float
    levels: Float[np.ndarray, " levels"]
    fractions: Float[np.ndarray, " stages"]
    probabilities: Float[np.ndarray, " repeats"]
    loop_times: Float[np.ndarray, " repeats"]
    paths: int
    dt: float
    steps: int
    method: str

    @property
    def repeats(self) -> int:
        """How many independent estimates there are."""
        return len(self.probabilities)

    def __str__(self) -> str:
        return (
            f"mean time {self.time:.4g} ± {self.time_sem:.2g} = loop time {self.loop_time:.4g} ± "
            f"{self.loop_time_sem:.2g} / probability {self.probability:.4g} ± {self.probability_sem:.2g}; "
            f"{len(self.fractions)} stages, {self.repeats} repeats with {self.paths} paths, {self.method}, "
            f"dt {self.dt:g}, {self.steps:.3g} steps"
        )


def splitting(
    process: AbstractDiffusion,
    method: AbstractMethod | AbstractTransformed,
    x0: Any,
    *,
    level: Callable,
    home: float,
    surface: float,
    target: float,
    dt: float,
    key: Any,
    paths: int = 1000,
    repeats: int = 16,
    loops: int = 4,
) -> Splitting:
    """Estimates the mean time T in which a path from x0 comes to level(x) > `target`, however rare that is.

    `level(x)` -> scalar says how far a path has come; `home` < `surface` < `target` are values of it. A path that was
    at level(x) ≤ `home`, or starts, *sets out* when it comes to level(x) > `surface`. Then it comes home, or it
    *arrives* at level(x) > `target`; let a path that arrived start from x0 anew. In the steady state of this, p is the
    probability that a path which sets out arrives before it comes home, and the loop time is the mean time from one
    setting out to the next. The flux of arrivals is p / loop time, and T is exactly its inverse (the relation of Hill).
    All of this is for paths in steps of `dt` that are looked at after each: put `target` well beyond the barrier, where
    hardly any path turns back, else T comes out too long by O(√dt).

    Each of `repeats` independent estimates has so many `paths`. They make 2 `loops` loops from x0, of which the first
    half is thrown away for the steady state, and the second half measured. That state must be reached: take more
    `loops` for a well in which something is slow. From where the last loop ended, paths go on to the next level or
    home; as many as before are continued from where those that came to it did so, and so on up to `target`. The product
    of the parts that came to the next level is an unbiased estimate of p, whatever the levels. These are placed by a
    trial run, with other random numbers, such that about a quarter of the paths comes to the next. Error bars are from
    the scatter between repeats, and hold if p scatters by less than itself; take more `paths` if not.

    What is right does not depend on `level`, but the error does: `level` should grow with the probability to arrive
    from x. If there are several ways to the target, a level under which a worse one looks better at first makes the
    error large and hides it; a few repeats with a much larger p than all others are the sign of that.

    `home` and `surface` are best on either side of where paths mostly are, such that loops are short. Under
    `TimeChanged` times are times, not readings of the clock on which steps are of length `dt`. Methods that look at
    another variable than they step, such as `LeimkuhlerMatthews`, are followed in what they step.

    The same key gives the same result. Raises `ValueError` or `TypeError` for arguments that do not fit,
    `FloatingPointError` if a path or its level became non-finite, and `RuntimeError` if paths do not come to an end, or
    none arrives.

    Source: Cérou and Guyader, "Adaptive multilevel splitting for rare event analysis", Stochastic Analysis and
    Applications 25, 2007, for levels that are placed by quantiles; Bréhier, Gazeau, Goudenège, Lelièvre and Rousset,
    "Unbiasedness of some generalized adaptive multilevel splitting algorithms", Annals of Applied Probability 26, 2016,
    for what is unbiased in discrete time.
    """
    for name, value, least in (("paths", paths, 2), ("repeats", repeats, 2), ("loops", loops, 1)):
        if int(value) != value or not least <= value < 2**31:
            raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value}.")
    if paths * repeats >= 2**32:
        raise ValueError(f"`paths` times `repeats` must be below 2**32, got {paths * repeats}.")
    home, surface, target = float(home), float(surface), float(target)
    if not -np.inf < home < surface < target < np.inf:
        raise ValueError(
            f"`home` < `surface` < `target` must be finite values of `level`, got {home}, {surface} and {target}."
        )
    flights = _Flights(process, method, x0, level, dt, key, paths * repeats)
    began = float(flights.level(flights.y0[None])[0])
    if not began <= surface:
        raise ValueError(
            f"`x0` must be below the surface that paths set out from, but `level(x0)` is {began:.6g} and `surface` is "
            f"{surface:.6g}. Is the sign of `level` wrong?"
        )
    y, loop_times = _loops(flights, home, surface, target, paths * repeats, loops)
    levels = _place(flights, y[::repeats], home, surface, target)
    probabilities, fractions = _climb(flights, y.reshape(repeats, paths, -1), home, levels)
    loop_times = loop_times.reshape(repeats, paths).mean(axis=1)
    p, loop = probabilities.mean(), loop_times.mean()
    if p == 0:
        raise RuntimeError(
            f"No path came to `target` in any of {repeats} repeats: of {paths} paths, the part that came from level to "
            f"level was {np.array2string(fractions, precision=3)} at {np.array2string(levels, precision=4)}. Use more "
            "`paths`, or a `level` that grows with the probability to arrive."
        )
    # The standard error of a ratio of means, to first order.
    scatter = loop_times / loop - probabilities / p
    return Splitting(
        time=float(loop / p),
        time_sem=float(loop / p * scatter.std(ddof=1) / np.sqrt(repeats)),
        probability=float(p),
        probability_sem=float(probabilities.std(ddof=1) / np.sqrt(repeats)),
        loop_time=float(loop),
        loop_time_sem=float(loop_times.std(ddof=1) / np.sqrt(repeats)),
        levels=levels,
        fractions=fractions,
        probabilities=probabilities,
        loop_times=loop_times,
        paths=paths,
        dt=flights.dt,
        steps=flights.steps,
        method=flights.name,
    )


def _loops(flights: "_Flights", home: float, surface: float, target: float, n: int, loops: int):
    """Where paths set out at the end of the last loop, and the mean duration of one of the measured loops of each."""
    start = np.repeat(np.asarray(flights.y0)[None], n, axis=0)
    y, times = flights.until(start, -np.inf, surface).y, np.zeros(n)
    for i in range(2 * loops):
        there = flights.until(y, home, target)
        back = flights.until(np.where(there.up[:, None], start, there.y), -np.inf, surface)
        y = back.y
        if i >= loops:
            times += (there.time + back.time) / loops
    return y, times


def _place(flights: "_Flights", y: Float[np.ndarray, "n d"], home: float, surface: float, target: float):
    """The levels from `surface` to `target`, such that about the same part of the paths comes from one to the next."""
    levels, n = [surface], len(y)
    while True:
        trial = flights.until(y, home, target)
        highest = np.quantile(trial.highest, 1 - _share, method="lower")
        if trial.up.mean() >= _share or highest >= target:
            return np.array([*levels, target])
        if len(levels) == _most_levels:
            raise RuntimeError(
                f"`level` does not lead to `target`={target:g}: {_most_levels} levels with a quarter of the paths "
                f"between two only came to {highest:g}. Is there a way from x0, along which `level` grows?"
            )
        levels.append(float(highest))
        further = flights.until(y, home, highest)
        if not further.up.any():
            raise RuntimeError(f"`paths` are too few: of {n} none came to the next level. Use more.")
        y = further.y[further.up][flights.shuffled(int(further.up.sum()), n)]


def _climb(flights: "_Flights", y: Float[np.ndarray, "repeats paths d"], home: float, levels: Float[np.ndarray, " l"]):
    """Of each repeat the product of the parts that came from level to level, and the mean of each part."""
    repeats, n, _ = y.shape
    parts = np.zeros((repeats, len(levels) - 1))
    alive = np.arange(repeats)
    for k, aim in enumerate(levels[1:]):
        legs = flights.until(y.reshape(len(alive) * n, -1), home, aim)
        up = legs.up.reshape(len(alive), n)
        parts[alive, k] = up.mean(axis=1)
        ends = legs.y.reshape(len(alive), n, -1)
        reached = up.any(axis=1)
        # All ends are continued equally often, but for a rest that falls on some of them at random.
        continued = [e[u][flights.shuffled(int(u.sum()), n)] for e, u in zip(ends[reached], up[reached], strict=True)]
        alive = alive[reached]
        if not continued:
            break
        y = np.stack(continued)
    weight = np.cumprod(np.hstack([np.ones((repeats, 1)), parts]), axis=1)[:, :-1]
    with np.errstate(invalid="ignore"):
        return np.prod(parts, axis=1), np.sum(weight * parts, axis=0) / np.sum(weight, axis=0)


class _Legs(eqx.Module):
    """How paths ended: the stepped variable, whether above, the highest level they saw, and how long it took."""

    y: Float[np.ndarray, "n d"]
    up: Bool[np.ndarray, " n"]
    highest: Float[np.ndarray, " n"]
    time: Float[np.ndarray, " n"]


class _Flights:
    """Paths simulated until they come above one level or below another; each call with random numbers of its own."""

    def __init__(self, process: Any, method: Any, x0: Any, level: Callable, dt: float, key: Any, most: int):
        x0 = np.asarray(x0)
        if x0.ndim != 1 or not np.issubdtype(x0.dtype, np.floating) or not np.all(np.isfinite(x0)):
            raise ValueError(
                f"`x0` must be one finite point of shape (d,) and floating dtype, got shape {x0.shape}, {x0.dtype}."
            )
        x = jnp.asarray(x0)
        clock = Clock(0.0, dt, dt)
        self.name, self.dt = type(method).__name__, clock.dt
        process, method, transform = unwrapped(process, method, x[None])
        check_method(method)
        self.y0 = x if transform is None else transform.enter(x)
        _, motions = noise_structure(process, self.y0)
        _check_autonomous(process, self.y0)
        _check_level(level, x)
        need = method.needs(process, self.y0[None])
        problem = Problem(
            process=process,
            method=method,
            transform=transform,
            observe={},
            schedule=make_schedule(clock, 0.0, 1, False, x.dtype),
            words=key_words(key),
            need=need,
            motions=motions,
            numbers=numbers_per_step(need, motions, clock.dt),
        )
        self.run = _Run(problem, level)
        fitting = int(np.clip(_block_numbers // max(x.size, problem.numbers), *_lanes))
        self.lanes = min(fitting, 1 << (most - 1).bit_length())
        self.calls, self.steps = 0, 0

    def level(self, y: Float[Array, "n d"]) -> Float[np.ndarray, " n"]:
        return np.asarray(jax.vmap(self.run.height)(y))

    def shuffled(self, count: int, n: int) -> Int[np.ndarray, " n"]:
        """n of the numbers below `count`, equally often but for the rest."""
        self.calls += 1
        words = [int(w) for w in self.run.problem.words]
        return np.resize(np.random.default_rng([*words, self.calls]).permutation(count), n)

    def until(self, y: Float[np.ndarray, "n d"], low: float, high: float) -> _Legs:
        """The paths from these starts until they are at `low` or below, or above `high`.

        So many are in flight at a time; who arrives makes place for the next. Steps are numbered through, so that each
        path has random numbers of its own, addressed by its place among the starts.
        """
        self.calls += 1
        words = key_words(jax.random.fold_in(jax.random.wrap_key_data(self.run.problem.words), self.calls))
        run = dataclasses.replace(self.run, problem=dataclasses.replace(self.run.problem, words=words))
        n, dtype = len(y), np.asarray(y).dtype
        between = jnp.asarray(low, dtype), jnp.asarray(high, dtype)
        legs = _Legs(np.empty_like(y), np.empty(n, bool), np.empty(n), np.empty(n))
        lanes = _vacant(self.lanes, y.shape[1], dtype)
        job, age = np.full(self.lanes, -1), np.zeros(self.lanes, np.int64)
        waiting, left, first = 0, n, 0
        while left:
            vacant = np.flatnonzero(job < 0)[: n - waiting]
            if len(vacant):
                job[vacant] = np.arange(waiting, waiting + len(vacant))
                lanes = lanes.boarded(vacant, job[vacant], y[job[vacant]])
                age[vacant] = 0
                waiting += len(vacant)
            flown = _fly(run, *between, lanes, jnp.asarray(first, jnp.uint32))
            lanes = jax.tree.map(lambda a: np.array(a), flown)
            first, age = first + _segment, age + _segment
            if lanes.bad.any():
                raise FloatingPointError(
                    f"A path or its level became non-finite, after it was at level {lanes.highest[lanes.bad][0]:.6g}. "
                    "Use a smaller `dt`, or `TamedEuler`."
                )
            done = np.flatnonzero((job >= 0) & lanes.done)
            k = job[done]
            legs.y[k], legs.up[k], legs.highest[k] = lanes.y[done], lanes.up[done], lanes.highest[done]
            legs.time[k] = self.dt * lanes.time[done]
            self.steps += int(lanes.steps[done].sum())
            job[done] = -1
            left -= len(done)
            if np.max(age[job >= 0], initial=0) > _longest or first > 2**32 - 2 * _segment:
                raise RuntimeError(
                    f"A path came neither to level {low:.6g} nor to {high:.6g} in {_longest} steps of dt={self.dt:g}. "
                    "`home` and `surface` must be levels that paths come to all the time."
                )
        return legs


class _Lanes(eqx.Module):
    """Paths in flight. `time` is in steps, each with the weight of its start; at `fresh` ones nobody has looked yet."""

    job: UInt32[np.ndarray | Array, " n"]
    y: Float[np.ndarray | Array, "n d"]
    fresh: Bool[np.ndarray | Array, " n"]
    done: Bool[np.ndarray | Array, " n"]
    up: Bool[np.ndarray | Array, " n"]
    bad: Bool[np.ndarray | Array, " n"]
    highest: Float[np.ndarray | Array, " n"]
    time: Float[np.ndarray | Array, " n"]
    steps: Int32[np.ndarray | Array, " n"]

    def boarded(self, places, job, y) -> "_Lanes":
        new = jax.tree.map(np.array, self)
        new.job[places], new.y[places] = job, y
        new.fresh[places], new.done[places], new.up[places] = True, False, False
        new.highest[places], new.time[places], new.steps[places] = -np.inf, 0, 0
        return new


def _vacant(n: int, d: int, dtype: Any) -> _Lanes:
    no = np.zeros(n, bool)
    return _Lanes(
        job=np.zeros(n, np.uint32),
        y=np.zeros((n, d), dtype),
        fresh=no,
        done=~no,
        up=no,
        bad=no,
        highest=np.full(n, -np.inf, dtype),
        time=np.zeros(n, dtype),
        steps=np.zeros(n, np.int32),
    )


class _Run(eqx.Module):
    """What paths do, for compiled code."""

    problem: Problem
    function: Callable

    def height(self, y: Float[Array, " d"]) -> Float[Array, ""]:
        transform = self.problem.transform
        return jnp.asarray(self.function(y if transform is None else transform.leave(y))).astype(y.dtype)

    def weight(self, y: Float[Array, " d"]) -> Float[Array, ""]:
        transform = self.problem.transform
        if transform is None or not transform.weighted:
            return jnp.ones((), y.dtype)
        return transform.weight(jnp.zeros((), y.dtype), transform.leave(y))


@eqx.filter_jit
def _fly(run: _Run, low: Float[Array, ""], high: Float[Array, ""], lanes: _Lanes, first: UInt32[Array, ""]) -> _Lanes:
    problem = run.problem
    dtype, law = lanes.y.dtype, problem.law
    size = group_size(dtype, law)
    shape = (problem.numbers, lanes.job.size)
    zero = jnp.zeros((), dtype)

    def looked(lanes, y, active):
        height = jax.vmap(run.height)(y)
        fine = jnp.all(jnp.isfinite(y), axis=1) & ~jnp.isnan(height)
        up = active & fine & (height > high)
        down = active & fine & (height <= low)
        return dataclasses.replace(
            lanes,
            y=jnp.where(active[:, None] & fine[:, None], y, lanes.y),
            done=lanes.done | up | down | (active & ~fine),
            up=lanes.up | up,
            bad=lanes.bad | (active & ~fine),
            highest=jnp.where(active & fine, jnp.maximum(lanes.highest, height), lanes.highest),
        )

    def one_step(lanes, z):
        active = ~lanes.done
        weight = jnp.where(active, jax.vmap(run.weight)(lanes.y), 0)
        y = jax.vmap(lambda y, z: problem.step(zero, y, z))(lanes.y, z)
        lanes = dataclasses.replace(lanes, time=lanes.time + weight, steps=lanes.steps + active.astype(jnp.int32))
        return looked(lanes, y, active)

    def steps_of_group(k, lanes):
        component = lax.broadcasted_iota(jnp.uint32, shape, 0)
        number = first // jnp.uint32(size) + k.astype(jnp.uint32)
        numbers = group(problem.words, jnp.broadcast_to(lanes.job, shape), number, component, dtype, law)
        for z in numbers:
            lanes = one_step(lanes, z.T)
        return lanes

    lanes = looked(lanes, lanes.y, lanes.fresh)
    lanes = dataclasses.replace(lanes, fresh=jnp.zeros_like(lanes.fresh))
    return lax.fori_loop(0, _segment // size, steps_of_group, lanes)


def _check_level(level: Any, x: Float[Array, " d"]) -> None:
    if not callable(level):
        raise TypeError(f"`level` must be a function of one point (d,), as in `lambda x: x[0]`, got {level!r}.")
    with traceable("`level(x)`"):
        value = eqx.filter_eval_shape(level, x)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"`level(x)` must return a real scalar of floating dtype, got {value}.")


def _check_autonomous(process: AbstractDiffusion, y: Float[Array, " d"]) -> None:
    def coefficients(t):
        t = jnp.asarray(t, y.dtype)
        noise = process.noise(t, y)
        return jnp.append(process.drift(t, y), noise.mv(jnp.ones(noise.in_size(), y.dtype)))

    values = [np.asarray(coefficients(t)) for t in _times]
    if any(not np.array_equal(v, values[0], equal_nan=True) for v in values):
        raise ValueError(
            "`splitting` needs coefficients that do not depend on time, but `drift(t, x)` or `noise(t, x)` changes "
            "with t. Use `FirstPassage` with `simulate`."
        )
