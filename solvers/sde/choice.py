"""How the steps of a run are computed: the coordinates, the loop or kernel, and how paths are watched.

Nothing here changes what is computed, but in the last bits. What may change bits is decided by the problem and the
platform alone, and loops that stand in for one another are compared on a block of paths first.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .clock import Clock
from .eigenbasis import Eigenbasis, scalar_processes
from .engine import Block, Problem, advance, fastest, start
from .guard import fits
from .kernel import supports
from .lanes import Unsupported
from .observables import AbstractFollower
from .passage import OUT, FirstPassage

# What steps paths in place of a loop, by platform.
_kernels: dict[str, Literal["gpu", "interpret"]] = {"gpu": "gpu"}

# Steps on which loops must agree to be exchanged.
_steps_compared = 128

# Path-steps from which on it pays to compile another loop, which takes seconds.
_steps_worth_a_loop = 1 << 28


def in_best_coordinates(problem: Problem, x: Float[Array, " d"]) -> tuple[Problem, str]:
    """The problem in its fastest form, as it is or in the eigenvectors of a linear drift.

    And why that is not one of many steps at a time, where it is not.
    """
    fast, reason = fastest(problem, x)
    if fast.stride > 1 or problem.transform is not None:
        return fast, reason
    if (turned := scalar_processes(problem.process, x)) is None:
        return fast, reason
    process, basis = turned
    y = jnp.asarray(np.asarray(x)[None] @ np.asarray(basis.vectors))
    if problem.method.needs(process, y) != "increment":
        return fast, reason
    scalar = dataclasses.replace(
        problem, process=process, transform=basis, need="increment", motions=x.size, numbers=x.size
    )
    scalar, _ = fastest(scalar, x)
    return (scalar, "") if scalar.stride > 1 else (fast, reason)


def best_loop(
    problem: Problem, reason: str, x0: Float[np.ndarray, "block d"], clock: Clock, every: int, n: int, platform: str
) -> tuple[Problem, str]:
    """The problem with what takes its steps, from what `in_best_coordinates` says of it, and a sentence about it.

    `x0` is a block of the run's n paths; their observables sample every so many steps.
    """
    remark = ", in the eigenvectors of the linear drift" if isinstance(problem.transform, Eigenbasis) else ""
    followed = any(isinstance(o, AbstractFollower) for o in problem.observe.values())
    no_kernel = ""
    if platform in _kernels:
        kernel, no_kernel = _kernel(problem, platform, followed, x0, clock)
        if kernel is not None:
            return kernel, f"all steps between two samples in one kernel{remark}"
        no_kernel = f"; not in a kernel: {no_kernel}"
    # Of a stride that a sample ends the rest is computed again.
    again = problem.stride // (1 if followed else every) - 1 if problem.observe else 0
    if n * clock.steps * again > _steps_worth_a_loop:
        problem, reason = _single_steps(problem, x0, clock)
    if problem.dense and followed and n * clock.steps > _steps_worth_a_loop:
        guarded = _guarded(problem, x0, clock)
        if guarded is not None:
            problem, reason, remark = guarded, "", remark + ", watched from inside the loop"
    how = f"one step at a time: {reason}" if reason else f"{problem.stride} steps at a time"
    return problem, how + remark + no_kernel


def _kernel(
    problem: Problem, platform: str, followed: bool, x0: Float[np.ndarray, "block d"], clock: Clock
) -> tuple[Problem | None, str]:
    """The problem stepped by a kernel; or why it can't be."""
    if followed:
        return None, "every step is looked at"
    if reason := supports(problem, x0.shape[1], x0.dtype):
        return None, reason
    kernel = dataclasses.replace(problem, kernel=_kernels[platform])
    try:
        _after(kernel, x0, clock, 0)
    except Exception as error:  # Whatever a compiler for GPUs may say: the loops do not need it.
        return None, f"it does not compile: {str(error).splitlines()[0]}"
    return kernel, ""


def _single_steps(problem: Problem, x0: Float[np.ndarray, "block d"], clock: Clock) -> tuple[Problem, str]:
    """The problem with steps taken one at a time, if that gives the same bits: as it is where states are seen often.

    In strides, steps between samples that are closer than a stride would be computed in vain. Both loops do the same
    arithmetic; whether the compiler rounds it in the same places is found out on a block of paths.
    """
    single = dataclasses.replace(problem, dense=True)
    steps = min(_steps_compared, clock.steps)
    ends = [_after(p, x0, clock, steps).x for p in (single, dataclasses.replace(problem, observe={}))]
    return (single, "states are seen often") if np.array_equal(*ends, equal_nan=True) else (problem, "")


def _guarded(problem: Problem, x0: Float[np.ndarray, "block d"], clock: Clock) -> Problem | None:
    """The problem with its first passage watched from inside the loop of strides, if that can be and moves no exit."""
    names = [k for k, o in problem.observe.items() if isinstance(o, AbstractFollower)]
    weighted = problem.transform is not None and problem.transform.weighted
    if len(names) > 1 or problem.form != "lanes" or weighted or not fits(x0.shape[1], x0.dtype):
        return None
    if not isinstance(problem.observe[names[0]], FirstPassage):
        return None
    guarded = dataclasses.replace(problem, dense=False, guarded=names[0])
    steps = min(_steps_compared, clock.steps)
    try:
        ends = [_after(p, x0, clock, steps) for p in (guarded, problem)]
    except Unsupported:
        return None
    return guarded if _same_exits(names[0], *ends) else None


def _same_exits(name: str, a: Block, b: Block) -> bool:
    """Whether two blocks agree in their states and exits, and to rounding in the chances of those who may yet leave."""
    left, other = a.observed[name][1], b.observed[name][1]
    gone = other.status == OUT
    pairs = [(a.x, b.x), (left.status, other.status)]
    pairs += [(getattr(left, k)[gone], getattr(other, k)[gone]) for k in ("level", "variance", "steps", "end", "point")]
    chances = np.allclose(left.chance[~gone], other.chance[~gone], rtol=1e-4, equal_nan=True)
    return chances and all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)


def _after(problem: Problem, x0: Float[np.ndarray, "block d"], clock: Clock, steps: int) -> Any:
    """A block of paths after so many steps, its arrays as those of NumPy."""
    path, exists = jnp.arange(len(x0), dtype=jnp.uint32), jnp.ones(len(x0), bool)
    block = start(problem, path, exists, jnp.asarray(x0))
    return jax.tree.map(np.asarray, advance(problem, block, jnp.uint32(clock.origin), jnp.int32(steps)))
