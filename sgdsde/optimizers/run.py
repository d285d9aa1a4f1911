"""Ensembles of independent runs of an optimiser."""

import signal
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact, Int

from solvers import Density, sde
from solvers.clocks import Clocks
from solvers.diagnosis import Diagnosis
from solvers.drawing import draw_paths
from solvers.paths import burn_in, observed, paths_finite, rounding, run_complete, tails
from solvers.provenance import Provenance, bytes_of, provenance_of
from solvers.result import AbstractResult
from solvers.sde.engine import Schedule
from solvers.sde.ensemble import block_size, initial_states
from solvers.sde.interrupt import Interrupts
from solvers.sde.observables import (
    AbstractFollower,
    AbstractObservable,
    MomentsResult,
    checked_observables,
    result_of,
)
from solvers.sde.progress import Progress
from solvers.sde.random import key_words

from .._finite_sum import AbstractFiniteSum
from .blocks import Problem
from .exits import Exits
from .gradients import source_of
from .host import Runs
from .optimizer import AbstractOptimizer

# Steps are counted in 32 bits.
_most_steps = 2**31 - 1


class Ensemble(AbstractResult):
    """The outcome of `run`.

    `final` holds the runs after the last step, shape (n, d), NaN for those that became non-finite; `nonfinite` counts
    these. `steps_saved`, `ts`, `xs` hold every run after the steps of `save_at`, shapes (s,), (s,) and (s, n, d).
    `ensemble["name"]` is the result of the observable of that name. Step k is at the time t = k · `clock`. `complete`
    is False if Ctrl-C ended the run: the result then holds the runs that were through, or if none were, all that were
    being run, after `steps` steps. `clocks` turns times into steps and epochs; `provenance` says what all this was
    computed from.
    """

    final: Inexact[np.ndarray, "n d"]
    steps_saved: Int[np.ndarray, " s"] | None
    ts: Float[np.ndarray, " s"] | None
    xs: Inexact[np.ndarray, "s n d"] | None
    observed: dict[str, Any]
    nonfinite: int
    optimizer: str
    clock: float
    steps: int
    complete: bool
    seconds: float
    burn_in: int = 0
    every: int = 1
    clocks: Clocks | None = None
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def __getitem__(self, name: str) -> Any:
        return result_of(self.observed, name)

    def diagnose(self) -> Diagnosis:
        """Whether runs stayed finite, averages and their errors can be trusted, and rounding does not matter."""
        averaged = [k for k, v in self.observed.items() if isinstance(v, MomentsResult | Density)]
        moments = [k for k, v in self.observed.items() if isinstance(v, MomentsResult)]
        return Diagnosis(
            (
                paths_finite(self.nonfinite, len(self.final), "use a smaller learning rate"),
                run_complete(self.complete, self.steps),
                burn_in(self.ts, self.xs, self.burn_in * self.clock, bool(averaged)),
                rounding(self.final, self.steps),
                tails(self.final, moments),
                *observed(self.observed),
            )
        )

    def plot(self, ax: Any = None) -> Any:
        """Draws the first component on `ax`, or on new axes, which are returned: a fan over `ts`, or a histogram."""
        return draw_paths(self.ts, self.xs, self.final, ax)

    def __str__(self) -> str:
        n, d = self.final.shape
        rate = n * self.steps / max(self.seconds, 1e-9)
        lines = [
            f"{n} runs in {d} dimensions, {self.optimizer}, {self.steps} steps up to t={self.steps * self.clock:g}, "
            f"{self.final.dtype}: {self.seconds:.2f} s, {rate:.3g} steps/s, {bytes_of(self)}"
        ]
        if self.clocks is not None:
            lines.append(f"from t=0 to {self.clocks.at(self.steps * self.clock)}")
        if self.provenance is not None:
            lines.append(self.provenance.brief)
        if not self.complete:
            lines.append(f"interrupted: {n} runs after {self.steps} steps are all there is")
        if self.nonfinite:
            lines.append(f"{self.nonfinite} runs became non-finite: statistics of the others are biased")
        lines += [f"{name}: {value}" for name, value in self.observed.items()]
        return "\n".join(lines)


def run(
    optimizer: AbstractOptimizer,
    loss: Callable,
    x0: Any,
    *,
    steps: int,
    key: Any,
    runs: int | None = None,
    noise: Any = None,
    save_at: Any = None,
    observe: Any = None,
    burn_in: int = 0,
    every: int = 1,
    chunk: int | None = None,
    progress: bool | None = None,
    throw: bool = True,
) -> Ensemble:
    """Independent runs of an optimiser, each of so many `steps`, from `x0`: one point (d,) for all `runs`, or (n, d).

    Gradients are those of

    - minibatches, if the optimiser has a `batch_size`; `loss` must be a finite sum, such as `sg.losses.FiniteSum`;
    - f plus normal noise of covariance Σ = 2D/η, if `noise` is one of `sg.noise`; `loss` is any function of a point.
      A step of SGD is then one of Euler-Maruyama with dt = η for `sg.SGD(loss, noise, η)`, with the same random
      numbers for the same key; `sde.simulate` takes it faster;
    - f itself, without either.

    Observables in `observe` are those of `solvers.sde`; they sample every `every`-th step once `burn_in` steps have
    passed, at times t = k · `optimizer.clock`. `FirstPassage` looks after every step: its times are those of the first
    step after which a run is outside, whatever its `bridge`. `save_at` holds the numbers of steps after which every run
    is kept, 0 for the start.

    `key` is a `jax.random.key`, or a seed. Random numbers are functions of (key, run, step): two optimisers with the
    same key see the same minibatches or normal numbers. The result is the same to the last bit for every `chunk` (runs
    in memory at a time) and every choice of `observe` and `save_at`, on one platform and one set of versions.

    Ctrl-C returns what there is. `progress` shows a line on standard error; by default only if that is a terminal.
    Raises `ValueError` or `TypeError` for arguments that do not fit, and `FloatingPointError` if any run became
    non-finite, unless `throw=False`: then these runs stop counting, are reported in `nonfinite`, and the rest is a
    biased sample.
    """
    if not isinstance(optimizer, AbstractOptimizer):
        raise TypeError(
            f"`optimizer` must be one of `sgdsde.optimizers`, such as `SGD(0.1, 1)`, but got {optimizer!r}."
        )
    x0 = initial_states(x0, "runs", runs)
    steps = _whole("steps", steps, 1, _most_steps)
    burn_in, every = _whole("burn_in", burn_in, 0, steps), _whole("every", every, 1, steps)
    saves = _saves(save_at, steps)
    point = jnp.asarray(x0[0])
    observe = _checked_observables(observe, optimizer, jnp.asarray(x0[:_most_points_probed]))
    if any(not isinstance(o, Exits) for o in observe.values()) and burn_in + every > steps:
        raise ValueError(f"`burn_in`={burn_in} and `every`={every} leave no sample in {steps} steps.")
    problem = Problem(
        optimizer=optimizer,
        source=source_of(optimizer, loss, noise, key_words(key), point),
        observe=observe,
        schedule=Schedule(
            phase=jnp.zeros((), point.dtype),
            dt=optimizer.clock.astype(point.dtype),
            origin=jnp.uint32(0),
            burn_in=jnp.asarray(burn_in, jnp.int32),
            every=jnp.asarray(every, jnp.int32),
        ),
    )
    numbers = problem.source.numbers_per_run(len(point))
    block = block_size(len(x0), len(point), numbers, jax.default_backend())
    # A few runs, of a large model perhaps, are not filled up.
    block = len(x0) if len(x0) < _few else block
    batch = Runs(problem, x0, steps, saves, block, throw)
    began = time.perf_counter()
    with Interrupts(signal.SIGINT) as interrupts:
        line = Progress(progress, steps * len(x0))
        batch.through(_blocks_at_a_time(chunk, block, numbers), line, interrupts)
        line.close()
    seconds = time.perf_counter() - began
    made = provenance_of("sgdsde.optimizers.run", loss, point.size, point.dtype, key, seconds, (optimizer, noise))
    epoch = None
    if isinstance(loss, AbstractFiniteSum) and optimizer.batch_size is not None:
        epoch = loss.count / optimizer.batch_size
    clock = float(optimizer.clock)
    return _result(batch, seconds, burn_in, every, Clocks(clock, clock, epoch), made)


def _result(runs: Runs, seconds: float, burn_in: int, every: int, clocks: Clocks, provenance: Provenance) -> Ensemble:
    final = runs.final[runs.rows]
    clock = clocks.dt
    saved = np.array([k for k in runs.saves if k <= runs.reached], np.int64)
    optimizer = runs.problem.optimizer
    return Ensemble(
        final=final,
        steps_saved=saved if runs.saves else None,
        ts=saved * clock if runs.saves else None,
        xs=runs.xs[: len(saved)][:, runs.rows] if runs.saves else None,
        observed=runs.results(),
        nonfinite=int(np.sum(np.isnan(final).any(axis=1))),
        optimizer=type(optimizer).__name__,
        clock=clock,
        steps=runs.reached,
        complete=runs.reached == runs.steps and bool(runs.rows.all()),
        seconds=seconds,
        burn_in=burn_in,
        every=every,
        clocks=clocks,
        provenance=provenance,
    )


# So many runs and more are filled up to whole blocks, so that different numbers of them are one program.
_few = 16

# Starting points at which observables are tried.
_most_points_probed = 64

# Numbers of states and minibatches held on the device at a time, unless `chunk` says otherwise.
_chunk_numbers = 1 << 24


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer)) or int(value) != value:
        raise TypeError(f"`{name}` must be a whole number of steps, but got {value!r}.")
    if not least <= value <= most:
        raise ValueError(f"`{name}` must be a number of steps from {least} to {most}, but got {value}.")
    return int(value)


def _saves(save_at: Any, steps: int) -> list[int]:
    given = np.atleast_1d(np.asarray([] if save_at is None else save_at))
    whole = np.asarray(given, np.int64) if np.issubdtype(given.dtype, np.number) else given
    if (
        given.ndim != 1
        or np.any(whole != given)
        or np.any((whole < 0) | (whole > steps))
        or np.any(np.diff(whole) <= 0)
    ):
        raise ValueError(f"`save_at` must hold increasing numbers of steps from 0 to {steps}, but got {save_at}.")
    return whole.tolist()


def _checked_observables(observe: Any, optimizer: AbstractOptimizer, x: Any) -> dict[str, AbstractObservable]:
    checked = {}
    for name, observable in checked_observables(observe).items():
        if isinstance(observable, sde.FirstPassage):
            observable.check(x)
            observable = Exits(observable.inside, optimizer.clock)
        elif isinstance(observable, AbstractFollower):
            raise TypeError(
                f"`observe[{name!r}]` follows the paths of a diffusion, and an optimiser has none: got "
                f"{type(observable).__name__}. `Moments`, `Histogram` and `FirstPassage` can be observed."
            )
        checked[name] = observable
    return checked


def _blocks_at_a_time(chunk: int | None, block: int, numbers: int) -> int:
    if chunk is not None and (int(chunk) != chunk or chunk < 1):
        raise ValueError(f"`chunk` must be a positive whole number of runs, got {chunk}.")
    runs = _chunk_numbers // numbers if chunk is None else int(chunk)
    return max(1, -(-runs // block))
