"""Values that JAX traces: formulas that serve NumPy and JAX alike, and errors in terms of the user's function."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jax.scipy.special
import numpy as np
import scipy.special
from jax.core import Tracer

# Arrays of formulas that are written once for both. Type checkers know no type with what the two have in common.
if TYPE_CHECKING:
    Numbers = Any
else:
    Numbers = np.ndarray | jax.Array


def namespace(*values: Any) -> Any:
    """`jax.numpy` if any of the values is a JAX array, `numpy` otherwise, where formulas are fast for small arrays."""
    return jnp if any(isinstance(v, jax.Array) for v in values) else np


def logsumexp(values: Numbers, axis: int | tuple[int, ...]) -> Any:
    """log Σ exp, in the namespace of the values."""
    special = jax.scipy.special if isinstance(values, jax.Array) else scipy.special
    return special.logsumexp(values, axis=axis)


def cumsum(values: Numbers) -> Any:
    """Cumulative sums along the last axis, term by term: JAX's own are slow to compile, and of another rounding."""
    if isinstance(values, np.ndarray):
        return np.cumsum(values, axis=-1)
    along = jnp.moveaxis(values, -1, 0)
    return jnp.moveaxis(jax.lax.scan(_added, jnp.zeros_like(along[0]), along)[1], 0, -1)


def _added(total, term):
    return total + term, total + term


class Static:
    """A value on which compiled functions depend, equal to another if the arrays in it are."""

    def __init__(self, value: Any):
        leaves, structure = jax.tree.flatten(value)
        self.value = value
        self._key = (structure, *(x.tobytes() if isinstance(x, np.ndarray) else x for x in leaves))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Static) and self._key == other._key


def is_traced(*trees: Any) -> bool:
    """Whether any leaf has no value yet, inside `jit`, `vmap` or `grad`."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


@contextmanager
def traceable(what: str) -> Iterator[None]:
    """Turns JAX's errors about values that are not known while tracing into a `TypeError` that names the function."""
    try:
        yield
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.NonConcreteBooleanIndexError,
    ) as error:
        raise TypeError(
            f"{what} cannot be compiled, because it asks for the value of x (or t) while JAX traces it. Use jax.numpy "
            "instead of numpy, math or float(), and jnp.where instead of `if`. JAX says: " + str(error).split("\n")[0]
        ) from error
