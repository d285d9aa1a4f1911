"""A first passage watched from inside a loop of many steps.

To look at every path after every step costs several times the steps. Inside a loop over lanes it costs little, as long
as only one number is kept for each path: its chance to be inside, see `passage`. Where the state and that number fit
into one array, a stride of steps carries them along. Which step it was, and where, is found afterwards for the paths
whose chance fell below 1, by taking the steps of that one stride again.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, UInt32

from .lanes import components, evaluate_lanes, lanes, scalar
from .packing import bits, capacity
from .passage import INSIDE, LOST, FirstPassage, Watch
from .program import hoist, trace
from .random import group, group_size, of_step


class Guard:
    """What a loop over lanes does for a `FirstPassage`; made while the loop is traced."""

    def __init__(self, passage: FirstPassage, d: int, dtype: Any):
        time, point = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((), (d,)))
        self.passage, self.point = passage, point
        self.program = hoist(trace(passage.guard, time, point))

    def look(self, t: Any, xs: list, zero: Array) -> list:
        """The level at the state xs at time t, and its variance over the step from there.

        `zero` is 0, but the compiler must not know: the states are hidden from it, or it would share parts of what is
        computed here with the step itself, and round that in other places.
        """
        hidden = [bits(x) ^ zero.astype(bits(x).dtype) for x in xs]
        xs = [lax.bitcast_convert_type(h, x.dtype) for h, x in zip(hidden, xs, strict=True)]
        (seen,) = evaluate_lanes(self.program, t, lanes(xs))
        return components(seen, xs[0])

    def chance(self, chance: Array, seen: list, now: list) -> Array:
        """The chance to be inside after a step, from the looks before and after it."""
        level, variance = seen
        return self.passage.remaining_chance(self.point, chance, level, variance, now[0])


def fits(d: int, dtype: Any) -> bool:
    """Whether a state of dimension d leaves room for one more number."""
    return d < capacity(dtype)


def note(noted: Sequence, before: list, after: list, first: UInt32[Array, ""]) -> tuple:
    """What is known of the strides in which paths left: the state at their start, and the number of their first step.

    `before` and `after` are the state and, last, the chance at both ends of a stride.
    """
    start, step = noted
    left = (before[-1] >= 1) & (after[-1] < 1)
    return jnp.where(left, jnp.stack(before), start), jnp.where(left, first, step)


def resolve(
    problem: Any,
    program: Any,
    passage: FirstPassage,
    state: tuple[Int32[Array, ""], Watch],
    noted: tuple[Float[Array, "k n"], UInt32[Array, " n"]],
    path: UInt32[Array, " n"],
    y: Float[Array, "d n"],
    chance: Float[Array, " n"],
    now: UInt32[Array, ""],
) -> tuple[Int32[Array, ""], Watch]:
    """The state of a `FirstPassage` before step `now`, from what `note` has of the strides since the last time."""
    unknown, watch = state
    inside = watch.status == INSIDE
    pending = inside & (chance < 1)
    start, first = noted
    schedule, origin = problem.schedule, problem.schedule.origin

    def look_at(y):
        return jax.vmap(passage.leave)(y.T)

    begin = passage.begin(schedule.time(first), look_at(start[:-1]), pending, (first - origin).astype(jnp.int32), watch)
    begin = dataclasses.replace(begin, chance=start[-1])

    def again(j, carry):
        y, watch = carry
        step = first + j.astype(jnp.uint32)
        y = _step(problem, program, path, step, y)
        # Should rounding make the loop of strides and this one disagree, the path leaves in the last step.
        last = jnp.where(j == problem.stride - 1, jnp.zeros_like(chance), watch.chance)
        watch = dataclasses.replace(watch, chance=last)
        _, watch = passage.update((unknown, watch), schedule.time(step + jnp.uint32(1)), look_at(y), pending)
        return y, watch

    turns = jnp.where(jnp.any(pending), problem.stride, 0)
    _, left = lax.fori_loop(0, turns, again, (start[:-1], begin))
    finite = jnp.all(jnp.isfinite(y), axis=0)
    stay = dataclasses.replace(
        watch,
        status=jnp.where(inside & (~finite | jnp.isnan(chance)), LOST, watch.status),
        steps=jnp.where(inside, (now - origin).astype(jnp.int32), watch.steps),
        chance=jnp.where(inside, chance, watch.chance),
    )

    def chosen(a, b):
        return jnp.where(pending.reshape(pending.shape + (1,) * (a.ndim - 1)), a, b) if a.ndim else b

    return unknown, jax.tree.map(chosen, left, stay)


def _step(problem: Any, program: Any, path: UInt32[Array, " n"], step: UInt32[Array, " n"], y: Float[Array, "d n"]):
    """The states after a step of another number for each path."""
    size, dtype = group_size(y.dtype, problem.law), y.dtype
    number = step // jnp.uint32(size)
    zs = [
        of_step(group(problem.words, path, number, jnp.uint32(c), dtype, problem.law), step)
        for c in range(problem.numbers)
    ]
    (new,) = evaluate_lanes(program, scalar(problem.schedule.time(step)), lanes(list(y)), lanes(zs))
    return jnp.stack(components(new, y[0]))
