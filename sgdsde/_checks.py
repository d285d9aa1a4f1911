"""Checks of arguments that losses, noises and models share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float


def number(name: str, value, *, positive: bool = False, minimum: float | None = None) -> Float[Array, ""]:
    """`value` as a real scalar array, so that it is a traced leaf of the pytree; `ValueError` if it is out of range.

    Under tracing only the shape can be checked.
    """
    value = array(name, value)
    if value.shape != ():
        raise ValueError(f"`{name}` must be one number, but got an array of shape {value.shape}.")
    if traced(value):
        return value
    if positive and not value > 0:
        raise ValueError(f"`{name}` must be positive, but got {name}={float(value):.6g}.")
    if minimum is not None and not value >= minimum:
        raise ValueError(f"`{name}` must be at least {minimum:g}, but got {name}={float(value):.6g}.")
    return value


def fraction(name: str, value) -> Float[Array, ""]:
    """The weight of the past in a running mean; `ValueError` unless it is in [0, 1)."""
    value = number(name, value, minimum=0)
    if not traced(value) and not value < 1:
        raise ValueError(f"`{name}` must be below 1, but got {name}={float(value):.6g}.")
    return value


def array(name: str, value) -> Float[Array, "..."]:
    """`value` as an array of the default real dtype; `TypeError` if it is not real, `ValueError` if not finite."""
    try:
        value = value if isinstance(value, jax.Array) else jnp.asarray(np.asarray(value))
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be real numbers, but got {value!r}.") from None
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"`{name}` must be real numbers, but got dtype {value.dtype}.")
    value = value.astype(jnp.result_type(float))
    if not traced(value) and not np.all(np.isfinite(value)):
        raise ValueError(f"`{name}` must be finite, but got {name}={value}.")
    return value


def traced(value) -> bool:
    """Whether `value` has no value yet, inside jit, vmap or grad."""
    return isinstance(value, Tracer)


def scalar_valued(loss: Callable) -> Callable:
    """`loss`, checked while tracing: one real number for one point x of shape (d,), in the dtype of x."""

    def checked(x):
        value = loss(x)
        try:
            value = jnp.asarray(value)
        except (TypeError, ValueError):
            raise TypeError(f"`loss(x)` must return one real number, but returned {type(value).__name__}.") from None
        if value.shape != ():
            raise ValueError(
                f"`loss(x)` must return one number (shape ()) for one point x of shape {x.shape}, but returned shape "
                f"{value.shape}. Sum or average over the data inside the loss, or index the single entry."
            )
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"`loss(x)` must return a real floating-point number, but returned dtype {value.dtype}.")
        return value.astype(x.dtype)

    return checked
