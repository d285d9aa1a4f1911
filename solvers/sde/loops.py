"""Loops over steps: each makes a function that takes the steps from i to stop, and what it starts from.

The problem of all of them is an `engine.Problem`; the first of what they carry is the state, in one array.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .guard import Guard, note
from .kernel import advance_kernel
from .lanes import components, evaluate_elementwise, evaluate_lanes, lanes
from .packing import bits, join, split
from .program import Program, evaluate
from .random import group, group_size, of_pair, pack, pair, words_of


def pieces_of(problem: Any, d: int) -> int:
    """In how many arrays the state of a block is computed with."""
    return d if problem.form == "lanes" else 1


def in_strides(problem: Any, program: Program, path, first, x, guard: Guard | None = None, chance: Any = None):
    """A function that takes the steps from i to stop in strides, and what it starts from: one array of the state.

    With a guard the array also holds the chance of each path to be inside, and there is what `note` knows.
    """
    pieces, dtype = pieces_of(problem, x.shape[0]), x.dtype
    stride, size = problem.stride, group_size(x.dtype, problem.law)
    components = [jnp.uint32(c) for c in range(problem.numbers)]
    if problem.form == "elementwise":
        path, components = jnp.broadcast_to(path, x.shape), [lax.broadcasted_iota(jnp.uint32, x.shape, 0)]

    def run(i, stop, carry):
        low, high = first + i.astype(jnp.uint32), first + stop.astype(jnp.uint32)
        width = jnp.uint32(stride)

        def wanted(k):
            """A mask for each step of a stride: all ones where the step is asked for, else zeros."""
            step = k * width + lax.iota(jnp.uint32, stride)
            return _mask((step >= low) & (step < high), dtype)

        # A function of its own for the compiler to repeat: to write out each step of a stride takes longer.
        @jax.jit
        def take_group(number, masks, xs, chances, seen, zero):
            numbers = [group(problem.words, path, number, c, dtype, problem.law) for c in components]
            for q in range(size):
                step = number * jnp.uint32(size) + jnp.uint32(q)
                new = lane_step(problem, program, problem.schedule.time(step), xs, [z[q] for z in numbers])
                xs = _if(masks[q], new, xs)
                if guard:
                    now = guard.look(problem.schedule.time(step + jnp.uint32(1)), xs, zero)
                    chances = _if(masks[q], [guard.chance(chances[0], seen, now)], chances)
                    seen = now
            return xs, chances, seen

        def take_stride(k, masks, before):
            xs, chances = before[:pieces], before[pieces:]
            zero = high < low
            seen = guard.look(problem.schedule.time(k * width), xs, zero) if guard else []
            for j in range(stride // size):
                number = k * jnp.uint32(stride // size) + jnp.uint32(j)
                here = masks[j * size : (j + 1) * size]
                xs, chances, seen = take_group(number, here, xs, chances, seen, zero)
            xs = [jnp.where(jnp.isfinite(a), b, a) for a, b in zip(before[:pieces], xs, strict=True)]
            return join([*xs, *chances])

        def body(k, carry):
            # The masks are part of what is carried, so that the compiler sees neither what they are made of nor that
            # they are all ones or zeros: it would branch at every step.
            masks, before, *noted = carry
            state = take_stride(k, masks, split(before, pieces + bool(guard)))
            masks = wanted(k + jnp.uint32(1))
            if not guard:
                return masks, state

            def look(_, carry):
                before, state, *noted = carry
                ends = split(before, pieces + 1), split(state, pieces + 1)
                return state, before, *note(noted, *ends, jnp.maximum(k * width, low))

            # One turn of a loop, but the compiler must not know, nor find anything in it that stays the same: it would
            # compute the stride again for each array that depends on it.
            turns = (high > low).astype(jnp.int32)
            state, _, *noted = lax.fori_loop(0, turns, look, (before, state, *noted))
            return masks, state, *noted

        strides = low // width, (high + width - 1) // width
        return lax.fori_loop(*strides, body, (wanted(strides[0]), *carry))[1:]

    if guard:
        start = join([*x, chance])
        return run, (start, jnp.zeros((pieces + 1, x.shape[1]), dtype), jnp.zeros_like(path))
    return run, (_joined(problem, x),)


def in_kernel(problem: Any, program: Program, path, first, x):
    """A function that takes the steps from i to stop in one launch of a kernel, and what it starts from."""

    def run(i, stop, carry):
        number, steps = first + i.astype(jnp.uint32), stop - i
        return (advance_kernel(problem, path, carry[0], number, steps, interpret=problem.kernel == "interpret"),)

    return run, (x,)


def _joined(problem: Any, x: Float[Array, "d n"]) -> Array:
    """The state in one array, as a loop carries it."""
    return join(list(x)) if problem.form == "lanes" else x


def _mask(condition: Bool[Array, "*n"], dtype: Any) -> Array:
    """The bits of a number of this dtype: all ones where the condition holds, else zeros."""
    with jax.enable_x64(True):
        word = jnp.uint32 if dtype == jnp.float32 else jnp.uint64
        return lax.neg(lax.convert_element_type(condition, word))


def _if(mask: Array, new: list, old: list) -> list:
    """The new values where the mask has ones, else the old ones, made of their bits.

    A select here, and the compiler falls back to one loop for each step: it does not fuse what has many users.
    """
    chosen = [(bits(b) & mask) | (bits(a) & ~mask) for a, b in zip(old, new, strict=True)]
    return [lax.bitcast_convert_type(c, new[0].dtype) for c in chosen]


def lane_step(problem: Any, program: Program, t, xs: list, zs: list) -> list:
    if problem.form == "elementwise":
        return evaluate_elementwise(program, t, *xs, *zs)
    (new,) = evaluate_lanes(program, t, lanes(xs), lanes(zs))
    return components(new, xs[0])


def one_by_one(problem: Any, program: Program, path, first, x):
    """A function that takes the steps from i to stop one at a time, and what it starts from: the state and numbers."""
    d, dtype, law = x.shape[0], x.dtype, problem.law
    size = group_size(dtype, law)
    shape = (problem.numbers, path.size)

    def draw(step):
        component = lax.broadcasted_iota(jnp.uint32, shape, 0)
        words = words_of(problem.words, jnp.broadcast_to(path, shape), step // jnp.uint32(size), component)
        return pack(words, dtype, law)

    def run(i, stop, carry):
        def to_end_of_pair(carry):
            i, x, packed = carry
            step = first + i.astype(jnp.uint32)
            numbers = pair(packed, step, dtype, law)
            end = jnp.minimum(i + jnp.int32(2) - (step % jnp.uint32(2)).astype(jnp.int32), stop)

            def one_step(i, x):
                step = first + i.astype(jnp.uint32)
                return _one_step(problem, program, step, x, of_pair(numbers, step, dtype, law), d)

            x = lax.fori_loop(i, end, one_step, x)
            # Drawn as soon as the last group is used up, as part of the loop's state: computed once, where XLA would
            # otherwise compute the words anew for each use. No turn or one, where a branch would copy.
            done = ((first + end.astype(jnp.uint32)) % jnp.uint32(size) == 0) & _comes_after(x)
            used = done.astype(jnp.int32)
            # The address depends on the turn, or the draw would be moved out of the loop and done every time.
            packed = lax.fori_loop(0, used, lambda k, _: draw(first + (end + k).astype(jnp.uint32)), packed)
            return end, x, packed

        return lax.while_loop(lambda carry: carry[0] < stop, to_end_of_pair, (i, *carry))[1:]

    return run, (_joined(problem, x), draw(first))


def _comes_after(x: Array) -> Bool[Array, ""]:
    """True, but not before x is known: what depends on it may then overwrite what x was made of, without a copy."""
    # Four float32 numbers are joined to two of 64 bits, also where the user has not turned those on.
    with jax.enable_x64(True):
        sign = bits(jnp.real(x).ravel()[0])
        return (sign >> (8 * sign.dtype.itemsize - 1)) < 2


def _one_step(problem: Any, program: Program, step, x: Array, z: Float[Array, "numbers n"], d: int) -> Array:
    t = problem.schedule.time(step)
    if problem.form != "rows":
        xs, zs = split(x, pieces_of(problem, d)), list(z) if problem.form == "lanes" else [z]
        stepped = zip(xs, lane_step(problem, program, t, xs, zs), strict=True)
        return join([jnp.where(jnp.isfinite(a), b, a) for a, b in stepped])
    new = _over_paths(lambda x, z: evaluate(program, t, x, z)[0], x, z)
    return jnp.where(jnp.isfinite(x), new, x)


# Networks of more numbers than that are stepped path by path on CPUs: products of matrices with an axis for paths take
# up to four times as long there.
_path_by_path = 1 << 11


def _over_paths(step: Callable, x: Float[Array, "d n"], z: Float[Array, "numbers n"]) -> Float[Array, "d n"]:
    """The step of each path."""
    if x.shape[1] == 1:
        # Not even an axis for one path.
        return step(x[:, 0], z[:, 0])[:, None]
    together = jax.vmap(step, in_axes=1, out_axes=1)
    if x.shape[0] <= _path_by_path:
        return together(x, z)
    return lax.platform_dependent(
        x, z, cpu=lambda x, z: lax.map(lambda path: step(*path), (x.T, z.T)).T, default=together
    )
