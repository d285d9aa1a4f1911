"""Functions of a process and a point, at many points: compiled once for all values of the numbers a process holds.

The arrays among the leaves of a process are arguments of the compiled program, and everything else identifies it: a
process with another learning rate runs the same program, one with a new loss function does not. Each time the functions
are traced once more, which takes milliseconds, and compared with what was compiled, so that a function which reads a
variable that has changed since is noticed.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._tracing import is_traced, traceable
from ..process import AbstractDiffusion

# Programs that are kept: more than a session compares, and few enough to fit in memory.
_kept = 64

# Points in one call: large enough to be fast, small enough to stay in memory.
_points_per_call = 1 << 18

# Where a function lives in memory differs from trace to trace, and has no meaning.
_address = re.compile("0x[0-9a-f]+")


def drift_and_tensor(process: AbstractDiffusion, x):
    """b and D at a point, at t = 0."""
    t = jnp.zeros((), x.dtype)
    return process.drift(t, x), process.diffusion(t, x)


def holds_tracers(process: Any, axes: int) -> bool:
    """Whether the process has numbers without a value: JAX traces a leaf of it, or its functions close over a tracer.

    False for what isn't a process, which is reported elsewhere.
    """
    if not isinstance(process, AbstractDiffusion):
        return False
    return is_traced(process) or _Map(drift_and_tensor, process, axes).closes_over_tracers


def at_points(what: Callable, process: AbstractDiffusion, points: Float[np.ndarray, "n d"]) -> Any:
    """`what(process, x)` at each of the points x (d,): NumPy arrays, or JAX's if the process holds tracers.

    `what` must be a function of a module, since it identifies the program.
    """
    found = _Map(what, process, points.shape[1])
    if found.closes_over_tracers:
        return jax.jit(found.batched)(found.arrays, points)
    if is_traced(process):
        return found.compiled()(found.arrays, points)
    # Inside `jit` for something else, a process of known numbers still has known values.
    with jax.ensure_compile_time_eval():
        call = found.compiled()
        parts = [_in_full(call, found.arrays, points, i) for i in range(0, len(points), _points_per_call)]
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *values: np.concatenate(values), *parts)


def _in_full(call: Callable, arrays: Any, points: Float[np.ndarray, "n d"], start: int) -> Any:
    """The values at one call's worth of points; the last of several calls is made as long as the others, to share
    their program."""
    some = points[start : start + _points_per_call]
    missing = min(_points_per_call, len(points)) - len(some)
    padded = np.pad(some, ((0, missing), (0, 0)), mode="edge")
    return jax.tree.map(lambda values: np.asarray(values)[: len(some)], call(arrays, padded))


class _Map:
    def __init__(self, what: Callable, process: AbstractDiffusion, axes: int):
        self.arrays, self.rest = eqx.partition(process, lambda leaf: isinstance(leaf, (jax.Array, np.ndarray)))
        self.what = what
        with traceable("`drift(t, x)` or `noise(t, x)`, or the loss,"):
            closed = jax.make_jaxpr(self._one)(self.arrays, jax.ShapeDtypeStruct((axes,), jnp.float64))
        self.text, self.constants = _address.sub("", str(closed.jaxpr)), closed.consts
        self.closes_over_tracers = is_traced(closed.consts)

    def batched(self, arrays, points):
        return jax.vmap(self._one, in_axes=(None, 0))(arrays, points)

    def compiled(self) -> Callable:
        leaves, structure = jax.tree.flatten(self.rest)
        try:
            slot = _slot(self.what, structure, tuple(leaves))
        except TypeError:
            # Functions that can't be hashed identify nothing.
            slot = {}
        if slot.get("text") != self.text or not _equal(slot["constants"], self.constants):
            slot.update(text=self.text, constants=self.constants, call=jax.jit(self.batched))
        return slot["call"]

    def _one(self, arrays, x):
        return self.what(eqx.combine(arrays, self.rest), x)


@functools.lru_cache(maxsize=_kept)
def _slot(what: Callable, structure: Any, leaves: tuple) -> dict[str, Any]:
    return {}


def _equal(some: list, others: list) -> bool:
    return len(some) == len(others) and all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))
