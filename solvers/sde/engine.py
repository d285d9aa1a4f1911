"""The compiled part of an ensemble run: blocks of paths advanced by many steps in one call.

Two loops do the same. Where the step of a small state can be written out in `lanes`, or does the same to every
component of a state of any size, one body takes `stride` steps, random numbers and all, and the compiler makes a single
loop over paths of it: the state is read and written once for many steps. Otherwise the numbers of a group of steps are
drawn into memory, and one body takes one step. On a GPU, a `kernel` takes the place of both where it can.

One program serves every block, number of steps and device of a run. That, and not arithmetic, is what makes paths the
same in every layout: a program for two blocks at once, or for two devices at once, may round differently. For the same
reason the longer body is used for parts of itself, too: steps that are not asked for are computed and dropped.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, UInt32

from ..process import AbstractDiffusion
from .brownian import Increment, Need, increment
from .guard import Guard, resolve
from .lanes import Unsupported
from .loops import in_kernel, in_strides, lane_step, one_by_one, pieces_of
from .method import AbstractMethod, AbstractPostprocessed
from .observables import AbstractFollower, AbstractObservable, Paths
from .packing import capacity, split
from .program import Program, hoist, trace
from .random import Law, group_size, normals
from .transform import AbstractTransform

# Steps in one body of the loop over lanes, at most: longer ones run out of registers, in float64 by far sooner. And how
# many operations they may come to: longer bodies are no longer compiled to vector instructions. A step of many
# operations gains nothing by having others in the same body.
_strides = {4: (16, 8, 4), 8: (4, 2)}
_most_operations, _most_in_a_step = 2300, 285

# Operations behind one random number, its share of the generator included.
_operations_per_number = 50


class Schedule(eqx.Module):
    """When steps and samples happen. Steps are counted from time 0, samples from the start of the run."""

    phase: Float[Array, ""]
    dt: Float[Array, ""]
    origin: UInt32[Array, ""]
    burn_in: Int32[Array, ""]
    every: Int32[Array, ""]

    def time(self, step: UInt32[Array, "*n"]) -> Float[Array, "*n"]:
        # From the number of the step: adding dt again and again loses the clock in float32.
        return self.phase + step.astype(self.dt.dtype) * self.dt

    def until_sample(self, step: UInt32[Array, ""]) -> Int32[Array, ""]:
        """How many steps after this one the next sample is taken: at least one."""
        since = (step - self.origin).astype(jnp.int32) - self.burn_in
        return jnp.where(since < 0, self.every - since, self.every - since % self.every)


Form = Literal["lanes", "elementwise", "rows"]


class Problem(eqx.Module):
    """All that a block of paths needs to be advanced.

    The state of a block is held as one array for each component ("lanes"), or as one array of all, whose components
    are stepped alike ("elementwise") or not ("rows"). `stride` is how many steps one body takes; `dense` asks for the
    loop of single steps where that is more than one. `kernel` is what takes the steps instead of a loop, if anything: a
    kernel on a GPU, or the same kernel interpreted, on any device. `guarded` names a first passage that is watched from
    inside the loop over lanes.
    """

    process: AbstractDiffusion
    method: AbstractMethod
    transform: AbstractTransform | None
    observe: dict[str, AbstractObservable]
    schedule: Schedule
    words: UInt32[Array, "2"]
    need: Need = eqx.field(static=True)
    motions: int = eqx.field(static=True)
    numbers: int = eqx.field(static=True)
    form: Form = eqx.field(static=True, default="rows")
    stride: int = eqx.field(static=True, default=1)
    dense: bool = eqx.field(static=True, default=False)
    kernel: Literal["", "gpu", "interpret"] = eqx.field(static=True, default="")
    guarded: str = eqx.field(static=True, default="")

    @property
    def law(self) -> Law:
        return "three-point" if self.need == "three-point" else "normal"

    def increment(self, z: Float[Array, " numbers"]) -> Increment:
        return increment(self.need, self.motions, self.schedule.dt, z)

    def step(self, t: Float[Array, ""], x: Float[Array, " d"], z: Float[Array, " numbers"]) -> Float[Array, " d"]:
        return self.method.step(self.process, t, x, self.schedule.dt, self.increment(z))


class Block(eqx.Module):
    """Paths, as the columns of x, and the state of their observables. What is not finite stays as it is."""

    path: UInt32[Array, " n"]
    exists: Bool[Array, " n"]
    x: Float[Array, "d n"]
    observed: dict[str, Any]


def fastest(problem: Problem, x: Float[Array, " d"]) -> tuple[Problem, str]:
    """The problem in its fastest form, and why that is not one of many steps at a time, where it is not.

    Of the state `x` only the shape and dtype matter.
    """
    dtype, d = x.dtype, x.size
    program = trace(problem.step, *step_shapes(problem, d, dtype))
    reasons = []
    for form in ("elementwise", "lanes"):
        if form == "lanes" and d > capacity(dtype):
            reasons.append(f"a state of dimension {d} does not fit into one array")
        elif form == "lanes" or (d > 1 and problem.numbers == d):
            candidate = dataclasses.replace(problem, form=form)
            try:
                operations = _operations(candidate, program, d, dtype)
            except Unsupported as reason:
                reasons.append(f"it uses {reason}, which has no form in lanes")
                continue
            if operations > _most_in_a_step:
                return candidate, f"a step has {operations} operations"
            size = group_size(dtype, problem.law)
            stride = next(s for s in _strides[dtype.itemsize] if s % size == 0 and s * operations <= _most_operations)
            return dataclasses.replace(candidate, stride=stride), ""
    return problem, reasons[-1]


def _operations(problem: Problem, program: Program, d: int, dtype: Any) -> int:
    """How many operations a step takes, that make the random numbers included."""
    path = jax.ShapeDtypeStruct((64,) if problem.form == "lanes" else (d, 64), dtype)
    pieces = pieces_of(problem, d)
    numbers = pieces if problem.form == "elementwise" else problem.numbers

    def written_out(t, xs, zs):
        return lane_step(problem, hoist(program), t, xs, zs)

    written = trace(written_out, jax.ShapeDtypeStruct((), dtype), [path] * pieces, [path] * numbers)
    return len(written.operations) + _operations_per_number * numbers


def step_shapes(problem: Problem, d: int, dtype: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in ((), (d,), (problem.numbers,)))


def observers(problem: Problem, path: UInt32[Array, " n"], exists: Bool[Array, " n"]) -> dict[str, AbstractObservable]:
    """The observables of the problem, those that follow paths for these."""
    schedule = problem.schedule
    paths = Paths(problem.process, problem.transform, schedule.dt, problem.words, schedule.origin, path, exists)
    return {k: o.following(paths) if isinstance(o, AbstractFollower) else o for k, o in problem.observe.items()}


def start(problem: Problem, path: UInt32[Array, " n"], exists: Bool[Array, " n"], x: Float[Array, "n d"]) -> Block:
    """A block of paths at the start of a run."""
    return _start(problem, path, exists, x)


@eqx.filter_jit
def _start(problem, path, exists, x):
    schedule = problem.schedule
    t = schedule.time(schedule.origin)
    weighted = problem.transform is not None and problem.transform.weighted
    observed = {k: o.init(t, x, weighted) for k, o in observers(problem, path, exists).items()}
    if problem.transform is not None:
        x = jax.vmap(lambda x: problem.transform.enter(x))(x)
    if isinstance(problem.method, AbstractPostprocessed):
        x = _postprocess(problem, problem.method.enter, path, schedule.origin, x)
    return Block(path, exists, x.T, observed)


@eqx.filter_jit
def states(problem: Problem, block: Block, step: UInt32[Array, ""]) -> Float[Array, "n d"]:
    """The states of the paths after so many steps."""
    return _states(problem, block.path, step, block.x)


def _states(problem, path, step, x, stepped=False):
    x = x.T
    if isinstance(problem.method, AbstractPostprocessed) and not stepped:
        x = _postprocess(problem, problem.method.leave, path, step, x)
    if problem.transform is not None:
        x = jax.vmap(lambda y: problem.transform.leave(y))(x)
    return x


def _postprocess(problem: Problem, change: Callable, path, step, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    z = normals(problem.words, path, step, problem.numbers, x.dtype, problem.law)
    t, dt = problem.schedule.time(step), problem.schedule.dt
    return jax.vmap(lambda x, z: change(problem.process, t, x, dt, problem.increment(z)))(x, z)


def advance(problem: Problem, block: Block, first: UInt32[Array, ""], steps: Int32[Array, ""]) -> Block:
    """The block after `steps` more steps, the first of which is number `first`."""
    return _advance(problem, block, first, steps)


def _advance_block(problem, block, first, steps):
    schedule = problem.schedule
    example = step_shapes(problem, block.x.shape[0], block.x.dtype)
    program = hoist(trace(problem.step, *example))
    observables = observers(problem, block.path, block.exists)
    passage: Any = observables.pop(problem.guarded, None)
    followers = {k: o for k, o in observables.items() if isinstance(o, AbstractFollower)}
    samplers = {k: o for k, o in observables.items() if k not in followers}
    if passage is not None:
        chance = block.observed[problem.guarded][1].chance
        guard = Guard(passage, block.x.shape[0], block.x.dtype)
        run, carry = in_strides(problem, program, block.path, first, block.x, guard, chance)
    else:
        loop = one_by_one
        if problem.kernel:
            loop = in_kernel
        elif problem.stride > 1 and not problem.dense:
            loop = in_strides
        run, carry = loop(problem, program, block.path, first, block.x)

    def to_next_sample(carry):
        i, inner, observed = carry
        due = i + schedule.until_sample(first + i.astype(jnp.uint32))
        stop = jnp.minimum(i + 1 if followers else due, steps)
        # A loop of its own, whose body is the same program whether anything is observed or not: so are the bits.
        inner = run(i, stop, inner)
        now = first + stop.astype(jnp.uint32)
        # A loop of no or one turn: a branch would copy the state of the observables.
        sampled = (stop == due).astype(jnp.int32)
        seen = {k: observed[k] for k in samplers}
        seen = lax.fori_loop(0, sampled, lambda _, o: _sample(problem, block, samplers, o, now, state(inner)), seen)
        followed = _sample(problem, block, followers, observed, now, state(inner)) if followers else {}
        return stop, inner, observed | seen | followed

    def state(carry):
        joined = problem.form == "lanes" and not problem.kernel
        d = block.x.shape[0]
        return jnp.stack(split(carry[0], d + (passage is not None))[:d]) if joined else carry[0]

    if observables:
        initial = jnp.zeros_like(steps), carry, block.observed
        _, carry, observed = lax.while_loop(lambda carry: carry[0] < steps, to_next_sample, initial)
    else:
        carry, observed = run(jnp.zeros_like(steps), steps, carry), block.observed
    if passage is not None:
        *x, chance = split(carry[0], block.x.shape[0] + 1)
        before, now = observed[problem.guarded], first + steps.astype(jnp.uint32)
        noted: Any = carry[1:]
        after = resolve(problem, program, passage, before, noted, block.path, jnp.stack(x), chance, now)
        observed = observed | {problem.guarded: after}
    return Block(block.path, block.exists, state(carry), observed)


def _sample(problem: Problem, block: Block, observables: dict, observed: dict, step: UInt32[Array, ""], x: Array):
    """The observed states after a look at all paths, all of the observables being followers or none."""
    t = problem.schedule.time(step)
    weight = jnp.all(jnp.isfinite(x), axis=0) & block.exists
    following = any(isinstance(o, AbstractFollower) for o in observables.values())
    x = _states(problem, block.path, step, x, stepped=following)
    transform = problem.transform
    if transform is not None and transform.weighted:
        weights = jax.vmap(lambda x: transform.weight(t, x))(x)
        weight = jnp.where(weight, weights, jnp.zeros_like(weights))
    return {k: o.update(observed[k], t, x, weight) for k, o in observables.items()}


class _Fast:
    """A jitted function that asks the CPU compiler for the widest vectors, where it knows how to be asked."""

    def __init__(self, fn: Callable):
        self.plain = eqx.filter_jit(fn)
        options = {"xla_cpu_prefer_vector_width": 512}
        self.wide = eqx.filter_jit(fn, compiler_options=options)  # pyright: ignore[reportCallIssue]
        self.refused = False

    def __call__(self, *args: Any) -> Any:
        if jax.default_backend() == "cpu" and not self.refused:
            try:
                return self.wide(*args)
            except Exception as error:
                if "xla_cpu_prefer_vector_width" not in str(error):
                    raise
                self.refused = True
        return self.plain(*args)


_advance = _Fast(_advance_block)
