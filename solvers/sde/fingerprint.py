"""What identifies a run, so that only the same run goes on from a checkpoint."""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from .clock import Clock
from .engine import Problem, observers, step_shapes
from .program import Program, trace

# Where Python puts objects in memory says nothing about what they are.
_address = re.compile(r"0x[0-9a-f]+")


def identity(
    problem: Problem, method: str, clock: Clock, x0: np.ndarray, block: int, saves: list[int]
) -> dict[str, Any]:
    """Everything that decides the bits of a run, as JSON values; long things by their hash."""
    n, d = x0.shape
    schedule = problem.schedule
    observables = {name: _of_observable(problem, name, jnp.asarray(x0[:1])) for name in sorted(problem.observe)}
    return {
        "process": _of_program(trace(problem.step, *step_shapes(problem, d, x0.dtype))),
        "method": method,
        "x0": hashlib.sha256(np.ascontiguousarray(x0).tobytes()).hexdigest()[:16],
        "paths": n,
        "dimension": d,
        "dtype": str(x0.dtype),
        "key": [int(w) for w in problem.words],
        "t0": clock.t0,
        "dt": clock.dt,
        "steps": clock.steps,
        "save_at": saves,
        "observe": observables,
        "burn_in": int(schedule.burn_in) if observables else 0,
        "every": int(schedule.every) if observables else 1,
        "block": block,
    }


def _of_observable(problem: Problem, name: str, x: jax.Array) -> str:
    observable = observers(problem, jnp.zeros(1, jnp.uint32), jnp.ones(1, bool))[name]
    weighted = problem.transform is not None and problem.transform.weighted
    weight = jnp.ones(1, x.dtype if weighted else bool)
    state = observable.init(problem.schedule.dt, x, weighted)
    leaves, form = jax.tree.flatten(state)

    def update(t, x, weight, *leaves):
        return jax.tree.leaves(observable.update(jax.tree.unflatten(form, leaves), t, x, weight))

    return type(observable).__name__ + " " + _of_program(trace(update, problem.schedule.dt, x, weight, *leaves))


def _of_program(program: Program) -> str:
    digest = hashlib.sha256()

    def add(text: str) -> None:
        digest.update(_address.sub("", text).encode() + b"\n")

    for op in program.operations:
        inputs = [f"{i.val!r}:{i.aval}" if isinstance(i, Literal) else i for i in op.inputs]
        add(f"{op.primitive.name} {inputs} {op.outputs} {sorted((k, str(v)) for k, v in op.params.items())}")
    add(f"{program.inputs} {[o.val if isinstance(o, Literal) else o for o in program.outputs]}")
    for number, value in sorted(program.known.items()):
        value = np.asarray(jax.random.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value)
        add(f"{number} {value.dtype} {value.shape}")
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]
