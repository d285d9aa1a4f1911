"""Several numbers in one array element.

XLA for CPUs computes everything behind several outputs of a loop once for each of them. Loops that must return several
numbers for each path therefore return one array: complex, or complex of double precision with two single-precision
numbers in each part.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact


def capacity(dtype: Any) -> int:
    """How many numbers of this dtype one element can hold."""
    return 4 if dtype == jnp.float32 else 2


def join(numbers: Sequence[Float[Array, "*n"]]) -> Inexact[Array, "*n"]:
    """One array that holds the numbers; a single one stays as it is."""
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) == 2:
        return lax.complex(*numbers)
    four = [*numbers, jnp.zeros_like(numbers[0])][:4]
    with jax.enable_x64(True):
        words = [lax.convert_element_type(bits(x), jnp.uint64) for x in four]
        parts = [low | lax.shift_left(high, jnp.uint64(32)) for low, high in (words[:2], words[2:])]
        return lax.complex(*[lax.bitcast_convert_type(p, jnp.float64) for p in parts])


def split(joined: Inexact[Array, "*n"], count: int) -> list[Float[Array, "*n"]]:
    """The numbers that were joined."""
    if count == 1:
        return [joined]
    parts = [lax.real(joined), lax.imag(joined)]
    if count == 2:
        return parts
    with jax.enable_x64(True):
        words = [bits(p) for p in parts]
        halves = [h for w in words for h in (w, lax.shift_right_logical(w, jnp.uint64(32)))]
        four = [lax.bitcast_convert_type(lax.convert_element_type(h, jnp.uint32), jnp.float32) for h in halves]
    return four[:count]


def bits(x: Float[Array, "*n"]) -> Array:
    """The bits of floating-point numbers as unsigned ones."""
    with jax.enable_x64(True):
        return lax.bitcast_convert_type(x, jnp.uint32 if x.dtype == jnp.float32 else jnp.uint64)
