"""Ensembles of independent paths of an SDE.

Paths are always computed in blocks of one fixed size, the last one filled up, each by one and the same program.
Together with increments that have an address (`random`) this makes every path a function of the arguments alone: the
bits do not depend on chunks, devices, segments or on what is observed.
"""

import time
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Inexact

from ..process import AbstractDiffusion, noise_structure
from .brownian import numbers_per_step
from .clock import Clock, make_schedule
from .engine import Problem, advance, never, start
from .method import AbstractMethod, check_method
from .observables import AbstractObservable
from .progress import Progress
from .random import key_words

# Numbers of one block that are in flight in a step: enough to be fast, few enough to stay in cache.
_block_numbers = 1 << 16
_block_sizes = (64, 1 << 14)

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
    of the observable of that name.
    """

    final: Inexact[np.ndarray, "n d"]
    ts: Float[np.ndarray, " s"] | None
    xs: Inexact[np.ndarray, "s n d"] | None
    observed: dict[str, Any]
    nonfinite: int
    method: str
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
            f"{self.seconds:.2f} s, {rate:.3g} path-steps/s"
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
    check_method(method)
    x0 = _initial_states(x0, paths)
    clock = Clock(t0, t1, dt)
    schedule = make_schedule(clock, burn_in, every, bool(observe), jnp.asarray(x0[:1]).dtype)
    saves = clock.steps_at("save_at", save_at)
    points = jnp.asarray(x0[:_most_points_probed])
    _, motions = noise_structure(process, points[0])
    need = method.needs(process, points)
    problem = Problem(
        process=process,
        method=method,
        observe=_checked_observables(observe),
        schedule=schedule,
        words=key_words(key),
        need=need,
        motions=motions,
        numbers=numbers_per_step(need, motions, clock.dt),
    )
    run = _Run(problem, clock, x0, saves, _devices(mesh), _segment_length(segment), throw)
    began = time.perf_counter()
    run.through(_chunk_blocks(run, chunk), Progress(progress, clock.steps * len(x0)))
    return run.result(time.perf_counter() - began)


class _Run:
    """One simulation on the host: chunks of blocks, segments of steps, and what has come back from them."""

    def __init__(self, problem, clock, x0, saves, devices, segment, throw):
        self.clock, self.x0, self.saves = clock, x0, saves
        self.problem, self.segment, self.throw = problem, segment, throw
        self.copies = [(device, _placed(problem, device)) for device in devices] or [(None, problem)]
        n, d = x0.shape
        fitting = 1 << int(np.log2(max(1, _block_numbers // max(d, problem.numbers))))
        self.block = int(min(np.clip(fitting, *_block_sizes), max(16, 1 << (n - 1).bit_length())))
        self.final = np.empty((n, d), x0.dtype)
        self.xs = np.empty((len(saves), n, d), x0.dtype)
        self.first_bad = np.full(n, never, np.uint32)
        self.totals: dict[str, Any] = {}

    def through(self, blocks_at_a_time: int, progress: "Progress") -> None:
        """Runs all paths, so many blocks at a time."""
        blocks = range(-(-len(self.x0) // self.block))
        for first in range(0, len(blocks), blocks_at_a_time):
            self._chunk([_BlockRun(self, b) for b in blocks[first : first + blocks_at_a_time]], progress)
        progress.close()

    def result(self, seconds: float) -> Ensemble:
        bad = self.first_bad != never
        self.final[bad] = np.nan
        for k, step in enumerate(self.saves):
            self.xs[k, self.first_bad <= self.clock.origin + step] = np.nan
        saved = len(self.saves) > 0
        return Ensemble(
            final=self.final,
            ts=np.array([self.clock.time(s) for s in self.saves]) if saved else None,
            xs=self.xs if saved else None,
            observed={k: o.result(self.totals[k]) for k, o in self.problem.observe.items()},
            nonfinite=int(bad.sum()),
            method=type(self.problem.method).__name__,
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
                if self.throw and any(np.any(self.first_bad[b.rows] != never) for b in blocks):
                    raise FloatingPointError(self._why(blocks))
                done += steps
                progress.add(steps * sum(b.count for b in blocks))
                if self.segment is None and time.perf_counter() - began < _segment_seconds / 2:
                    length = min(2 * length, _longest_segment)
            if stop in self.saves:
                for block in blocks:
                    self.xs[self.saves.index(stop), block.rows] = block.x
        for block in blocks:
            self.final[block.rows] = block.x
            self._merge(block)

    def _merge(self, block: "_BlockRun") -> None:
        for name, observable in self.problem.observe.items():
            part = observable.reduce(block.observed(name), block.number)
            seen = name in self.totals
            self.totals[name] = observable.merge(self.totals[name], part) if seen else part

    def _why(self, blocks: "list[_BlockRun]") -> str:
        path = int(np.argmin(self.first_bad))
        block = next(b for b in blocks if b.rows.start <= path < b.rows.stop)
        x = jnp.asarray(block.x[path - block.rows.start])
        before = int(self.first_bad[path]) - 1 - self.clock.origin
        t = jnp.asarray(self.clock.time(before), x.dtype)
        drift = np.asarray(self.problem.process.drift(t, x))
        noise = np.asarray(self.problem.process.noise(t, x).mv(jnp.ones(self.problem.motions, x.dtype)))
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
            f"{np.sum(self.first_bad != never)} of {len(self.x0)} paths became non-finite, the first in the step from "
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
        observed = self.state.observed
        self.counters = {k: jax.tree.map(lambda c: np.zeros(c.shape, np.int64), observed[k][0]) for k in observed}

    def advance(self, done: int, steps: int) -> None:
        """Sends the next steps on their way; does not wait for them."""
        span = np.uint32(self.run.clock.origin + done), np.int32(steps)
        self.state = advance(self.problem, self.state, *jax.device_put(span, self.device))

    def collect(self) -> None:
        """Waits for the steps, and takes what must not stay on the device."""
        self.run.first_bad[self.rows] = np.asarray(self.state.first_bad)[: self.count]
        observed = self.state.observed
        self.counters = {
            k: jax.tree.map(lambda total, c: total + np.asarray(c), self.counters[k], observed[k][0]) for k in observed
        }
        cleared = {k: (jax.tree.map(jnp.zeros_like, counters), running) for k, (counters, running) in observed.items()}
        self.state = eqx.tree_at(lambda b: b.observed, self.state, cleared)

    @property
    def x(self) -> Inexact[np.ndarray, "n d"]:
        return np.asarray(self.state.x)[: self.count]

    def observed(self, name: str) -> tuple[Any, Any]:
        return self.counters[name], jax.tree.map(np.asarray, self.state.observed[name][1])


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
