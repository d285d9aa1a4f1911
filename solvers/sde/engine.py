"""The compiled part of an ensemble run: blocks of paths advanced by many steps in one call."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, UInt32

from ..process import AbstractDiffusion
from .brownian import Need, increment
from .method import AbstractMethod
from .observables import AbstractObservable
from .random import normal_pairs, unpaired

# Marks a path that has stayed finite, in the place of the step at which it did not.
never = 2**32 - 1


class Schedule(eqx.Module):
    """When steps and samples happen. Steps are counted from time 0, samples from the start of the run."""

    phase: Float[Array, ""]
    dt: Float[Array, ""]
    origin: UInt32[Array, ""]
    burn_in: Int32[Array, ""]
    every: Int32[Array, ""]

    def time(self, step: UInt32[Array, ""]) -> Float[Array, ""]:
        # From the number of the step: adding dt again and again loses the clock in float32.
        return self.phase + step.astype(self.dt.dtype) * self.dt

    def until_sample(self, step: UInt32[Array, ""]) -> Int32[Array, ""]:
        """How many steps after this one the next sample is taken: at least one."""
        since = (step - self.origin).astype(jnp.int32) - self.burn_in
        return jnp.where(since < 0, self.every - since, self.every - since % self.every)


class Problem(eqx.Module):
    """All that a block of paths needs to be advanced."""

    process: AbstractDiffusion
    method: AbstractMethod
    observe: dict[str, AbstractObservable]
    schedule: Schedule
    words: UInt32[Array, "2"]
    need: Need = eqx.field(static=True)
    motions: int = eqx.field(static=True)
    numbers: int = eqx.field(static=True)


class Block(eqx.Module):
    """Paths and the state of their observables. `first_bad` is the step after which a path was non-finite.

    A path that is about to become non-finite stays at its last finite state.
    """

    path: UInt32[Array, " n"]
    exists: Bool[Array, " n"]
    x: Float[Array, "n d"]
    first_bad: UInt32[Array, " n"]
    observed: dict[str, Any]


@eqx.filter_jit
def start(problem: Problem, path: UInt32[Array, " n"], exists: Bool[Array, " n"], x: Float[Array, "n d"]) -> Block:
    """A block of paths at the start of a run."""
    t = problem.schedule.time(problem.schedule.origin)
    observed = {k: o.init(t, x) for k, o in problem.observe.items()}
    return Block(path, exists, x, jnp.full(path.shape, never, jnp.uint32), observed)


@eqx.filter_jit
def advance(problem: Problem, block: Block, first: UInt32[Array, ""], steps: Int32[Array, ""]) -> Block:
    """The block after `steps` more steps, the first of which is number `first`.

    One program serves every block, number of steps and device of a run. That, and not arithmetic, is what makes paths
    the same in every layout: a program for two blocks at once, or for two devices at once, may round differently.
    """
    schedule = problem.schedule

    def draw(step):
        return normal_pairs(problem.words, block.path, step, -(-problem.numbers // 2), block.x.dtype)

    def one_step(i, carry):
        x, first_bad, pairs = carry
        step = first + i.astype(jnp.uint32)
        t = schedule.time(step)

        def one_path(x, z):
            dw = increment(problem.need, problem.motions, schedule.dt, z)
            return problem.method.step(problem.process, t, x, schedule.dt, dw)

        new = jax.vmap(one_path)(x, unpaired(pairs, problem.numbers))
        finite = jnp.all(jnp.isfinite(new), axis=-1)
        was_alive = first_bad == jnp.uint32(never)
        x = jnp.where((was_alive & finite)[:, None], new, x)
        # Drawn a step ahead: as part of the loop's state the numbers are computed once, where XLA would otherwise
        # compute them anew for each use.
        return x, jnp.where(was_alive & ~finite, step + 1, first_bad), draw(step + 1)

    def to_next_sample(carry):
        i, paths, observed = carry
        ahead = schedule.until_sample(first + i.astype(jnp.uint32))
        stop = jnp.minimum(i + ahead, steps)
        # A loop of its own, whose body is the same program whether anything is observed or not: so are the bits.
        paths = lax.fori_loop(i, stop, one_step, paths)
        sampled = stop == i + ahead
        now = first + stop.astype(jnp.uint32)
        observed = lax.cond(sampled, lambda o: _sample(problem, block, o, now, *paths[:2]), lambda o: o, observed)
        return stop, paths, observed

    carry = jnp.zeros_like(steps), (block.x, block.first_bad, draw(first)), block.observed
    if problem.observe:
        _, paths, observed = lax.while_loop(lambda carry: carry[0] < steps, to_next_sample, carry)
    else:
        paths, observed = lax.fori_loop(0, steps, one_step, carry[1]), block.observed
    return Block(block.path, block.exists, paths[0], paths[1], observed)


def _sample(
    problem: Problem,
    block: Block,
    observed: dict[str, Any],
    step: UInt32[Array, ""],
    x: Float[Array, "n d"],
    first_bad: UInt32[Array, " n"],
) -> dict[str, Any]:
    t = problem.schedule.time(step)
    counted = (first_bad == jnp.uint32(never)) & block.exists
    return {k: o.update(observed[k], t, x, counted) for k, o in problem.observe.items()}
