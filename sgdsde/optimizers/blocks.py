"""The compiled part of an ensemble of runs: a block of runs advanced by many steps in one call.

All blocks, and all numbers of steps, go through one program, so that the bits of a run do not depend on how many
others are in memory with it.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, UInt32

from solvers.sde.engine import Schedule
from solvers.sde.observables import AbstractObservable
from solvers.sde.program import Program, evaluate, hoist, trace

from .exits import Exits
from .gradients import AbstractSource
from .optimizer import AbstractOptimizer


class Problem(eqx.Module):
    """All that a block of runs needs to be advanced."""

    optimizer: AbstractOptimizer
    source: AbstractSource
    observe: dict[str, AbstractObservable]
    schedule: Schedule


class Block(eqx.Module):
    """Runs: their points as the columns of x, the optimiser's state, what the source hands on, and observables."""

    run: UInt32[Array, " n"]
    exists: Bool[Array, " n"]
    x: Float[Array, "d n"]
    state: Any
    carried: Any
    observed: dict[str, Any]


@eqx.filter_jit
def start(problem: Problem, run: UInt32[Array, " n"], exists: Bool[Array, " n"], x: Float[Array, "n d"]) -> Block:
    """A block of runs before the first step."""
    t = problem.schedule.time(jnp.uint32(0))
    observe = {k: o.among(exists) if isinstance(o, Exits) else o for k, o in problem.observe.items()}
    observed = {k: o.init(t, x, False) for k, o in observe.items()}
    state = jax.vmap(problem.optimizer.init, out_axes=-1)(x)
    return Block(run, exists, x.T, state, problem.source.begin(run), observed)


@eqx.filter_jit
def advance(problem: Problem, block: Block, first: UInt32[Array, ""], steps: Int32[Array, ""]) -> Block:
    """The block after `steps` more steps, the first of which is number `first`."""
    program, take = _step(problem, block)
    observe = problem.observe
    exits = {k: o for k, o in observe.items() if isinstance(o, Exits)}
    samplers = {k: o for k, o in observe.items() if k not in exits}

    def one_step(i, moving):
        step = first + i.astype(jnp.uint32)
        x, state, carried = moving
        carried, numbers = problem.source.draw(step, block.run, carried)
        x, state = take(program, step, x, state, numbers)
        return x, state, carried

    def to_next_sample(carry):
        i, moving, observed = carry
        due = i + problem.schedule.until_sample(first + i.astype(jnp.uint32))
        stop = jnp.minimum(i + 1 if exits else due, steps)
        moving = lax.fori_loop(i, stop, one_step, moving)
        now, x = first + stop.astype(jnp.uint32), moving[0]
        # A loop of no or one turn: a branch would copy the state of the observables.
        sampled = (stop == due).astype(jnp.int32)
        seen = {k: observed[k] for k in samplers}
        seen = lax.fori_loop(0, sampled, lambda _, o: _sample(problem, block, samplers, o, now, x), seen)
        return stop, moving, observed | seen | _sample(problem, block, exits, observed, now, x)

    moving = block.x, block.state, block.carried
    if observe:
        initial = jnp.zeros_like(steps), moving, block.observed
        _, moving, observed = lax.while_loop(lambda carry: carry[0] < steps, to_next_sample, initial)
    else:
        moving, observed = lax.fori_loop(jnp.zeros_like(steps), steps, one_step, moving), block.observed
    x, state, carried = moving
    return Block(block.run, block.exists, x, state, carried, observed)


@jax.jit
def nonfinite(block: Block) -> Bool[Array, " n"]:
    """The runs whose point or state is not finite."""
    return block.exists & ~_finite((block.x, block.state))


def _step(problem: Problem, block: Block):
    """The step of one run as a program, and a function that takes it for all runs of a block."""
    shapes = jax.eval_shape(
        lambda: (block.x, block.state, problem.source.draw(jnp.uint32(0), block.run, block.carried)[1])
    )
    leaves, form = jax.tree.flatten(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[:-1], a.dtype), shapes))

    def step(k, *leaves):
        x, state, numbers = jax.tree.unflatten(form, leaves)
        return jax.tree.leaves(problem.optimizer.step(k, x, state, problem.source.gradient(numbers)))

    program = hoist(trace(step, jax.ShapeDtypeStruct((), jnp.uint32), *leaves))

    def take(program: Program, k, x, state, numbers):
        leaves = jax.tree.leaves((x, state, numbers))
        taken = jax.vmap(lambda *leaves: evaluate(program, k, *leaves), in_axes=-1, out_axes=-1)(*leaves)
        alive = _finite((x, state))
        old, form = jax.tree.flatten((x, state))
        # What is not finite stays as it is.
        return jax.tree.unflatten(form, [jnp.where(alive, new, a) for a, new in zip(old, taken, strict=True)])

    return program, take


def _finite(arrays: Any) -> Bool[Array, " n"]:
    each = [jnp.all(jnp.isfinite(a), axis=tuple(range(a.ndim - 1))) for a in jax.tree.leaves(arrays)]
    return jnp.all(jnp.stack(each), axis=0)


def _sample(problem: Problem, block: Block, observables: dict, observed: dict, step: UInt32[Array, ""], x: Array):
    """The observed states after a look at all runs."""
    t = problem.schedule.time(step)
    weight = jnp.all(jnp.isfinite(x), axis=0) & block.exists
    return {k: o.update(observed[k], t, x.T, weight) for k, o in observables.items()}
