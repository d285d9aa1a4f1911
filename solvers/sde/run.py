"""The host's side of a simulation: blocks of paths, segments of steps, checkpoints, and what comes back from them."""

import contextlib
import signal
import time
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact

from .checkpoint import Store
from .clock import Clock
from .engine import Block, Problem, advance, start, states
from .interrupt import Interrupts
from .leases import Lease
from .progress import Progress

# How long a call into compiled code may take before Python is asked for Ctrl-C and progress again, in seconds, and
# how many steps it may count: a block's int32 counters must not overflow.
_segment_seconds = 0.5
_first_segment = 256
_shortest_segment, longest_segment = 16, 1 << 16

# Seconds between two checkpoints of a block, and between two looks at what other workers have done.
_checkpoint_seconds, _poll_seconds = 10.0, 0.5


class Run:
    """One simulation: which paths are in which block, and what is known of them so far.

    With a store, any number of processes may work on the same run: each claims blocks, and reads those of others.
    """

    def __init__(
        self,
        problem: Problem,
        clock: Clock,
        x0: np.ndarray,
        saves: list[int],
        block: int,
        devices: list,
        segment: int | None,
        throw: bool,
        store: Store | None,
    ):
        self.problem, self.clock, self.x0, self.saves = problem, clock, x0, saves
        self.block, self.segment, self.throw, self.store = block, segment, throw, store
        self.copies = [(device, _placed(problem, device)) for device in devices] or [(None, problem)]
        self.blocks = range(-(-len(x0) // block))
        self.reached = clock.steps
        self.final = np.full(x0.shape, np.nan, x0.dtype)
        self.xs = np.full((len(saves), *x0.shape), np.nan, x0.dtype)
        self.rows = np.zeros(len(x0), bool)
        self.totals: dict[str, Any] = {}

    def through(self, blocks_at_a_time: int, progress: Progress) -> None:
        """Runs all paths, so many blocks at a time, or until the user interrupts."""
        signals = [signal.SIGINT] + ([signal.SIGTERM] if self.store is not None else [])
        with Interrupts(*signals) as interrupts:
            unfinished = self._alone if self.store is None else self._with_others
            last = unfinished(blocks_at_a_time, progress, interrupts)
            self._gather(last)
        progress.close()
        if interrupts.noted != signal.SIGINT:
            interrupts.act()

    def _alone(self, at_a_time: int, progress: Progress, interrupts: Interrupts) -> "list[BlockRun]":
        """Runs block after block, each merged as soon as it is through. Returns those that an interrupt cut short."""
        for first in range(0, len(self.blocks), at_a_time):
            blocks = [BlockRun(self, b) for b in self.blocks[first : first + at_a_time]]
            self._advance(blocks, progress, interrupts, [])
            if interrupts.noted is not None and any(b.done < self.clock.steps for b in blocks):
                return blocks
            for block in blocks:
                self._take(block)
        return []

    def _with_others(self, at_a_time: int, progress: Progress, interrupts: Interrupts) -> "list[BlockRun]":
        """Runs whatever no other worker is running, until all is done, and then reads it from the store."""
        assert self.store is not None
        while True:
            saved = self.store.steps()
            open_blocks = [b for b in self.blocks if saved.get(b, -1) < self.clock.steps]
            leases: dict[int, Lease] = {}
            for b in open_blocks:
                if len(leases) < at_a_time and (lease := self.store.claim(b)) is not None:
                    leases[b] = lease
            if not open_blocks:
                break
            if not leases:
                progress.wait()
                time.sleep(_poll_seconds)
            with contextlib.ExitStack() as stack:
                for lease in leases.values():
                    stack.enter_context(lease)
                blocks = [BlockRun(self, b) for b in leases]
                self._advance(blocks, progress, interrupts, list(leases.values()))
            if interrupts.noted is not None:
                return blocks
        for b in self.blocks:
            block = BlockRun(self, b)
            # The newest file may turn out to be damaged.
            self._advance([block], progress, interrupts, [])
            if block.done < self.clock.steps:
                return [block]
            self._take(block)
        return []

    def _advance(
        self, blocks: "list[BlockRun]", progress: Progress, interrupts: Interrupts, leases: Sequence[Lease]
    ) -> None:
        """Takes the blocks to the end, or to the next segment's end after an interrupt."""
        length, saved_at = self.segment or _first_segment, time.perf_counter()
        for stop in [*self.saves, self.clock.steps]:
            while (late := [b for b in blocks if b.done < stop]) and interrupts.noted is None:
                began = time.perf_counter()
                for block in late:
                    block.advance(min(length, stop - block.done))
                for block in late:
                    block.collect()
                if self.throw and (bad := [b for b in late if b.nonfinite > 0]):
                    raise FloatingPointError(self._why(bad))
                seconds = time.perf_counter() - began
                progress.add(sum(b.last_steps * b.count for b in late))
                if self.segment is None:
                    # The first call includes compilation: segments then grow slowly, but are never too long.
                    growth = min(8.0, _segment_seconds / max(seconds, 1e-6))
                    length = int(np.clip(length * growth, _shortest_segment, longest_segment))
                if time.perf_counter() - saved_at > _checkpoint_seconds:
                    self._save(blocks)
                    saved_at = time.perf_counter()
                for lease in leases:
                    lease.renew()
            for block in blocks:
                if block.done == stop and stop in self.saves:
                    block.keep(self.saves.index(stop))
        self._save(blocks)

    def _save(self, blocks: "list[BlockRun]") -> None:
        if self.store is not None:
            for block in blocks:
                block.save(self.store)

    def _gather(self, unfinished: "list[BlockRun]") -> None:
        """After an interrupt: if no block was through, the state of those that came farthest."""
        if unfinished and not self.rows.any():
            self.reached = max(b.done for b in unfinished)
            for block in unfinished:
                if block.done == self.reached:
                    self._take(block)

    def _take(self, block: "BlockRun") -> None:
        self.rows[block.rows] = True
        self.final[block.rows] = block.states()
        for k, x in block.kept.items():
            self.xs[k, block.rows] = x
        for name, observable in self.problem.observe.items():
            part = observable.reduce(block.observed(name), block.number)
            seen = name in self.totals
            self.totals[name] = observable.merge(self.totals[name], part) if seen else part

    def _why(self, blocks: "list[BlockRun]") -> str:
        """What happened in the step that first made a path non-finite, found by going back to the segment's start."""
        first, guilty = blocks[0].last_steps, blocks[0]
        for block in blocks:
            if block.bad_after(first).any():
                low, first, guilty = 0, first, block
                while low < first - 1:
                    middle = (low + first) // 2
                    low, first = (low, middle) if block.bad_after(middle).any() else (middle, first)
                first -= 1
        path = guilty.rows.start + int(np.argmax(guilty.bad_after(first + 1)))
        before = guilty.began + first
        x = jnp.asarray(guilty.states_after(first)[path - guilty.rows.start])
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
                f"{np.max(np.abs(x)):.3g}: the step is too long. Use a smaller `dt`, or `TamedEuler`."
            )
        return (
            f"{sum(b.nonfinite for b in blocks)} of {len(self.x0)} paths became non-finite, the first in the step from "
            f"t={self.clock.time(before):g} (step {before + 1}, path {path}), from x={np.asarray(x)}. {cause} "
            "With `throw=False` the other paths are kept, but they are a biased sample."
        )


class BlockRun:
    """One block on its way through the run: its device state, and its counters in 64 bits on the host."""

    def __init__(self, run: Run, number: int):
        self.run, self.number = run, number
        first = number * run.block
        self.count = min(run.block, len(run.x0) - first)
        self.rows = slice(first, first + self.count)
        self.device, self.problem = run.copies[number % len(run.copies)]
        x = np.concatenate([run.x0[self.rows], np.repeat(run.x0[:1], run.block - self.count, axis=0)])
        path = (first + np.arange(run.block)).astype(np.uint32)
        self.state = start(self.problem, *jax.device_put((path, np.arange(run.block) < self.count, x), self.device))
        self.nonfinite, self.last_steps = 0, 0
        observed = self.state.observed
        self.counters = {k: jax.tree.map(lambda c: np.zeros(c.shape, np.int64), observed[k][0]) for k in observed}
        self.kept: dict[int, np.ndarray] = {}
        self.done, self.saved = 0, -1
        if run.store is not None and (found := run.store.load(number)) is not None:
            self.saved, arrays, _ = found
            self._restore(self.saved, arrays)
        self.before, self.began = self.state, self.done

    def advance(self, steps: int) -> None:
        """Sends the next steps on their way; does not wait for them."""
        self.before, self.began, self.last_steps = self.state, self.done, steps
        self.state = self._after(steps)
        self.done += steps

    def collect(self) -> None:
        """Waits for the steps, and takes what must not stay on the device."""
        self.nonfinite = int(np.sum(np.asarray(_nonfinite(self.state))))
        observed = self.state.observed
        self.counters = {
            k: jax.tree.map(lambda total, c: total + np.asarray(c), self.counters[k], observed[k][0]) for k in observed
        }
        cleared = {k: (jax.tree.map(jnp.zeros_like, counters), running) for k, (counters, running) in observed.items()}
        self.state = eqx.tree_at(lambda b: b.observed, self.state, cleared)

    def states(self) -> Inexact[np.ndarray, "n d"]:
        """The states of the paths as they are; NaN where not finite."""
        if self.done == 0:
            # Other coordinates give back what they were given to rounding only.
            return np.array(self.run.x0[self.rows])
        return self._states(self.state, self.done)

    def keep(self, save: int) -> None:
        """Remembers the states as those of that number among the times of `save_at`."""
        self.kept[save] = self.states()

    def bad_after(self, steps: int) -> Bool[np.ndarray, " n"]:
        """Which paths are not finite so many steps after the start of the last segment."""
        return np.asarray(_nonfinite(self._after(steps)))[: self.count]

    def states_after(self, steps: int) -> Inexact[np.ndarray, "n d"]:
        return self._states(self._after(steps), self.began + steps)

    def observed(self, name: str) -> tuple[Any, Any]:
        return self.counters[name], jax.tree.map(np.asarray, self.state.observed[name][1])

    def save(self, store: Store) -> None:
        if self.done == self.saved:
            return
        arrays = {"x": np.asarray(self.state.x)}
        arrays |= {f"kept/{k}": x for k, x in self.kept.items()}
        arrays |= {f"observed/{i}": np.asarray(leaf) for i, leaf in enumerate(self._leaves())}
        store.save(self.number, self.done, arrays)
        self.saved = self.done

    def _restore(self, done: int, arrays: dict[str, np.ndarray]) -> None:
        self.done = done
        form = jax.tree.structure((self.counters, {k: o[1] for k, o in self.state.observed.items()}))
        counters, running = jax.tree.unflatten(form, [arrays[f"observed/{i}"] for i in range(form.num_leaves)])
        placed = {k: (self.state.observed[k][0], jax.device_put(running[k], self.device)) for k in running}
        self.counters = counters
        x = jax.device_put(arrays["x"], self.device)
        self.state = Block(self.state.path, self.state.exists, x, placed)
        self.kept = {int(k.split("/")[1]): x for k, x in arrays.items() if k.startswith("kept/")}

    def _leaves(self) -> list[Any]:
        return jax.tree.leaves((self.counters, {k: o[1] for k, o in self.state.observed.items()}))

    def _after(self, steps: int) -> Block:
        if steps == 0:
            return self.before
        span = np.uint32(self.run.clock.origin + self.began), np.int32(steps)
        return advance(self.problem, self.before, *jax.device_put(span, self.device))

    def _states(self, block: Block, step: int) -> Inexact[np.ndarray, "n d"]:
        now = jax.device_put(np.uint32(self.run.clock.origin + step), self.device)
        x = np.array(states(self.problem, block, now))[: self.count]
        x[~np.isfinite(x).all(axis=1)] = np.nan
        return x


@jax.jit
def _nonfinite(block: Block) -> Bool[Array, " n"]:
    return block.exists & ~jnp.all(jnp.isfinite(block.x), axis=0)


def _placed(problem: Problem, device: Any) -> Problem:
    arrays, rest = eqx.partition(problem, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, device), rest)
