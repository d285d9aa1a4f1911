"""Many steps of a block of paths in one GPU kernel: each path in the registers of one thread, random numbers included.

The kernel is Pallas code for its Triton backend. What it computes is the step of the problem written out in `lanes`,
user functions and their derivatives included: nobody has to write a loss for it, and `supports` says what it can't do.
Random numbers have the addresses that they have in `engine`, and the operations on them are the same; a GPU's compiler
rounds differently, so that paths agree with those of a CPU to rounding only.

Where a call begins and ends makes no difference to the bits: the steps of a group are always computed together, by the
same instructions, and those that were not asked for are dropped.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.extend.core import Literal
from jaxtyping import Array, Bool, Float, Int32, UInt32

from .lanes import Unsupported, components, evaluate_lanes, lanes, scalar
from .program import Program, hoist, trace, value_of
from .random import group_of, group_size, increments, philox

# More would not stay in the registers of a thread; and the compiler, which gets the operations of a whole group of
# steps, would take minutes.
_most_components = 16
_most_constants = 256
_most_operations = 1000

# One path a thread. Tiles of a single warp spread over all processors of a GPU even if there are few paths; of larger
# ones a processor holds more threads at a time.
_warp = 32
_warps = 4
_many_paths = 1 << 17


def supports(problem: Any, d: int, dtype: Any) -> str:
    """Why the steps of an `engine.Problem` in d dimensions can't be taken in a kernel; empty if they can.

    One step is lowered for a GPU to find out, which takes a fraction of a second.
    """
    if d > _most_components:
        return f"a state of dimension {d} does not fit into the registers of a thread"
    try:
        program = _scalar_program(problem, d, dtype)
    except Unsupported as reason:
        return _no_form(reason)
    constants = sum(len(numbers) for numbers in _constants(program).values())
    if constants > _most_constants:
        return f"one step reads {constants} constants"
    if len(program.operations) > _most_operations:
        return f"one step takes {len(program.operations)} operations"
    try:
        _lower(program, dtype)
    except Exception as error:  # Pallas has no class of its own for what it does not know.
        unknown = re.search(r"Unimplemented primitive .*: (\w+)", str(error))
        return _no_form(f"the operation `{unknown[1]}`") if unknown else f"Pallas does not lower it: {error}"
    return ""


def _no_form(reason: Any) -> str:
    return f"it uses {reason}, which has no form in a kernel"


def advance_kernel(
    problem: Any,
    path: UInt32[Array, " n"],
    x: Float[Array, "d n"],
    first: UInt32[Array, ""],
    steps: Int32[Array, ""],
    *,
    interpret: bool = False,
) -> Float[Array, "d n"]:
    """The states of the paths of an `engine.Problem` after `steps` more steps, the first of which is number `first`.

    What is not finite stays as it is. With `interpret` the kernel runs on any device, as plain JAX.
    """
    d, n = x.shape
    warps = _warps if n >= _many_paths else 1
    rest = -n % (warps * _warp)
    path, x = jnp.pad(path, (0, rest)), jnp.pad(x, ((0, 0), (0, rest)))
    program = _scalar_program(problem, d, x.dtype)
    span = jnp.stack([first, steps.astype(jnp.uint32)])
    clock = jnp.stack([problem.schedule.phase, problem.schedule.dt])

    def kernel(program, span, words, clock, path, x, out):
        schedule = dataclasses.replace(problem.schedule, phase=clock[0], dt=clock[1])
        segment = _Segment(problem, program, schedule, (words[0], words[1]), span[0], span[1])
        for k, new in enumerate(segment.run(path[:], [x[k, :] for k in range(d)])):
            out[k, :] = new

    out = _launch(kernel, program, [span, problem.words, clock], [path, x], warps, interpret)
    return out[:, :n]


class _Segment:
    """Inside the kernel: so many steps of the paths of a tile, from number `first` on."""

    def __init__(self, problem: Any, program: Program, schedule: Any, words: tuple, first: Array, steps: Array):
        self.problem, self.program, self.schedule, self.words = problem, program, schedule, words
        self.first, self.steps = first, steps
        self.strided = problem.stride > 1 and not problem.dense

    def run(self, path: UInt32[Array, " tile"], xs: list) -> list:
        """The components of the state after these steps."""
        size = group_size(xs[0].dtype, self.problem.law)
        last = self.first + self.steps
        begin = (self.first // jnp.uint32(size)).astype(jnp.int32)
        end = (last // jnp.uint32(size)).astype(jnp.int32) + (last % jnp.uint32(size) != 0).astype(jnp.int32)
        # As in the engine: what is not finite is looked for after as many groups, or in each step.
        width = self.problem.stride // size if self.strided else 1

        def stride(k, before):
            groups = jnp.maximum(k * width, begin), jnp.minimum((k + 1) * width, end)
            xs = lax.fori_loop(*groups, lambda number, xs: self._group(path, number.astype(jnp.uint32), xs), before)
            return [jnp.where(_finite(b), x, b) for b, x in zip(before, xs, strict=True)]

        return lax.fori_loop(begin // width, (end + width - 1) // width, stride, xs)

    def _group(self, path: UInt32[Array, " tile"], number: UInt32[Array, ""], xs: list) -> list:
        problem, dtype = self.problem, xs[0].dtype
        size = group_size(dtype, problem.law)
        counters = [(path, number, jnp.uint32(c), jnp.uint32(increments)) for c in range(problem.numbers)]
        numbers = [group_of(philox(counter, self.words), dtype, problem.law) for counter in counters]
        for q in range(size):
            step = number * jnp.uint32(size) + jnp.uint32(q)
            new = _evaluate(self.program, self.schedule.time(step), *xs, *[z[q] for z in numbers])
            # One comparison: for earlier steps the difference wraps around to a large number.
            wanted = jnp.broadcast_to(step - self.first < self.steps, path.shape)
            changing = [wanted if self.strided else wanted & _finite(x) for x in xs]
            xs = [jnp.where(c, b, a) for c, a, b in zip(changing, xs, new, strict=True)]
        return xs


def _finite(x: Float[Array, " tile"]) -> Bool[Array, " tile"]:
    # One instruction, where `jnp.isfinite` becomes several.
    return jnp.abs(x) < jnp.asarray(jnp.inf, x.dtype)


def _scalar_program(problem: Any, d: int, dtype: Any) -> Program:
    """The step of one path as operations on scalars, of its time, then its state, then its random numbers."""
    t, *vectors = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((), (d,), (problem.numbers,))]
    step = hoist(trace(problem.step, t, *vectors))

    def written_out(t, xs, zs):
        (new,) = evaluate_lanes(step, scalar(t), lanes(xs), lanes(zs))
        return components(new, t)

    program = hoist(trace(written_out, t, [t] * d, [t] * problem.numbers))
    for op in program.operations:
        if op.primitive.name in _inexact:
            raise Unsupported(f"the operation `{op.primitive.name}`")
    return program


def _evaluate(program: Program, *arguments: Array) -> list[Array]:
    """The outputs of a program on scalars, for scalars and arrays over paths."""
    values = dict(program.known)
    values.update(zip(program.inputs, arguments, strict=True))
    shape = jnp.broadcast_shapes(*[a.shape for a in arguments])
    for op in program.operations:
        inputs = jnp.broadcast_arrays(*[_value(i, values) for i in op.inputs])
        exact = _exact.get(op.primitive.name)
        values.update(zip(op.outputs, op.bind(inputs) if exact is None else [exact(*inputs)], strict=True))
    return [jnp.broadcast_to(_value(o, values), shape) for o in program.outputs]


def _value(reference: Any, values: dict[int, Any]) -> Array:
    value = value_of(reference, values)
    if isinstance(reference, Literal):
        # Without its dtype, a literal would become an array of double precision.
        aval: Any = reference.aval
        return jnp.asarray(value, aval.dtype)
    return value


def _maximum(a: Array, b: Array) -> Array:
    return jnp.where((a > b) | (a != a), a, b)


def _minimum(a: Array, b: Array) -> Array:
    return jnp.where((a < b) | (a != a), a, b)


# What loses a NaN on its way through Triton, so that a path that has gone wrong would look sound; and what is far off
# for large arguments.
_exact: dict[str, Callable] = {
    "max": _maximum,
    "min": _minimum,
    "clamp": lambda low, x, high: _minimum(_maximum(low, x), high),
}
_inexact = frozenset(["rem"])


def _launch(kernel: Callable, program: Program, shared: Sequence, blocked: Sequence, warps: int, interpret: bool):
    """Runs `kernel(program, *shared, *blocked, out)` for tiles of the blocked arrays' last axis.

    Pallas takes no arrays but arguments: what the program knows becomes some, one table for each dtype. The output has
    the shape of the last argument.
    """
    # Not at the top: a backend of Pallas, which later versions of JAX may no longer have.
    from jax.experimental.pallas import triton

    constants = _constants(program)
    tables = [jnp.stack([jnp.asarray(program.known[k]) for k in numbers]) for numbers in constants.values()]
    tables = [table.astype(jnp.int32) if table.dtype.kind == "b" else table for table in tables]

    def with_constants(*refs):
        known = {}
        for (dtype, numbers), table in zip(constants.items(), refs, strict=False):
            known |= {k: table[i] != 0 if dtype.kind == "b" else table[i] for i, k in enumerate(numbers)}
        kernel(program._replace(known=known), *refs[len(tables) :])

    tile = warps * _warp
    last = blocked[-1]
    specs = [pl.BlockSpec((*a.shape[:-1], tile), lambda i, a=a: (0,) * (a.ndim - 1) + (i,)) for a in blocked]
    return pl.pallas_call(
        with_constants,
        grid=(last.shape[-1] // tile,),
        in_specs=[*[pl.BlockSpec(a.shape, lambda i: (0,)) for a in (*tables, *shared)], *specs],
        out_specs=specs[-1],
        out_shape=jax.ShapeDtypeStruct(last.shape, last.dtype),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
    )(*tables, *shared, *blocked)


def _constants(program: Program) -> dict[np.dtype, list[int]]:
    """The values that the program uses and does not compute, by their dtype."""
    used = [i for op in program.operations for i in op.inputs] + list(program.outputs)
    constants: dict[np.dtype, list[int]] = {}
    for k in dict.fromkeys(i for i in used if not isinstance(i, Literal) and i in program.known):
        constants.setdefault(np.dtype(program.known[k].dtype), []).append(k)
    return constants


def _lower(program: Program, dtype: Any) -> None:
    """Lowers the program for a GPU."""

    def kernel(program, time, rows, out):
        new = _evaluate(program, time[0], *[rows[k, :] for k in range(len(program.inputs) - 1)])
        for k, value in enumerate(new):
            out[k, :] = value

    rows = jax.ShapeDtypeStruct((len(program.inputs) - 1, _warp), dtype)
    time = jax.ShapeDtypeStruct((1,), dtype)
    launch = jax.jit(lambda time, rows: _launch(kernel, program, [time], [rows], 1, False))
    launch.trace(time, rows).lower(lowering_platforms=("cuda",))
