"""The compiled part of an ensemble run: blocks of paths advanced by many steps in one call."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, UInt32

from ..process import AbstractDiffusion
from .levy import DirectionalArea, directional_count, matrix_count, sample_matrix
from .method import AbstractMethod, AreaKind, Increment
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

    def is_sampled(self, step: UInt32[Array, ""]) -> Bool[Array, ""]:
        since = (step - self.origin).astype(jnp.int32) - self.burn_in
        return (since > 0) & (since % self.every == 0)


class Problem(eqx.Module):
    """All that a block of paths needs to be advanced."""

    process: AbstractDiffusion
    method: AbstractMethod
    observe: dict[str, AbstractObservable]
    schedule: Schedule
    words: UInt32[Array, "2"]
    area: AreaKind = eqx.field(static=True)
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


def numbers_per_step(area: AreaKind, motions: int, dt: float) -> int:
    """How many normal numbers one step of one path takes: its increments, and what its Lévy area is made of."""
    if area == "direction":
        return motions + directional_count(motions, dt)
    if area == "matrix":
        return motions + matrix_count(motions, dt)
    return motions


def increment(area: AreaKind, motions: int, dt: Float[Array, ""], z: Float[Array, " numbers"]) -> Increment:
    """The Brownian increment of one step from standard normal numbers."""
    dw = jnp.sqrt(dt) * z[:motions]
    if area == "direction":
        return Increment(dw, DirectionalArea(dt, dw, z[motions:]))
    if area == "matrix":
        return Increment(dw, sample_matrix(dt, dw, z[motions:]))
    return Increment(dw)


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
        block, pairs = carry
        step = first + i.astype(jnp.uint32)
        t = schedule.time(step)

        def one_path(x, z):
            dw = increment(problem.area, problem.motions, schedule.dt, z)
            return problem.method.step(problem.process, t, x, schedule.dt, dw)

        x = jax.vmap(one_path)(block.x, unpaired(pairs, problem.numbers))
        finite = jnp.all(jnp.isfinite(x), axis=-1)
        was_alive = block.first_bad == jnp.uint32(never)
        alive = was_alive & finite
        block = Block(
            block.path,
            block.exists,
            jnp.where(alive[:, None], x, block.x),
            jnp.where(was_alive & ~finite, step + 1, block.first_bad),
            block.observed,
        )
        if problem.observe:
            sampled = schedule.is_sampled(step + 1)
            block = lax.cond(sampled, lambda b: _sample(problem, b, step + 1, alive), lambda b: b, block)
        # Drawn a step ahead: as part of the loop's state the numbers are computed once, where XLA would otherwise
        # compute them anew for each use.
        return block, draw(step + 1)

    return lax.fori_loop(0, steps, one_step, (block, draw(first)))[0]


def _sample(problem: Problem, block: Block, step: UInt32[Array, ""], alive: Bool[Array, " n"]) -> Block:
    t = problem.schedule.time(step)
    counted = alive & block.exists
    observed = {k: o.update(block.observed[k], t, block.x, counted) for k, o in problem.observe.items()}
    return eqx.tree_at(lambda b: b.observed, block, observed)
