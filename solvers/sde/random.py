"""Gaussian numbers that have an address: a pure function of (key, path, step, component).

There is no generator state. Whoever asks for the increment of path 7 at step 1000 gets the same number, whatever else
was computed before, in which order and where; chunks, devices, segments and resumed runs agree for that reason.

The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float, UInt32

_multipliers = (0xD2511F53, 0xCD9E8D57)
_weyl = (0x9E3779B9, 0xBB67AE85)
_rounds = 10


def key_words(key: Any) -> UInt32[Array, "2"]:
    """The two 32-bit words that a run takes from `key`: a `jax.random.key`, or a whole number as a seed."""
    if not isinstance(key, (int, np.integer, np.ndarray, jax.Array)):
        raise TypeError(f"`key` must be a `jax.random.key(seed)` or a whole number, got {key!r}.")
    if isinstance(key, (int, np.integer)):
        if not 0 <= key < 2**32:
            raise ValueError(f"`key` as a seed must lie in [0, 2**32), but got {key}; larger seeds would be cut short.")
        key = jax.random.key(int(key))
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jnp.asarray(key)
    if data.shape != (2,) or data.dtype != jnp.uint32:
        raise ValueError(
            f"`key` must be one `jax.random.key(seed)` of the default kind, but its data have shape {data.shape} and "
            f"dtype {data.dtype}."
        )
    return data


def philox(counter: tuple, key: tuple) -> tuple:
    """Philox4x32-10: four random 32-bit words for four counter words and two key words, elementwise."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_rounds):
        hi0, lo0 = _wide_product(c0, _multipliers[0])
        hi1, lo1 = _wide_product(c2, _multipliers[1])
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = k0 + jnp.uint32(_weyl[0]), k1 + jnp.uint32(_weyl[1])
    return c0, c1, c2, c3


def normals(
    words: UInt32[Array, "2"], path: UInt32[Array, " n"], step: UInt32[Array, ""], count: int, dtype
) -> Float[Array, "n {count}"]:
    """Independent standard normal numbers, `count` for each path at this step, by the Box-Muller transform.

    float32 numbers resolve tails to 6.7 standard deviations, float64 (from 53 random bits) to 8.6.
    """
    z = normal_pairs(words, path, step, -(-count // 2), dtype)
    return unpaired(z, count)


def normal_pairs(
    words: UInt32[Array, "2"], path: UInt32[Array, " n"], step: UInt32[Array, ""], pairs: int, dtype
) -> Complex[Array, "n {pairs}"]:
    """Pairs of independent standard normal numbers, as the real and imaginary parts of complex ones.

    One complex array rather than two real ones: XLA would compute everything twice for two outputs.
    """
    shape = (path.size, pairs)
    counter = (
        jnp.broadcast_to(path[:, None], shape),
        jnp.broadcast_to(step, shape),
        lax.broadcasted_iota(jnp.uint32, shape, 1),
        jnp.zeros(shape, jnp.uint32),
    )
    w = philox(counter, (words[0], words[1]))
    radius = jnp.sqrt(-2 * jnp.log(_uniform(w[0], w[1], dtype)))
    sine, cosine = sincos_turns(_uniform(w[2], w[3], dtype))
    return lax.complex(radius * cosine, radius * sine)


def unpaired(z: Complex[Array, "n pairs"], count: int) -> Float[Array, "n {count}"]:
    """The first `count` of the numbers in the pairs: all real parts, then imaginary parts."""
    return jnp.concatenate([z.real, z.imag], axis=1)[:, :count]


def sincos_turns(u: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """sin(2πu) and cos(2πu) for u in [0, 1], to rounding.

    Several times faster than `jnp.sin` and `jnp.cos`, which must reduce any argument: here the nearest quarter turn is
    subtracted, which is exact, and the rest is summed by Taylor's series on |x| ≤ π/4.
    """
    quarter = jnp.round(4 * u)
    x = 2 * jnp.pi * (u - 0.25 * quarter)
    x2 = x * x
    # The first neglected term, (π/4)^n / n!, is below the rounding of the dtype.
    terms = 5 if u.dtype == jnp.float32 else 9
    sine, cosine = jnp.zeros_like(x), jnp.zeros_like(x)
    for k in range(terms, -1, -1):
        sine = sine * x2 + (-1) ** k / math.factorial(2 * k + 1)
        cosine = cosine * x2 + (-1) ** k / math.factorial(2 * k)
    sine = sine * x
    odd = quarter.astype(jnp.int32) % 2 == 1
    sine, cosine = jnp.where(odd, cosine, sine), jnp.where(odd, sine, cosine)
    # Quarters 0, 1, 2, 3: the sine is s, c, -s, -c and the cosine c, -s, -c, s.
    half = quarter.astype(jnp.int32) % 4
    return jnp.where(half >= 2, -sine, sine), jnp.where((half == 1) | (half == 2), -cosine, cosine)


def _uniform(high: UInt32[Array, "..."], low: UInt32[Array, "..."], dtype) -> Float[Array, "..."]:
    """A number in (0, 1], at the middle of one of 2^32 (float32) or 2^53 (float64) equal intervals."""
    if dtype == jnp.float32:
        return (high.astype(dtype) + 0.5) * 2.0**-32
    return (high.astype(dtype) * 2.0**21 + (low >> 11).astype(dtype) + 0.5) * 2.0**-53


def _wide_product(a: UInt32[Array, "..."], b: int) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """The high and low words of a 64-bit product."""
    # A 64-bit type exists in JAX only under this flag; it is part of the trace, not of the caller's configuration.
    with jax.enable_x64(True):
        product = lax.convert_element_type(a, jnp.uint64) * jnp.uint64(b)
        high = lax.convert_element_type(lax.shift_right_logical(product, jnp.uint64(32)), jnp.uint32)
        low = lax.convert_element_type(product, jnp.uint32)
    return high, low
