"""The host's side of an ensemble of runs: blocks of runs, segments of steps, and what comes back from them."""

import contextlib
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact

from solvers.sde.interrupt import Interrupts
from solvers.sde.progress import Progress

from .blocks import Block, Problem, advance, nonfinite, start

# How long a call into compiled code may take before Python is asked for Ctrl-C and progress again, in seconds, and
# how many steps it may count: a block's int32 counters must not overflow.
_segment_seconds = 0.5
_first_segment = 256
_shortest_segment, _longest_segment = 16, 1 << 16


class Runs:
    """One ensemble: which runs are in which block, and what is known of them so far."""

    def __init__(self, problem: Problem, x0: np.ndarray, steps: int, saves: list[int], block: int, throw: bool):
        self.problem, self.x0, self.steps, self.saves = problem, x0, steps, saves
        self.block, self.throw, self.reached = block, throw, steps
        self.final = np.full(x0.shape, np.nan, x0.dtype)
        self.xs = np.full((len(saves), *x0.shape), np.nan, x0.dtype)
        self.rows = np.zeros(len(x0), bool)
        self.totals: dict[str, Any] = {}

    def through(self, at_a_time: int, progress: Progress, interrupts: Interrupts) -> None:
        """Takes all blocks to the end, so many at a time, or until the user interrupts."""
        blocks = range(-(-len(self.x0) // self.block))
        for first in range(0, len(blocks), at_a_time):
            group = [_BlockRun(self, b) for b in blocks[first : first + at_a_time]]
            self._advance(group, progress, interrupts)
            if interrupts.noted is not None and group[0].done < self.steps:
                if first == 0:
                    self.reached = group[0].done
                    self._take(group)
                return
            self._take(group)

    def results(self) -> dict[str, Any]:
        """The results of all observables; after an interrupt, of those that have seen something."""
        results = {}
        for name, total in self.totals.items():
            with contextlib.suppress(*([FloatingPointError] if self.reached < self.steps else [])):
                results[name] = self.problem.observe[name].result(total)
        return results

    def _advance(self, blocks: "list[_BlockRun]", progress: Progress, interrupts: Interrupts) -> None:
        length = _first_segment
        for stop in [*self.saves, self.steps]:
            while blocks[0].done < stop and interrupts.noted is None:
                began = time.perf_counter()
                taken = min(length, stop - blocks[0].done)
                for block in blocks:
                    block.advance(taken)
                for block in blocks:
                    block.collect()
                if self.throw and (bad := [b for b in blocks if b.nonfinite > 0]):
                    raise FloatingPointError(self._why(bad))
                progress.add(sum(taken * b.count for b in blocks))
                # The first call includes compilation: segments then grow slowly, but are never too long.
                growth = min(8.0, _segment_seconds / max(time.perf_counter() - began, 1e-6))
                length = int(np.clip(length * growth, _shortest_segment, _longest_segment))
            if blocks[0].done == stop and stop in self.saves:
                for block in blocks:
                    self.xs[self.saves.index(stop), block.rows] = block.points(block.state)

    def _take(self, blocks: "list[_BlockRun]") -> None:
        for block in blocks:
            self.rows[block.rows] = True
            self.final[block.rows] = block.points(block.state)
            for name, observable in self.problem.observe.items():
                part = observable.reduce(block.observed(name), block.number)
                seen = name in self.totals
                self.totals[name] = observable.merge(self.totals[name], part) if seen else part

    def _why(self, blocks: "list[_BlockRun]") -> str:
        """What happened in the step that first made a run non-finite, found by going back to the segment's start."""
        first, guilty = min(((b.first_bad(), b) for b in blocks), key=lambda pair: pair[0])
        run = int(np.argmax(np.asarray(nonfinite(guilty.after(first + 1)))[: guilty.count]))
        x = guilty.points(guilty.after(first))[run]
        step = guilty.began + first
        bad = sum(b.nonfinite for b in blocks)
        return (
            f"{bad} of {len(self.x0)} runs became non-finite, the first in step {step + 1} (run "
            f"{guilty.rows.start + run}), from x={x}. Either the loss or its gradient is not finite there, as a "
            "root of a negative number is not, or the learning rate is too large: on a quadratic loss SGD is stable "
            "below 2/λ_max of the Hessian. With `throw=False` the other runs are kept, but they are a biased sample."
        )


class _BlockRun:
    """One block on its way: its device state, and its counters in 64 bits on the host."""

    def __init__(self, runs: Runs, number: int):
        self.problem, self.number = runs.problem, number
        first = number * runs.block
        self.count = min(runs.block, len(runs.x0) - first)
        self.rows = slice(first, first + self.count)
        x = np.concatenate([runs.x0[self.rows], np.repeat(runs.x0[:1], runs.block - self.count, axis=0)])
        numbers = np.arange(runs.block)
        self.state = start(
            self.problem, *jax.device_put(((first + numbers).astype(np.uint32), numbers < self.count, x))
        )
        self.counters = {k: jax.tree.map(lambda c: np.zeros(c.shape, np.int64), o[0]) for k, o in self._observed()}
        self.nonfinite, self.done = 0, 0
        self.before, self.began, self.last_steps = self.state, 0, 0

    def advance(self, steps: int) -> None:
        """Sends the next steps on their way; does not wait for them."""
        self.before, self.began, self.last_steps = self.state, self.done, steps
        self.state = self.after(steps)
        self.done += steps

    def collect(self) -> None:
        """Waits for the steps, and takes what must not stay on the device."""
        self.nonfinite = int(np.sum(np.asarray(nonfinite(self.state))))
        for k, (counters, _) in self._observed():
            self.counters[k] = jax.tree.map(lambda total, c: total + np.asarray(c), self.counters[k], counters)
        cleared = {k: (jax.tree.map(jnp.zeros_like, counters), rest) for k, (counters, rest) in self._observed()}
        self.state = eqx.tree_at(lambda b: b.observed, self.state, cleared)

    def observed(self, name: str) -> tuple[Any, Any]:
        return self.counters[name], jax.tree.map(np.asarray, self.state.observed[name][1])

    def points(self, block: Block) -> Inexact[np.ndarray, "n d"]:
        """Where the runs are; NaN where not finite."""
        x = np.array(block.x.T)[: self.count]
        x[np.asarray(nonfinite(block))[: self.count]] = np.nan
        return x

    def first_bad(self) -> int:
        """How many steps of the last segment all runs were finite."""
        low, high = 0, self.last_steps
        while low < high - 1:
            middle = (low + high) // 2
            low, high = (low, middle) if np.asarray(nonfinite(self.after(middle))).any() else (middle, high)
        return high - 1

    def after(self, steps: int) -> Block:
        """The block so many steps after the start of the last segment."""
        if steps == 0:
            return self.before
        return advance(self.problem, self.before, *jax.device_put((np.uint32(self.began), np.int32(steps))))

    def _observed(self):
        return self.state.observed.items()
