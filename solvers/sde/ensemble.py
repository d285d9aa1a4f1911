"""Ensembles of independent paths of an SDE.

Paths are always computed in blocks of one fixed size, the last one filled up, each by one and the same program.
Together with increments that have an address (`random`) this makes every path a function of the arguments alone: the
bits do not depend on chunks, devices, segments or on what is observed.
"""

import contextlib
import dataclasses
import os
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Inexact

from ..clocks import Clocks, clocks_of
from ..density import Density
from ..diagnosis import Diagnosis, Finding, judged, unknown
from ..drawing import draw_paths
from ..paths import burn_in, observed, paths_finite, rounding, run_complete, tails
from ..process import AbstractDiffusion, noise_structure
from ..provenance import Provenance, bytes_of, recorded
from ..result import AbstractResult
from .brownian import numbers_per_step
from .checkpoint import Store
from .choice import best_loop, in_best_coordinates
from .clock import Clock, make_schedule
from .engine import Problem
from .fingerprint import identity
from .method import AbstractMethod, check_method
from .observables import AbstractFollower, MomentsResult, checked_observables, result_of
from .progress import Progress
from .random import key_words
from .run import Run, longest_segment
from .stability import largest_dimension, longest_step, modes
from .transform import AbstractTransformed, unwrapped

# Numbers of one block that are in flight in a step: enough to be fast, few enough to stay in cache.
_block_numbers = 1 << 16
_block_sizes = (64, 1 << 14)

# Blocks are whole multiples of that many paths, so that vector instructions leave no rest; and blocks come in numbers
# that several cores can share evenly.
_block_unit, _block_share = 64, 4

# States of more numbers than that are those of networks and the like.
_large = 1 << 8

# On a GPU there is one block or a few, of as many times more paths, to fill it.
_wider = {"gpu": 1 << 8}

# Numbers of state and observables held on the device at a time, unless `chunk` says otherwise.
_chunk_numbers = 1 << 24


class Source:
    """The process and the method of an ensemble, for `diagnose`: no tree of numbers, and not in files."""

    def __init__(self, process: AbstractDiffusion, method: Any):
        self.process, self.method = process, method


class Ensemble(AbstractResult):
    """The outcome of `simulate`.

    `final` holds the paths at `t1`, shape (n, d), NaN for paths that became non-finite; `nonfinite` counts those.
    `ts`, `xs` hold every path at the times of `save_at`, shapes (s,) and (s, n, d). `ensemble["name"]` is the result
    of the observable of that name. `engine` says how steps were compiled, and why not in the fastest way. `complete` is
    False if Ctrl-C ended the run: the result then holds the paths that were through, or if none were, all paths that
    were being run, after `steps` steps. `clocks` turns times into steps and epochs of the algorithm that the process is
    the limit of; `provenance` says what all this was computed from.
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
    complete: bool
    seconds: float
    t0: float = 0.0
    burn_in: float = 0.0
    every: int = 1
    clocks: Clocks | None = None
    source: Source | None = eqx.field(default=None, repr=False, metadata={"saved": False})
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def __getitem__(self, name: str) -> Any:
        return result_of(self.observed, name)

    def diagnose(self) -> Diagnosis:
        """Whether paths stayed finite, steps are short enough, averages and their errors can be trusted.

        The step is judged by what the method does to decaying modes of the drift's Jacobian at the last states, which
        takes a second or so.
        """
        averaged = [k for k, v in self.observed.items() if isinstance(v, MomentsResult | Density)]
        moments = [k for k, v in self.observed.items() if isinstance(v, MomentsResult)]
        return Diagnosis(
            (
                paths_finite(self.nonfinite, len(self.final), "use a smaller `dt`, or `TamedEuler`"),
                run_complete(self.complete, self.steps),
                self._step(),
                burn_in(self.ts, self.xs, self.t0 + self.burn_in, bool(averaged)),
                rounding(self.final, self.steps),
                tails(self.final, moments),
                *observed(self.observed),
            )
        )

    def _step(self) -> Finding:
        d = self.final.shape[1]
        states = self.final[np.isfinite(self.final).all(axis=1)]
        if self.source is None:
            return unknown("step", "the process is not in the file of a result")
        if not isinstance(self.source.method, AbstractMethod):
            return unknown("step", "steps are taken in other coordinates, or in another time")
        if d > largest_dimension or not len(states):
            return unknown("step", f"Jacobians are formed for finite states of up to {largest_dimension} numbers")
        rates = modes(self.source.process, self.t0 + self.steps * self.dt, states)
        if not len(rates):
            return judged("step", True, "no mode of the drift decays at the last states", "")
        limit = longest_step(self.source.method, self.dt, rates, self.final.dtype)
        text = f"no decaying mode of the drift grows at dt={self.dt:g}, nor at several times that"
        if np.isfinite(limit):
            text = f"dt={self.dt:g}, and decaying modes of the drift grow above about {limit:.3g}"
        return judged(
            "step", self.dt <= limit, text, "Use a smaller `dt`, or a method for stiff drift such as `SKROCK`"
        )

    def plot(self, ax: Any = None) -> Any:
        """Draws the first component on `ax`, or on new axes, which are returned: a fan over `ts`, or a histogram."""
        return draw_paths(self.ts, self.xs, self.final, ax)

    def __str__(self) -> str:
        n, d = self.final.shape
        rate = n * self.steps / max(self.seconds, 1e-9)
        lines = [
            f"{n} paths in {d} dimensions, {self.method}, {self.steps} steps of {self.dt:g}, {self.final.dtype}: "
            f"{self.seconds:.2f} s, {rate:.3g} path-steps/s, {bytes_of(self)}",
            self.engine,
        ]
        if self.clocks is not None:
            lines.append(f"from t={self.t0:g} to {self.clocks.at(self.t0 + self.steps * self.dt)}")
        if self.provenance is not None:
            lines.append(self.provenance.brief)
        if not self.complete:
            lines.append(f"interrupted: {n} paths after {self.steps} steps are all there is")
        if self.nonfinite:
            lines.append(f"{self.nonfinite} paths became non-finite: statistics of the others are biased")
        lines += [f"{name}: {value}" for name, value in self.observed.items()]
        return "\n".join(lines)


@recorded("process")
def simulate(
    process: AbstractDiffusion,
    method: AbstractMethod | AbstractTransformed,
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
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    throw: bool = True,
) -> Ensemble:
    """Simulates independent paths of dX = b(t, X) dt + G(t, X) dB from `t0` to `t1` in steps of `dt`.

    `x0` is one point (d,) for all `paths`, or one point a path, (n, d); the run has its dtype. `t1 - t0` and each time
    in `save_at` must be whole numbers of steps from `t0`. `key` is a `jax.random.key`, or a seed.

    Observables in `observe` sample every `every`-th step once `burn_in` time units have passed since `t0`; with
    `burn_in=0` the first sample is taken after `every` steps. `FirstPassage` looks at every step, from the first on.

    The result is the same to the last bit, on one platform and one set of versions, for every `chunk` (paths held in
    memory at a time), `segment` (steps between two returns to Python), `mesh` (devices over which paths are divided),
    and for every choice of `observe` and `save_at`. A run over [t0, t1] in two calls, the second starting from the
    first's `final` at its `t1` with the same key, is the same as one call: increments are addressed by (key, path,
    step), and steps are counted from time 0. (Where `engine` says that steps are taken in other coordinates, as
    eigenvectors, it is the same to rounding.) For the same reason a run that is to be independent of another needs
    another key; a continuation with another `dt` is such a run.

    `checkpoint` names a directory, new or from an earlier call. Every ten seconds and at the end the run is saved
    there; the same call goes on from what it finds, with the same bits as without interruption, on any number of
    devices. Several processes may make the same call with the same directory at once, on one machine or on several
    that share it: they divide the blocks of paths among them, and all return the whole result. A directory of another
    run is refused with what differs.

    Ctrl-C returns what there is, see `Ensemble.complete`; a second one raises `KeyboardInterrupt` at once. SIGTERM
    saves a checkpoint first, if there is to be one.

    `progress` shows a line on standard error, or under the cell of a notebook; by default only in a terminal or in a
    notebook. Raises `ValueError` or `TypeError` for arguments that do not fit, and `FloatingPointError` if any path
    became non-finite, unless `throw=False`: then these paths stop counting, are reported in `nonfinite`, and the rest
    is a biased sample.
    """
    x0 = initial_states(x0, "paths", paths)
    n, d = x0.shape
    clock = Clock(t0, t1, dt)
    saves = clock.steps_at("save_at", save_at)
    points = jnp.asarray(x0[:_most_points_probed])
    observe = checked_observables(observe)
    following = {k: o for k, o in observe.items() if isinstance(o, AbstractFollower)}
    for follower in following.values():
        follower.check(points)
    schedule = make_schedule(clock, burn_in, every, len(observe) > len(following), points.dtype)
    name, clocks, source = _name(method), clocks_of(process, clock.dt), Source(process, method)
    process, inner, transform = unwrapped(process, method, points)
    check_method(inner)
    if transform is not None:
        points = jax.vmap(transform.enter)(points)
    # Not points[0], which would be compiled.
    point = jnp.asarray(np.asarray(points)[0])
    _, motions = noise_structure(process, point)
    need = inner.needs(process, points)
    problem = Problem(
        process=process,
        method=inner,
        transform=transform,
        observe=observe,
        schedule=schedule,
        words=key_words(key),
        need=need,
        motions=motions,
        numbers=numbers_per_step(need, motions, clock.dt),
    )
    problem, reason = in_best_coordinates(problem, point)
    devices = _devices(mesh, checkpoint)
    platform = (devices or jax.devices())[0].platform
    block = block_size(n, d, problem.numbers, platform)
    some = np.resize(x0, (block, d)) if n < block else x0[:block]
    problem, engine = best_loop(problem, reason, some, clock, every, n, platform)
    store = None
    if checkpoint is not None:
        store = Store(checkpoint, identity(problem, name, clock, x0, block, saves))
    run = Run(problem, clock, x0, saves, block, devices, _segment_length(segment), throw, store)
    began = time.perf_counter()
    run.through(_chunk_blocks(run, chunk), Progress(progress, clock.steps * len(x0)))
    seconds = time.perf_counter() - began
    result = _result(run, name, engine, seconds)
    return dataclasses.replace(result, burn_in=float(burn_in), every=int(every), clocks=clocks, source=source)


def _result(run: Run, name: str, engine: str, seconds: float) -> Ensemble:
    final, clock = run.final[run.rows], run.clock
    saves = [k for k, step in enumerate(run.saves) if step <= run.reached]
    observed = {}
    for k, observable in run.problem.observe.items():
        # An interrupt may come before the first sample.
        with contextlib.suppress(*([FloatingPointError] if run.reached < clock.steps else [])):
            if k in run.totals:
                observed[k] = observable.result(run.totals[k])
    return Ensemble(
        final=final,
        ts=np.array([clock.time(run.saves[k]) for k in saves]) if run.saves else None,
        xs=run.xs[saves][:, run.rows] if run.saves else None,
        observed=observed,
        nonfinite=int(np.sum(np.isnan(final).any(axis=1))),
        method=name,
        engine=engine,
        dt=clock.dt,
        steps=run.reached,
        complete=run.reached == clock.steps and bool(run.rows.all()),
        seconds=seconds,
        t0=clock.t0,
    )


def block_size(n: int, d: int, numbers: int, platform: str) -> int:
    """How many paths make a block: a function of the run and the platform alone, because the bits depend on it."""
    wider = _wider.get(platform, 1)
    if d > _large:
        # Each path is work enough for all vector units, and may need much memory: no path is there to fill a block.
        return min(1 << (n - 1).bit_length(), 1 << int(np.log2(max(1, _block_numbers * wider // d))))
    fitting = 1 << int(np.log2(max(1, _block_numbers * wider // max(d, numbers))))
    smallest, largest = _block_sizes
    most = int(np.clip(fitting, smallest, largest * wider))
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


def initial_states(x0: Any, name: str, count: int | None) -> np.ndarray:
    """One state for each of `count` paths, or of what else `name` says, from one for all or one for each.

    Raises `ValueError` or `TypeError` for what is neither.
    """
    x0 = np.asarray(x0)
    if x0.dtype not in (np.float32, np.float64):
        raise TypeError(
            f"`x0` must have a floating-point dtype, float32 or float64, got {x0.dtype}: write 0.0 for 0, or use "
            "x0.astype(float)."
        )
    x0 = x0.astype(jax.dtypes.canonicalize_dtype(x0.dtype))
    if x0.ndim not in (1, 2) or x0.size == 0:
        raise ValueError(f"`x0` must have shape (d,) for all {name} or (n, d), got {x0.shape}.")
    if not np.all(np.isfinite(x0)):
        raise ValueError("`x0` must be finite.")
    if count is not None and (int(count) != count or not 0 < count < 2**32):
        raise ValueError(f"`{name}` must be a positive whole number below 2**32, got {count}.")
    if x0.ndim == 1:
        return np.broadcast_to(x0, (1 if count is None else int(count), x0.size))
    if count is not None and count != len(x0):
        raise ValueError(f"`{name}` is {count}, but `x0` has {len(x0)} rows; leave `{name}` out when `x0` is (n, d).")
    return x0


def _devices(mesh: Mesh | None, checkpoint: Any) -> list:
    """The devices of this process in the mesh; other processes have theirs, and share the work through checkpoints."""
    if mesh is None:
        return []
    if not isinstance(mesh, Mesh):
        raise TypeError(f'`mesh` must be a `jax.sharding.Mesh`, as from jax.make_mesh((2,), ("paths",)), got {mesh!r}.')
    devices = list(mesh.devices.flat)
    local = [d for d in devices if d.process_index == jax.process_index()]
    if not local:
        raise ValueError("`mesh` must hold at least one device of this process, but all are those of others.")
    if len(local) < len(devices) and checkpoint is None:
        raise ValueError(
            "`mesh` holds devices of other processes, which share the work through files: give all of them the same "
            "`checkpoint`, a directory that all can read and write."
        )
    return local


def _segment_length(segment: int | None) -> int | None:
    if segment is not None and (int(segment) != segment or not 0 < segment <= longest_segment):
        raise ValueError(f"`segment` must be a whole number of steps from 1 to {longest_segment}, got {segment}.")
    return segment


def _chunk_blocks(run: Run, chunk: int | None) -> int:
    """Blocks to hold at a time: as many as `chunk` paths need, and at least one a device."""
    if chunk is not None and (int(chunk) != chunk or chunk < 1):
        raise ValueError(f"`chunk` must be a positive whole number of paths, got {chunk}.")
    d = run.x0.shape[1]
    paths = _chunk_numbers // (d * d + 8) if chunk is None else int(chunk)
    return max(len(run.copies), -(-paths // run.block))
