"""Ensembles of independent paths of an SDE.

Paths are always computed in blocks of one fixed size, the last one filled up, each by one and the same program.
Together with increments that have an address (`random`) this makes every path a function of the arguments alone: the
bits do not depend on chunks, devices, segments or on what is observed.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Inexact

from ..process import AbstractDiffusion, noise_structure
from .brownian import numbers_per_step
from .clock import Clock, make_schedule
from .engine import Block, Problem, advance, best_stride, start, states
from .method import AbstractMethod, check_method
from .observables import AbstractObservable
from .progress import Progress
from .random import key_words
from .transform import unwrapped

# Numbers of one block that are in flight in a step: enough to be fast, few enough to stay in cache.
_block_numbers = 1 << 16
_block_sizes = (64, 1 << 14)

# Blocks are whole multiples of that many paths, so that vector instructions leave no rest; and blocks come in numbers
# that several cores can share evenly.
_block_unit, _block_share = 64, 4

# Numbers of state and observables held on the device at a time, unless `chunk` says otherwise.
_chunk_numbers = 1 << 24

# How long a call into compiled code may take before Python is asked for Ctrl-C and progress again, in seconds, and
# how many steps it may count at most: a block's int32 counters must not overflow.
_segment_seconds = 0.5
_first_segment = 64
_longest_segment = 1 << 16


class Ensemble(eqx.Module):
    """The outcome of `simulate`.

    `final` holds the paths at `t1`, shape (n, d), NaN for paths that became non-finite; `nonfinite` counts those.
    `ts`, `xs` hold every path at the times of `save_at`, shapes (s,) and (s, n, d). `ensemble["name"]` is the result
    of the observable of that name. `engine` says how steps were compiled, and why not in the fastest way.
    """

    final: Inexact[np.ndarray, "n d"]
    ts: Float[np.ndarray, " s"] | None
    xs: Inexact[np.ndarray, "s n d"] | None
    observed: dict[str, Any]
    nonfinite: int
    method: str
    engine: str
    dt: float
    steps: int
    seconds: float

    def __getitem__(self, name: str) -> Any:
        if name not in self.observed:
            raise KeyError(f"no observable {name!r} in this run; it has {sorted(self.observed)}")
        return self.observed[name]

    def __str__(self) -> str:
        n, d = self.final.shape
        rate = n * self.steps / max(self.seconds, 1e-9)
        lines = [
            f"{n} paths in {d} dimensions, {self.method}, {self.steps} steps of {self.dt:g}, {self.final.dtype}: "
            f"{self.seconds:.2f} s, {rate:.3g} path-steps/s",
            self.engine,
        ]
        if self.nonfinite:
            lines.append(f"{self.nonfinite} paths became non-finite: statistics of the others are biased")
        lines += [f"{name}: {value}" for name, value in self.observed.items()]
        return "\n".join(lines)


def simulate(
    process: AbstractDiffusion,
    method: AbstractMethod,
    x0: Any,
    t1: float,
    dt: float,
    key: Any,
    paths: int | None = None,
    *,
    t0: float = 0.0,
    save_at: Any = None,
    observe: Any = None,
    burn_in: float = 0.0,
    every: int = 1,
    chunk: int | None = None,
    segment: int | None = None,
    mesh: Mesh | None = None,
    checkpoint: str | None = None,
    progress: bool | None = None,
    throw: bool = True,
) -> Ensemble:
    """Simulates independent paths of dX = b(t, X) dt + G(t, X) dB from `t0` to `t1` in steps of `dt`.

    `x0` is one point (d,) for all `paths`, or one point a path, (n, d); the run has its dtype. `t1 - t0` and each time
    in `save_at` must be whole numbers of steps from `t0`. `key` is a `jax.random.key`, or a seed.

    Observables in `observe` sample every `every`-th step once `burn_in` time units have passed since `t0`; with
    `burn_in=0` the first sample is taken after `every` steps.

    The result is the same to the last bit, on one platform and one set of versions, for every `chunk` (paths held in
    memory at a time), `segment` (steps between two returns to Python), `mesh` (devices over which paths are divided),
    and for every choice of `observe` and `save_at`. A run over [t0, t1] in two calls, the second starting from the
    first's `final` at its `t1` with the same key, is the same as one call: increments are addressed by (key, path,
    step), and steps are counted from time 0. For the same reason a run that is to be independent of another needs
    another key; a continuation with another `dt` is such a run.

    `progress` shows a line on standard error; by default only if that is a terminal. Raises `ValueError` or
    `TypeError` for arguments that do not fit, and `FloatingPointError` if any path became non-finite, unless
    `throw=False`: then these paths stop counting, are reported in `nonfinite`, and the rest is a biased sample.
    """
    if checkpoint is not None:
        raise NotImplementedError("`checkpoint` is not available yet: leave it out, and save `final` yourself.")
    x0 = _initial_states(x0, paths)
    clock = Clock(t0, t1, dt)
    schedule = make_schedule(clock, burn_in, every, bool(observe), jnp.asarray(x0[:1]).dtype)
    saves = clock.steps_at("save_at", save_at)
    points = jnp.asarray(x0[:_most_points_probed])
    name = _name(method)
    process, method, transform = unwrapped(process, method, points)
    check_method(method)
    if transform is not None:
        points = jax.vmap(transform.enter)(points)
    _, motions = noise_structure(process, points[0])
    need = method.needs(process, points)
    problem = Problem(
        process=process,
        method=method,
        transform=transform,
        observe=_checked_observables(observe),
        schedule=schedule,
        words=key_words(key),
        need=need,
        motions=motions,
        numbers=numbers_per_step(need, motions, clock.dt),
        stride=0,
    )
    stride, reason = best_stride(problem, points[0])
    problem = dataclasses.replace(problem, stride=stride)
    engine = f"{stride} steps at a time" if stride else f"one step at a time: {reason}"
    run = _Run(problem, clock, x0, saves, _devices(mesh), _segment_length(segment), throw, name, engine)
    began = time.perf_counter()
    run.through(_chunk_blocks(run, chunk), Progress(progress, clock.steps * len(x0)))
    return run.result(time.perf_counter() - began)


class _Run:
    """One simulation on the host: chunks of blocks, segments of steps, and what has come back from them."""

    def __init__(self, problem, clock, x0, saves, devices, segment, throw, name, engine):
        self.clock, self.x0, self.saves = clock, x0, saves
        self.problem, self.segment, self.throw = problem, segment, throw
        self.name, self.engine = name, engine
        self.copies = [(device, _placed(problem, device)) for device in devices] or [(None, problem)]
        n, d = x0.shape
        self.block = _block_size(n, d, problem.numbers)
        self.final = np.empty(x0.shape, x0.dtype)
        self.xs = np.empty((len(saves), *x0.shape), x0.dtype)
        self.totals: dict[str, Any] = {}

    def through(self, blocks_at_a_time: int, progress: "Progress") -> None:
        """Runs all paths, so many blocks at a time."""
        blocks = range(-(-len(self.x0) // self.block))
        for first in range(0, len(blocks), blocks_at_a_time):
            self._chunk([_BlockRun(self, b) for b in blocks[first : first + blocks_at_a_time]], progress)
        progress.close()

    def result(self, seconds: float) -> Ensemble:
        saved = len(self.saves) > 0
        return Ensemble(
            final=self.final,
            ts=np.array([self.clock.time(s) for s in self.saves]) if saved else None,
            xs=self.xs if saved else None,
            observed={k: o.result(self.totals[k]) for k, o in self.problem.observe.items()},
            nonfinite=int(np.sum(np.isnan(self.final).any(axis=1))),
            method=self.name,
            engine=self.engine,
            dt=self.clock.dt,
            steps=self.clock.steps,
            seconds=seconds,
        )

    def _chunk(self, blocks: "list[_BlockRun]", progress: "Progress") -> None:
        done, length = 0, self.segment or _first_segment
        for stop in [*self.saves, self.clock.steps]:
            while done < stop:
                steps = min(length, stop - done)
                began = time.perf_counter()
                for block in blocks:
                    block.advance(done, steps)
                for block in blocks:
                    block.collect()
                bad = [block for block in blocks if block.nonfinite > 0]
                if self.throw and bad:
                    raise FloatingPointError(self._why(bad, done, steps))
                done += steps
                progress.add(steps * sum(b.count for b in blocks))
                if self.segment is None and time.perf_counter() - began < _segment_seconds / 2:
                    length = min(2 * length, _longest_segment)
            if stop in self.saves:
                for block in blocks:
                    self.xs[self.saves.index(stop), block.rows] = block.states(stop)
        for block in blocks:
            self.final[block.rows] = block.states(self.clock.steps)
            self._merge(block)

    def _merge(self, block: "_BlockRun") -> None:
        for name, observable in self.problem.observe.items():
            part = observable.reduce(block.observed(name), block.number)
            seen = name in self.totals
            self.totals[name] = observable.merge(self.totals[name], part) if seen else part

    def _why(self, blocks: "list[_BlockRun]", done: int, steps: int) -> str:
        """What happened in the step that first made a path non-finite, found by going back to the segment's start."""
        first, guilty = steps, blocks[0]
        for block in blocks:
            if block.bad_after(done, first).any():
                low, first, guilty = 0, first, block
                while low < first - 1:
                    middle = (low + first) // 2
                    low, first = (low, middle) if block.bad_after(done, middle).any() else (middle, first)
                first -= 1
        path = guilty.rows.start + int(np.argmax(guilty.bad_after(done, first + 1)))
        before = done + first
        x = jnp.asarray(guilty.states_after(done, first)[path - guilty.rows.start])
        y = x if self.problem.transform is None else self.problem.transform.enter(x)
        t = jnp.asarray(self.clock.time(before), x.dtype)
        drift = np.asarray(self.problem.process.drift(t, y))
        noise = np.asarray(self.problem.process.noise(t, y).mv(jnp.ones(self.problem.motions, x.dtype)))
        if np.any(np.isnan(drift)) or np.any(np.isnan(noise)):
            cause = (
                f"There `drift(t, x)` is {drift} and `noise(t, x)` times ones is {noise}. A common cause is the square "
                "root of a negative number, as for a negative loss under loss-proportional noise: add a constant to it."
            )
        else:
            cause = (
                f"There max |drift|·dt is {np.max(np.abs(drift)) * self.clock.dt:.3g} against max |x| = "
                f"{np.max(np.abs(x)):.3g}: the step is too long. Use a smaller `dt`."
            )
        return (
            f"{sum(b.nonfinite for b in blocks)} of {len(self.x0)} paths became non-finite, the first in the step from "
            f"t={self.clock.time(before):g} (step {before + 1}, path {path}), from x={np.asarray(x)}. {cause} "
            "With `throw=False` the other paths are kept, but they are a biased sample."
        )


class _BlockRun:
    """One block on its way through the run: its device state, and its counters in 64 bits on the host."""

    def __init__(self, run: _Run, number: int):
        self.run, self.number = run, number
        first = number * run.block
        self.count = min(run.block, len(run.x0) - first)
        self.rows = slice(first, first + self.count)
        self.device, self.problem = run.copies[number % len(run.copies)]
        x = np.concatenate([run.x0[self.rows], np.repeat(run.x0[:1], run.block - self.count, axis=0)])
        path = (first + np.arange(run.block)).astype(np.uint32)
        self.state = start(self.problem, *jax.device_put((path, np.arange(run.block) < self.count, x), self.device))
        self.before, self.nonfinite = self.state, 0
        observed = self.state.observed
        self.counters = {k: jax.tree.map(lambda c: np.zeros(c.shape, np.int64), observed[k][0]) for k in observed}

    def advance(self, done: int, steps: int) -> None:
        """Sends the next steps on their way; does not wait for them."""
        self.before = self.state
        self.state = self._after(done, steps)

    def collect(self) -> None:
        """Waits for the steps, and takes what must not stay on the device."""
        self.nonfinite = int(np.sum(_nonfinite(self.state)))
        observed = self.state.observed
        self.counters = {
            k: jax.tree.map(lambda total, c: total + np.asarray(c), self.counters[k], observed[k][0]) for k in observed
        }
        cleared = {k: (jax.tree.map(jnp.zeros_like, counters), running) for k, (counters, running) in observed.items()}
        self.state = eqx.tree_at(lambda b: b.observed, self.state, cleared)

    def states(self, step: int) -> Inexact[np.ndarray, "n d"]:
        """The states of the paths after so many steps, which have just been done; NaN where not finite."""
        return self._states(self.state, step)

    def bad_after(self, done: int, steps: int) -> Bool[np.ndarray, " n"]:
        """Which paths are not finite so many steps after the start of the segment."""
        return np.asarray(_nonfinite(self._after(done, steps)))[: self.count]

    def states_after(self, done: int, steps: int) -> Inexact[np.ndarray, "n d"]:
        return self._states(self._after(done, steps), done + steps)

    def observed(self, name: str) -> tuple[Any, Any]:
        return self.counters[name], jax.tree.map(np.asarray, self.state.observed[name][1])

    def _after(self, done: int, steps: int) -> Block:
        if steps == 0:
            return self.before
        span = np.uint32(self.run.clock.origin + done), np.int32(steps)
        return advance(self.problem, self.before, *jax.device_put(span, self.device))

    def _states(self, block: Block, step: int) -> Inexact[np.ndarray, "n d"]:
        now = jax.device_put(np.uint32(self.run.clock.origin + step), self.device)
        x = np.array(states(self.problem, block, now))[: self.count]
        x[~np.isfinite(x).all(axis=1)] = np.nan
        return x


@jax.jit
def _nonfinite(block: Block) -> Bool[Array, " n"]:
    return block.exists & ~jnp.all(jnp.isfinite(block.x), axis=0)


def _block_size(n: int, d: int, numbers: int) -> int:
    """How many paths make a block: a function of the run alone, because the bits depend on it."""
    fitting = 1 << int(np.log2(max(1, _block_numbers // max(d, numbers))))
    most = int(np.clip(fitting, *_block_sizes))
    blocks = -(-n // most)
    if blocks > 1:
        blocks = -(-blocks // _block_share) * _block_share
    share = -(-n // blocks)
    return max(16, -(-share // _block_unit) * _block_unit if share > _block_unit else 1 << (share - 1).bit_length())


def _name(method: Any) -> str:
    inner = getattr(method, "inner", None)
    return type(method).__name__ + (f"({_name(inner)})" if inner is not None else "")


# States at which a method looks at the noise to choose its formula.
_most_points_probed = 64


def _initial_states(x0: Any, paths: int | None) -> np.ndarray:
    x0 = np.asarray(x0)
    if x0.dtype not in (np.float32, np.float64):
        raise TypeError(
            f"`x0` must have a floating-point dtype, float32 or float64, got {x0.dtype}: write 0.0 for 0, or use "
            "x0.astype(float)."
        )
    x0 = x0.astype(jax.dtypes.canonicalize_dtype(x0.dtype))
    if x0.ndim not in (1, 2) or x0.size == 0:
        raise ValueError(f"`x0` must have shape (d,) for all paths or (n, d), got {x0.shape}.")
    if not np.all(np.isfinite(x0)):
        raise ValueError("`x0` must be finite.")
    if paths is not None and (int(paths) != paths or not 0 < paths < 2**32):
        raise ValueError(f"`paths` must be a positive whole number below 2**32, got {paths}.")
    if x0.ndim == 1:
        return np.broadcast_to(x0, (1 if paths is None else int(paths), x0.size))
    if paths is not None and paths != len(x0):
        raise ValueError(f"`paths` is {paths}, but `x0` has {len(x0)} rows; leave `paths` out when `x0` is (n, d).")
    return x0


def _checked_observables(observe: Any) -> dict[str, AbstractObservable]:
    if not isinstance(observe, Mapping | None):
        raise TypeError(
            f"`observe` must be a dictionary of observables, as in {{'x': sde.Moments()}}, got {observe!r}."
        )
    observe = dict(observe or {})
    for name, observable in observe.items():
        if not isinstance(observable, AbstractObservable):
            raise TypeError(
                f"`observe[{name!r}]` must be an observable such as `sde.Moments()`, got {observable!r}. "
                "For a function, write `sde.Moments(fn)`."
            )
    return observe


def _placed(problem: Problem, device: Any) -> Problem:
    arrays, rest = eqx.partition(problem, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, device), rest)


def _devices(mesh: Mesh | None) -> list:
    if mesh is None:
        return []
    if not isinstance(mesh, Mesh):
        raise TypeError(f'`mesh` must be a `jax.sharding.Mesh`, as from jax.make_mesh((2,), ("paths",)), got {mesh!r}.')
    return list(mesh.devices.flat)


def _segment_length(segment: int | None) -> int | None:
    if segment is not None and (int(segment) != segment or not 0 < segment <= _longest_segment):
        raise ValueError(f"`segment` must be a whole number of steps from 1 to {_longest_segment}, got {segment}.")
    return segment


def _chunk_blocks(run: _Run, chunk: int | None) -> int:
    """Blocks to hold at a time: as many as `chunk` paths need, and at least one a device."""
    if chunk is not None and (int(chunk) != chunk or chunk < 1):
        raise ValueError(f"`chunk` must be a positive whole number of paths, got {chunk}.")
    d = run.x0.shape[1]
    paths = _chunk_numbers // (d * d + 8) if chunk is None else int(chunk)
    return max(len(run.copies), -(-paths // run.block))
